"""The rows of one LLM in the client's machine, and since when nobody serves it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from ..protocol.messages import LLMInfo
from .row import Owner, Row, RowSpec
from .run import Run

# A line without an answer for this long is logged, and then after ever longer times.
FIRST_NOTICE_S = 10.0
LONGEST_NOTICE_S = 300.0


@dataclass(slots=True)
class Line:
    """The rows of one LLM: ``waiting`` at home, and how many rows and bytes are at the broker.

    A row that is over stays in ``waiting`` as one of ``dead`` entries until it is met or half of them are. Runs wait
    there too; their rows but for one each are counted by ``more_in_runs``.

    ``was_known`` says whether the broker has told of the LLM while rows waited for it. ``unserved_since`` is since
    when it has said that no worker takes rows, moved on by the time that nobody could tell; ``next_loss_at`` is when
    rows may be given up for that, at the earliest.
    """

    llm: str
    waiting: deque[Row | Run] = field(default_factory=deque["Row | Run"])
    dead: int = 0
    more_in_runs: int = 0
    at_broker: int = 0
    bytes_at_broker: int = 0
    was_known: bool = False
    unknown_since: float | None = None
    unserved_since: float | None = None
    next_loss_at: float = math.inf
    quiet_since: float = 0.0
    next_notice_s: float = FIRST_NOTICE_S

    @property
    def at_home(self) -> int:
        return len(self.waiting) - self.dead + self.more_in_runs

    def take(self, row: Row, now: float) -> None:
        """One row more."""
        row.taken, row.since = True, self._waits_since(row.spec, now)
        self.waiting.append(row)

    def take_run(self, run: Run, now: float) -> None:
        """One run more."""
        run.since = self._waits_since(run.spec, now)
        self.waiting.append(run)
        self.more_in_runs += len(run) - 1

    def _waits_since(self, spec: RowSpec, now: float) -> float:
        """Since when rows of ``spec`` wait that come now."""
        if not self.at_home and not self.at_broker:
            self.unquiet(now)
            self.unknown_since = None
        since = now if spec.since is None else spec.since
        if spec.lost_after_s is not None:
            self.next_loss_at = min(self.next_loss_at, since + spec.lost_after_s)
        return since

    def pop_run(self) -> None:
        """The run that waits first is at the broker from now on."""
        run = self.waiting.popleft()
        assert isinstance(run, Run)
        self.more_in_runs -= len(run) - 1
        self.at_broker += len(run)
        self.bytes_at_broker += run.size

    def split_runs(self) -> list[Row]:
        """Make Rows of the runs that wait. Returns all that waits, rows that are over among it."""
        rows: list[Row] = []
        for one in self.waiting:
            rows += one.split() if isinstance(one, Run) else (one,)
        self.waiting, self.more_in_runs = deque(rows), 0
        return rows

    def put_back(self, row: Row) -> None:
        """A row that was at the broker is at home again, before all others."""
        row.submitted, row.returned = False, True
        self.waiting.appendleft(row)
        self.at_broker -= 1
        self.bytes_at_broker -= len(row.payload)

    def bury(self) -> None:
        """One more entry of ``waiting`` is over."""
        self.dead += 1
        if 2 * self.dead >= len(self.waiting):
            self.waiting = deque(one for one in self.waiting if not one.over)
            self.dead = 0

    def unquiet(self, now: float) -> None:
        """There was an answer, or there is nothing to wait for yet."""
        self.quiet_since, self.next_notice_s = now, FIRST_NOTICE_S

    def note_service(self, info: LLMInfo | None, now: float) -> None:
        """What the broker says of the LLM now; None when it does not know it."""
        self.was_known = self.was_known or info is not None
        self.unknown_since = None if self.was_known else now if self.unknown_since is None else self.unknown_since
        if info is not None and info.ready:
            self.unserved_since = None
        elif self.unserved_since is None:
            self.unserved_since = self.next_loss_at = now

    def note_untold(self, seconds: float) -> None:
        """For so long nobody could tell whether the LLM was served, so that time does not count."""
        if self.unserved_since is not None:
            self.unserved_since += seconds

    def lost_rows(self, rows: Iterable[Row], unserved_since: float, now: float) -> list[Row]:
        """Those of ``rows``, the LLM's own, whose calls have waited for it as long as they meant to.

        A call's rows are lost together: those that were begun last need not wait as long again.
        """
        able = [row for row in rows if not row.over and row.spec.lost_after_s is not None]
        begun: dict[Owner, float] = {}
        for row in able:
            begun[row.owner] = min(row.since, begun.get(row.owner, math.inf))
        due = {row: max(unserved_since, begun[row.owner]) + (row.spec.lost_after_s or 0.0) for row in able}
        self.next_loss_at = min((at for at in due.values() if at > now), default=math.inf)
        return [row for row, at in due.items() if at <= now]
