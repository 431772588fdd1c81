"""Stragglers: which executions run far longer than such rows usually do, and how many of them may be hedged.

A row that straggles while workers stand idle is given to a second one, and the first answer wins (hedged requests:
Dean and Barroso, "The Tail at Scale", 2013). What that computes in vain is bounded: finished rows add to an allowance,
and each hedge takes from it, as gRPC throttles retries. Only rows of calls that ask for it are looked at.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from .row import Execution, Row, RowSpec

# The usual time is the median of so many of the last durations: fewer follow a change sooner, more are less noisy. It
# is no high percentile, for a slow worker's own rows would raise that: one in 16 may well run over 5 % of the rows.
_MOST_DURATIONS = 128
_LEAST_DURATIONS = 8

# Each finished row allows so much of a hedge: no more than one row in 20 is ever computed twice.
_ALLOWANCE_PER_ROW = 0.05
# What an LLM starts with, so that a small job on a new broker can be helped once, and what it may save up. More would
# hedge more of the rows that a host holds when it freezes, and more in vain when all rows take longer from now on.
_FIRST_ALLOWANCE = 1.0
_MOST_ALLOWANCE = 50.0

# Rows whose options differ take unlike long. More kinds than this, one for each row, say, are not worth remembering.
_MOST_KINDS = 64

_KindKey = tuple[int, bytes, float]


@dataclass(slots=True)
class _Kind:
    """Rows that should take alike long.

    ``durations`` are those of the last that were done. ``running`` has the executions under way by their ids, in the
    order of their start. ``usual_s`` is the median, None until it is asked for.
    """

    durations: deque[float] = field(default_factory=lambda: deque(maxlen=_MOST_DURATIONS))
    running: dict[int, Execution] = field(default_factory=dict[int, Execution])
    usual_s: float | None = None

    def stragglers(self, factor: float, now: float) -> Iterator[Execution]:
        """Those that have run ``factor`` times as long as usual, the longest first. O(stragglers)."""
        if len(self.durations) < _LEAST_DURATIONS:
            return
        if self.usual_s is None:
            self.usual_s = sorted(self.durations)[len(self.durations) // 2]
        latest = now - factor * self.usual_s
        for execution in self.running.values():
            if execution.since > latest:
                return
            yield execution


class Stragglers:
    """The executions of one LLM that may come to straggle.

    ``hedged`` counts the hedges that were handed out, and ``hedges_won`` those that answered their row.
    """

    def __init__(self) -> None:
        self.hedged = 0
        self.hedges_won = 0
        self._allowance = _FIRST_ALLOWANCE
        self._kinds: dict[_KindKey, _Kind] = {}  # the one that was last begun is the last
        self._hedges: set[int] = set()  # the executions under way that are hedges

    def begin(self, execution: Execution) -> None:
        """An execution is handed out."""
        key = _key(execution.row.spec)
        kind = self._kinds[key] = self._kinds.pop(key, None) or _Kind()
        kind.running[execution.id] = execution
        if len(self._kinds) > _MOST_KINDS:
            del self._kinds[next(iter(self._kinds))]

    def forget(self, execution: Execution) -> _Kind | None:
        """An execution has ended in whatever way. Returns its kind, if both were known."""
        self._hedges.discard(execution.id)
        kind = self._kinds.get(_key(execution.row.spec))
        return kind if kind is not None and kind.running.pop(execution.id, None) else None

    def done(self, execution: Execution, now: float) -> None:
        """An execution has ended with its row's answer."""
        if execution.id in self._hedges:
            self.hedges_won += 1
            for other in execution.row.executions:
                other.worker.outrun += other is not execution
        kind = self.forget(execution)
        if kind is not None:
            kind.durations.append(now - execution.since)
            kind.usual_s = None
            self._allowance = min(_MOST_ALLOWANCE, self._allowance + _ALLOWANCE_PER_ROW)

    def due(self, now: float) -> list[Row]:
        """The rows that may be given to a second worker now: those that straggle, as many as the allowance carries."""
        most = int(self._allowance)
        if not most or not self._kinds:
            return []
        stragglers = (one for (*_, factor), kind in self._kinds.items() for one in kind.stragglers(factor, now))
        return list(islice((one.row for one in stragglers if _may_be_hedged(one.row, now)), most))

    def hedge(self, execution: Execution) -> None:
        """One of them was given to a second worker, as this execution."""
        self._hedges.add(execution.id)
        self.hedged += 1
        self._allowance -= 1


def _key(spec: RowSpec) -> _KindKey:
    return spec.num_generations, spec.options, spec.hedge


def _may_be_hedged(row: Row, now: float) -> bool:
    """Whether a row runs on one worker only, nothing is held against it, and its client is there for the answer."""
    is_wanted = row.client is not None and not row.client.is_stalled and not row.spec.is_over(now)
    return is_wanted and not row.record.charged and len(row.executions) == 1
