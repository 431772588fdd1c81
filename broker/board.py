"""What the broker's loop leaves for the threads that answer over HTTP, which never touch the loop's own state.

The loop says at each tick that it turns, and puts up what was asked for::

    loop ──turned, publish──▶ board ◀──turn, report, counts── HTTP threads

Neither waits for the other but to exchange a reference.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Report = Mapping[str, Any]

# A report is given again for so long. To make one takes the loop's time, so that nobody who asks often may have many.
_FRESH_S = 1.0


@dataclass(frozen=True, slots=True)
class Turn:
    """The loop's last tick: when (of time.monotonic), and why the broker takes no peers, or nothing."""

    at: float
    unready: str = ""


class Board:
    """See the module. What stands on it is never changed, only replaced."""

    def __init__(self) -> None:
        self.turn = Turn(float("-inf"), "it has not begun")
        self._report = _Place()
        self._counts = _Place()

    # The loop's side.

    def turned(
        self, now: float, unready: str, report: Callable[[], Report], counts: Callable[[], Report] = dict
    ) -> None:
        """The loop has ticked. ``report`` and ``counts`` are called if somebody waits for them."""
        self.turn = Turn(now, unready)
        self._report.fill(now, report)
        self._counts.fill(now, counts)

    # The side of who answers.

    def report(self, patience_s: float) -> Report:
        """A report of this second. Nobody changes it.

        Raises:
            TimeoutError: when the loop has made none for so long.
        """
        return self._report.read(patience_s)

    def counts(self, patience_s: float) -> Report:
        """The counts of this second, which cost the loop far less. Raises TimeoutError as ``report`` does."""
        return self._counts.read(patience_s)


class _Place:
    """Where one kind of report stands."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._wanted = False
        self._report: Report = {}
        self._made_at = float("-inf")

    def fill(self, now: float, make: Callable[[], Report]) -> None:
        if self._wanted:
            made = make()
            with self._changed:
                self._wanted, self._report, self._made_at = False, made, now
                self._changed.notify_all()

    def read(self, patience_s: float) -> Report:
        with self._changed:
            if not self._is_fresh():
                self._wanted = True
                if not self._changed.wait_for(self._is_fresh, patience_s):
                    raise TimeoutError("the broker's loop does not turn: it has made no report in time")
            return self._report

    def _is_fresh(self) -> bool:
        return time.monotonic() < self._made_at + _FRESH_S
