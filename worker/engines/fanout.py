"""A row's generations from as few requests as a server allows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from ...protocol.errors import RowError
from .row import seed_at

_Answer = TypeVar("_Answer")

# Asks once, for so many generations with that seed.
_Ask = Callable[[int, int | None], Coroutine[Any, Any, _Answer]]


class FanOut(Generic[_Answer]):
    """Asks for all at once, for the rest one by one, and remembers what the server takes.

    Args:
        size: how many generations an answer holds.
        one_by_one: no request may ask for more than one.
    """

    def __init__(self, size: Callable[[_Answer], int], one_by_one: bool = False) -> None:
        self._size = size
        self._one_by_one = one_by_one

    async def answers(self, count: int, seed: int | None, ask: _Ask[_Answer]) -> list[_Answer]:
        """Answers with ``count`` generations or more between them. Raises what ``ask`` raises."""
        if count == 1 or self._one_by_one:
            return await _singly(range(count), seed, ask)
        try:
            answer = await ask(count, seed)
        except RowError:
            # Servers that take no n, or none as large, refuse with 400. If one alone works, that was it.
            answers = await _singly(range(1), seed, ask)
            answers += await _singly(range(1, count), seed, ask)
            self._one_by_one = True
            return answers
        missing = range(self._size(answer), count)
        self._one_by_one = bool(missing)
        return [answer, *await _singly(missing, seed, ask)]


async def _singly(positions: range, seed: int | None, ask: _Ask[_Answer]) -> list[_Answer]:
    requests = [asyncio.ensure_future(ask(1, seed_at(seed, position))) for position in positions]
    try:
        return await asyncio.gather(*requests)
    finally:
        for request in requests:
            request.cancel()
