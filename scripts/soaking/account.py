"""What a soak has come to: how each fault was recovered from, what was computed twice and why, and the verdict."""

from __future__ import annotations

import statistics
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from rich.table import Table
from scripted_llm import Note

from .fleet import History
from .load import Sent
from .plan import Kind

_NEVER = float("-inf")

# How long a worker that was frozen may take to hear that it was given up meanwhile.
_NEWS_S = 1.0


@dataclass(slots=True, eq=False)
class Recovery:
    """The time that it takes after a fault until rows flow again.

    That is until each of ``held``, the rows that were at the victims, is answered, or, where the fault was not a
    worker's, until any row is answered at all.
    """

    kind: Kind
    since: float
    held: list[Sent] | None
    took_s: float | None = None

    def look(self, answers: list[float]) -> bool:
        """Whether it is over, now that rows were answered at these times, in order."""
        if self.held is None:
            first = bisect_right(answers, self.since)
            if first == len(answers):
                return False
            self.took_s = answers[first] - self.since
            return True
        if any(row.state == "pending" for row in self.held):
            return False
        answered = [row.over_at for row in self.held if row.state == "answered"]
        if answered:
            self.took_s = max(0.0, max(answered) - self.since)
        return True


@dataclass(slots=True)
class Computing:
    """One run of a row's engine call, from its beginning to its end."""

    pid: int
    began: float
    ended: float | None = None


class Diary:
    """Who ran which row when, from the notes of one LLM's workers."""

    def __init__(self) -> None:
        self.runs: dict[str, list[Computing]] = defaultdict(list)
        self._begun_by: dict[int, list[str]] = defaultdict(list)

    def enter(self, notes: Iterable[Note]) -> None:
        for note in notes:
            runs = self.runs[note.name]
            if note.event == "began":
                runs.append(Computing(note.pid, note.at))
                self._begun_by[note.pid].append(note.name)
            else:
                # The last one: an earlier run of the same process was stopped in its midst.
                next(run for run in reversed(runs) if run.pid == note.pid).ended = note.at

    def begun_by(self, pid: int) -> list[str]:
        """The rows that a process has begun, without those that were forgotten."""
        return self._begun_by.get(pid, [])

    def keep(self, pid: int, names: list[str]) -> None:
        """Forget what a process has begun but ``names``: it is over."""
        self._begun_by[pid] = names

    def computed_twice(self) -> dict[str, list[Computing]]:
        """The rows that were computed to the end more than once, and all their runs."""
        return {name: runs for name, runs in self.runs.items() if sum(run.ended is not None for run in runs) > 1}


REASONS = ("death", "silence", "drain", "no reason")


def reason_of(runs: list[Computing], history: History) -> str:
    """Why a row was computed twice: the death, the silence or the drain of a process that ran it, or for no reason.

    A worker that drains does not wait for ever for a broker that is away, and its answers go with it.
    """
    runs = sorted(runs, key=lambda run: run.began)
    again = [_reason(run, following, history) for run, following in pairwise(runs) if run.ended is not None]
    return max(again, key=REASONS.index)


def _reason(run: Computing, following: Computing, history: History) -> str:
    """Why a row that ``run`` has computed was begun again."""
    if run.began <= history.died.get(run.pid, _NEVER) <= following.began:
        return "death"
    # A worker that goes on may begin what it was given before it was frozen, until it hears that it was given up.
    silent = [frozen for frozen in history.frozen if frozen[0] in (run.pid, following.pid)]
    if any(start <= following.began and end >= run.began - _NEWS_S for _, start, end in silent):
        return "silence"
    if run.began <= history.drained.get(run.pid, _NEVER) <= following.began:
        return "drain"
    return "no reason"


