"""Lets requests go one after the other, as their rate allows."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from .rate import Rate


class Limiter:
    """Requests of one event loop wait here for their turn, first come, first served. Cancelling leaves the line.

    Args:
        rpm, tpm: requests and tokens (prompt and completion) a minute; None for no limit.
    """

    def __init__(self, rpm: float | None = None, tpm: float | None = None) -> None:
        self._rate = Rate(rpm, tpm)
        self._turn = asyncio.Lock()  # who holds it is the first in line
        self._corrected = asyncio.Event()

    async def wait(self, tokens: float) -> None:
        """Return when a request that will use about ``tokens`` may go; it counts from then on."""
        loop = asyncio.get_running_loop()
        async with self._turn:
            while wait_s := self._rate.wait_s(loop.time()):
                self._corrected.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._corrected.wait(), wait_s)
            self._rate.take(tokens, loop.time())

    def correct(self, by: float) -> None:
        """A request has used ``by`` more tokens than it had waited for; less, where it is below 0."""
        self._rate.correct(by)
        self._corrected.set()
