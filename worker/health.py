"""Whether a worker's LLM is well, and when one that is not is tried again.

    LOADING ──▶ READY ◀──▶ UNWELL       and from each of them ──▶ DRAINING, for good
       └──────────────────────▲

No I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from ..protocol.messages import Outcome, WorkerState

# As plain names, as in session.py.
LOADING, READY, UNWELL, DRAINING = WorkerState
_DONE: int = Outcome.DONE
_RETURNED: int = Outcome.RETURNED

# An unwell LLM is tried with one call after the first delay, and then after ever longer ones up to the longest.
_FIRST_PROBE_S = 1.0
_LONGEST_PROBE_S = 30.0

# An unwell LLM that nobody has given a row for so long, though it asked for one to be tried with, calls itself ready.
# Rows that wait come at once: with a smaller value it would call itself ready at each try of a server that is away.
_UNASKED_S = 1.0


class Health:
    """The state that brokers hear of, and why it is so.

    Attributes:
        on_probation: whether the LLM was unwell and has not shown since that it is well, so that it is given a single
            call at a time.
    """

    def __init__(self, now: float) -> None:
        self.state = LOADING
        self.reason = ""
        self.is_loaded = False
        self.on_probation = False
        self._probe_at: float | None = None
        self._probe_delay_s = _FIRST_PROBE_S
        self._unasked_since = now

    @property
    def takes_rows(self) -> bool:
        """Whether it is ready, or unwell and to be tried."""
        return self.state is READY or (self.state is UNWELL and self.on_probation)

    def loaded(self) -> None:
        """The LLM is there."""
        self.is_loaded = True
        self._be_ready()

    def unwell(self, reason: str, now: float) -> bool:
        """Something that no row is to blame for is at fault. Returns whether that is news."""
        if self.state is DRAINING:
            return False
        is_news = (self.state, self.reason) != (UNWELL, reason)
        self.state, self.reason = UNWELL, reason
        self.on_probation = False
        if self._probe_at is None:  # several calls of the same moment make the wait grow once
            self._probe_at = now + self._probe_delay_s
            self._probe_delay_s = min(_LONGEST_PROBE_S, 2 * self._probe_delay_s)
        return is_news

    def rows_ended(self, outcomes: AbstractSet[int]) -> None:
        """Rows have ended so at one moment: an LLM that was unwell may be well again."""
        if self.on_probation and not outcomes <= {_RETURNED}:
            self._be_ready()
        if _DONE in outcomes:
            self.on_probation = False
            self._probe_delay_s = _FIRST_PROBE_S

    def drain(self, reason: str) -> None:
        """It takes no more."""
        self.state, self.reason = DRAINING, reason

    def is_to_be_tried(self, now: float) -> bool:
        """Whether it is time to see if an unwell LLM is well; that is said once."""
        if self._probe_at is None or now < self._probe_at:
            return False
        self._probe_at = None
        return self.state is UNWELL

    def try_with_a_call(self, now: float) -> None:
        """Ask for a call, by which it shows whether it is well."""
        self.on_probation = True
        self._unasked_since = now

    def tick(self, now: float, *, is_asking: bool) -> None:
        """Time has passed; ``is_asking`` says whether a call more may begin."""
        if not is_asking:
            self._unasked_since = now
        if self.on_probation and now - self._unasked_since > _UNASKED_S:
            self._be_ready()

    def _be_ready(self) -> None:
        if self.state in (LOADING, UNWELL):
            self.state, self.reason = READY, ""
