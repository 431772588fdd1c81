"""Signals as something to read: a loop hears of them between its other work, and never in the midst of it."""

from __future__ import annotations

import os
import select
import signal
from typing import Any, Self


class Signals:
    """Those that this process gets, in their order, until it is closed. To be made in the main thread."""

    def __init__(self, *numbers: signal.Signals) -> None:
        self._ear, self._bell = os.pipe()
        for end in (self._ear, self._bell):
            os.set_blocking(end, False)
        # The handler does nothing: it is Python that writes the number into the pipe.
        self._before: dict[signal.Signals, Any] = {one: signal.signal(one, _ignore) for one in numbers}
        self._bell_before = signal.set_wakeup_fd(self._bell, warn_on_full_buffer=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._bell_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._ear)
        os.close(self._bell)

    def fileno(self) -> int:
        """What a selector waits for."""
        return self._ear

    def read(self) -> list[int]:
        """Those that came since the last call; does not wait."""
        try:
            return list(os.read(self._ear, 4096))
        except BlockingIOError:
            return []

    def wait(self, timeout_s: float | None = None) -> list[int]:
        """Those that came since the last call; waits for one, None for ever."""
        select.select([self._ear], [], [], timeout_s)
        return self.read()


def _ignore(number: int, frame: object) -> None:
    pass
