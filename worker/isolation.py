"""Suspects run beside no row of another broker. No I/O, no clock.

A broker knows of its own rows only, and would blame its suspects for what another broker's row has done.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..protocol.session import OPEN
from .desk import Desk
from .running import RunningCall

# How long rows of other brokers are waited for, none of which begins meanwhile, before suspects are tried, and how long
# the others then have their places again where that was in vain: a larger value starves the others beside a long row, a
# smaller one the suspects.
_WAIT_S = 60.0

# How long the engine stays free for suspects that do not come: their broker may try them elsewhere.
_UNUSED_S = 1.0


class Isolation:
    """Which desk has the engine to itself, because its suspects run or wait for that.

    ``calls`` are those that run, whoever adds to them. Where a method returns a bool, it says whether the places of all
    desks have changed.

    Attributes:
        desk: the one, if any.
    """

    def __init__(self, calls: Mapping[int, RunningCall], now: float) -> None:
        self._calls = calls
        self.desk: Desk | None = None
        self._until = self._next = now  # until when suspects are waited for, and from when on again

    def ask(self, desk: Desk, now: float) -> bool:
        """Let no rows of other brokers begin beside this desk's suspects, unless that was in vain just now."""
        was_in_vain = self.runs_others(desk) and now < self._next
        if self.desk is not None or was_in_vain:
            return False
        self.desk, self._until = desk, now + _WAIT_S
        return True

    def lets_begin(self, desk: Desk, *, are_suspects: bool) -> bool:
        """Whether rows of this desk may begin now."""
        is_others = self.desk is not None and self.desk is not desk
        return not is_others and not (are_suspects and self.runs_others(desk))

    def call_ended(self, ended: RunningCall) -> None:
        """A call is not among those that run any more."""
        if ended.are_suspects and not self._runs_suspects():
            self.desk = None

    def tick(self, now: float) -> bool:
        """Give all their places again where suspects do not come, or have waited for too long."""
        desk = self.desk
        if desk is None or self._runs_suspects():
            return False
        if not self.runs_others(desk):
            self._until = min(self._until, now + _UNUSED_S)
        if now < self._until and desk.state is OPEN:
            return False
        self._next = now + _WAIT_S if self.runs_others(desk) else now
        self.desk = None
        return True

    def runs_others(self, desk: Desk) -> bool:
        """Whether the engine works on rows of other desks."""
        return any(call.desk is not desk for call in self._calls.values())

    def _runs_suspects(self) -> bool:
        return any(call.are_suspects for call in self._calls.values())
