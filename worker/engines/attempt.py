"""Requests that outlive trouble: each waits for its turn, and is tried again while that is worth it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import openai

from .limiter import Limiter
from .retry import pause_s

_T = TypeVar("_T")


class Attempts:
    """How long and how often a request is tried.

    Args:
        timeout_s: how long it may take, tries and pauses included; waits for the limiter do not count.
        max_retries: how often it is tried again.
        limiter: lets every try wait for its turn.
    """

    def __init__(self, timeout_s: float, max_retries: int, limiter: Limiter) -> None:
        self._timeout_s = timeout_s
        self._max_retries = max_retries
        self._limiter = limiter

    async def until_answered(
        self, ask: Callable[[], Awaitable[_T]], tokens: int, *, max_retries: int | None = None
    ) -> _T:
        """The answer to a request that will use about ``tokens``; ``max_retries`` is in place of the usual one.

        Raises:
            TimeoutError: there was none in time.
            openai.OpenAIError: the last try failed.
        """
        clock = asyncio.get_running_loop().time
        left_s = self._timeout_s
        most = self._max_retries if max_retries is None else max_retries
        tries = 0
        while True:
            await self._limiter.wait(tokens)
            began = clock()
            try:
                async with asyncio.timeout(left_s):
                    return await ask()
            except TimeoutError:
                raise TimeoutError(f"no answer within {self._timeout_s:g} s") from None
            except openai.OpenAIError as error:
                if isinstance(error, openai.APIStatusError):
                    self._limiter.correct(-tokens)  # what is refused is not generated
                rest_s = pause_s(error, tries, random.random())
                if rest_s is None or tries >= most:
                    raise
                left_s -= clock() - began + rest_s
                if left_s <= 0:
                    raise
            await asyncio.sleep(rest_s)
            tries += 1
