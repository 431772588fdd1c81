"""When a process that has ended is started again. No clock and no sleep."""

from __future__ import annotations

from collections.abc import Callable

# What a genpool command ends with when to start it again would change nothing: it was done or drained; what it was
# given cannot be used; the broker refuses it.
FINAL = frozenset({0, 2, 4})

# With a longer first pause a fleet is short of a worker for longer after each crash; with a shorter longest one a model
# that is broken is loaded over and over.
_FIRST_S = 0.5
_LONGEST_S = 30.0


class Backoff:
    """The pauses before the starts of one process: they double from the first to the longest, with jitter.

    Args:
        draw: from 0 to 1, for the jitter, so that many which fell together do not come back together.
    """

    def __init__(self, draw: Callable[[], float], first_s: float = _FIRST_S, longest_s: float = _LONGEST_S) -> None:
        self._draw, self._first_s, self._longest_s = draw, first_s, longest_s
        self._next_s = first_s

    def pause_s(self, ran_s: float) -> float:
        """Seconds to wait now that it has ended by itself, ``ran_s`` seconds after it came up.

        One that was up for as long as the longest pause starts afresh; one that comes up and ends at once, over and
        over, does not.
        """
        if ran_s >= self._longest_s:
            self._next_s = self._first_s
        pause_s = self._next_s * (1 - self._draw() / 2)
        self._next_s = min(self._longest_s, 2 * self._next_s)
        return pause_s