@dataclass(slots=True)
class Figures:
    """The end of a soak. All but the first four and ``poisons_found`` must be 0 or empty."""

    seed: int
    seconds: float
    answered: int
    computed_twice: dict[str, int]
    poisons_found: int
    lost: list[str]
    answered_twice: int
    wrong: int
    failed: list[str]
    poisons_missed: list[str]
    crashed: list[str]
    left: list[str]
    recoveries: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    not_recovered: dict[str, int] = field(default_factory=dict[str, int])
    faults: dict[str, int] = field(default_factory=dict[str, int])
    twice_for_no_reason: list[str] = field(default_factory=list[str])

    @property
    def is_clean(self) -> bool:
        troubles = (
            self.lost,
            self.answered_twice,
            self.wrong,
            self.failed,
            self.poisons_missed,
            self.crashed,
            self.left,
        )
        return not any(troubles) and not any(self.not_recovered.values())

    def as_json(self) -> dict[str, Any]:
        every = [took_s for one in self.recoveries.values() for took_s in one]
        by_kind = {
            kind: {"faults": faults, **_times(self.recoveries.get(kind, []))} for kind, faults in self.faults.items()
        }
        return {
            "clean": self.is_clean,
            "seed": self.seed,
            "seconds": round(self.seconds, 1),
            "rows_answered": self.answered,
            "computed_twice": self.computed_twice,
            "lost": len(self.lost),
            "answered_twice": self.answered_twice,
            "wrong_answers": self.wrong,
            "failed_innocents": len(self.failed),
            "poisons_found": self.poisons_found,
            "poisons_missed": len(self.poisons_missed),
            "crashed": self.crashed,
            "left": self.left,
            **_times(every),
            "by_kind": by_kind,
        }

    def tables(self) -> Iterable[Table]:
        """For people."""
        rows = Table("", "", title=f"Soak of {self.seconds:.0f} s, seed {self.seed}", show_header=False)
        twice = ", ".join(f"{number} by {reason}" for reason, number in self.computed_twice.items() if number)
        rows.add_row("rows answered", str(self.answered))
        rows.add_row("computed twice", f"{sum(self.computed_twice.values())} ({twice})" if twice else "0")
        for name, value in (
            ("lost", len(self.lost)),
            ("answered twice", self.answered_twice),
            ("wrong answers", self.wrong),
            ("failed innocents", len(self.failed)),
            ("processes that crashed", len(self.crashed)),
            ("left behind in the broker", len(self.left)),
        ):
            rows.add_row(name, f"[red]{value}[/red]" if value else "0")
        rows.add_row("poisonous rows found", f"{self.poisons_found} of {self.poisons_found + len(self.poisons_missed)}")
        yield rows
        times = Table("fault", "times", "recoveries", "median s", "slowest s", title="Recoveries")
        times.caption = (
            "From a worker's fault to the last answer of the rows that it held, else to any answer. Faults overlap."
        )
        for kind, figures in self.as_json()["by_kind"].items():
            median_s, slowest_s = (_said(figures[key]) for key in ("median_s", "slowest_s"))
            times.add_row(kind, str(figures["faults"]), str(figures["recoveries"]), median_s, slowest_s)
        every = self.as_json()
        times.add_section()
        numbers = (str(sum(self.faults.values())), str(every["recoveries"]))
        times.add_row("all", *numbers, _said(every["median_s"]), _said(every["slowest_s"]))
        yield times

    def troubles(self) -> list[str]:
        """A line for each thing that should not have been."""
        lines = [f"lost: {name}" for name in self.lost]
        lines += [f"failed: {what}" for what in self.failed]
        lines += [f"poison not found: {name}" for name in self.poisons_missed]
        lines += [f"left: {what}" for what in self.left]
        lines += [f"not recovered: {kind}, {times} times" for kind, times in self.not_recovered.items() if times]
        lines += [f"computed twice for no reason: {what}" for what in self.twice_for_no_reason]
        return [*lines, *self.crashed]


def _times(took_s: list[float]) -> dict[str, Any]:
    median_s = round(statistics.median(took_s), 3) if took_s else None
    slowest_s = round(max(took_s), 3) if took_s else None
    return {"recoveries": len(took_s), "median_s": median_s, "slowest_s": slowest_s}


def _said(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.2f}"
