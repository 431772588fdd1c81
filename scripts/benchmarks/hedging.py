"""How long calls take with ``hedge`` and without: where one worker in 16 is ten times slower, and where none is.

The workers are simulated (crowd.py), one row each. Calls come at random moments, at half of the rate that the fleet
carries, so that workers stand idle. Each round makes the same calls at the same moments. A row takes the same time
wherever it runs, but for the slow workers: so no hedge is lucky, and where no worker is slow, each is in vain.
"""

from __future__ import annotations

import functools
import math
import random
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import click
from commands import until

from genpool import ProcessLLM
from genpool.protocol.number import FiniteRange

from . import noop
from .crowd import Crowd, CrowdSettings, running_crowd
from .fleet import NAME, running_fleet
from .paired import Paired, paired
from .report import Goal, Report, percentile, reporting

_SLOWNESS = 10.0
_ONE_IN = 16
_SEED = 16

# Rows with hedge=, before anything is measured, from which the broker learns the usual time.
_ROWS_FIRST = 64


@dataclass(frozen=True)
class Fleet:
    """A fleet to measure, in which one worker in 16 is slow or none.

    Row times are log-normal. ``sigma`` is of the logarithm: 0.3 for prompts of one kind, 1 where answers differ much
    in length.
    """

    name: str
    has_slow: bool
    sigma: float

    def is_slow(self, worker: int) -> bool:
        """Whether the worker of this number is ten times slower."""
        return self.has_slow and worker % _ONE_IN == 0


FLEETS = (Fleet("one in 16 slow", True, 0.3), Fleet("none slow", False, 1.0))


@dataclass(frozen=True)
class Load:
    """What the fleet is asked for: each round is so many calls of so many rows, at a share of what it could carry."""

    workers: int
    usual_s: float
    share: float
    calls: int
    rows: int
    hedge: float

    def gap_s(self, fleet: Fleet) -> float:
        """The mean time between calls."""
        mean_s = self.usual_s * math.exp(fleet.sigma**2 / 2)
        slow = sum(map(fleet.is_slow, range(self.workers)))
        rows_per_s = (self.workers - slow + slow / _SLOWNESS) / mean_s
        return self.rows / (self.share * rows_per_s)


@dataclass
class Rounds:
    """The rounds with hedging, or those without.

    How long each call took, how many rows were begun beyond one each (as a share of all), and busy seconds a row.
    """

    times_s: list[list[float]] = field(default_factory=list[list[float]])
    extra: list[float] = field(default_factory=list[float])
    busy_s: list[float] = field(default_factory=list[float])

    def percentile(self, percent: int) -> float:
        """Of the calls of all rounds."""
        return percentile([took for one in self.times_s for took in one], percent)


@dataclass(frozen=True)
class Measured:
    """One fleet's rounds."""

    off: Rounds
    on: Rounds
    p99: Paired

    @property
    def extra(self) -> float:
        """How many rows were begun a second time, as a share of all."""
        return statistics.mean(self.on.extra)

    @property
    def busy(self) -> float:
        """The workers' busy time with hedging over that without."""
        return statistics.mean(self.on.busy_s) / statistics.mean(self.off.busy_s)


def row_s(fleet: Fleet, usual_s: float, worker: int, payload: bytes) -> float:
    """How long a row takes at a worker."""
    seconds = usual_s * random.Random(payload).lognormvariate(0.0, fleet.sigma)
    return _SLOWNESS * seconds if fleet.is_slow(worker) else seconds


def _measure(fleet: Fleet, load: Load, repeat: int) -> Measured:
    seconds = functools.partial(row_s, fleet, load.usual_s)
    with (
        running_fleet(0) as there,
        running_crowd(CrowdSettings(there.address, NAME, load.workers, seconds=seconds)) as crowd,
    ):
        llm = there.connect()
        try:
            link = llm.link()
            until(lambda: link.fleet and link.fleet[NAME].ready == load.workers, f"{load.workers} workers")
            llm.generate(noop.inputs(_ROWS_FIRST), hedge=load.hedge).result()
            crowd.work()
            off, on = Rounds(), Rounds()
            p99 = paired(
                f"calls, {fleet.name}",
                lambda: _round(llm, crowd, load, load.gap_s(fleet), off, 0.0),
                lambda: _round(llm, crowd, load, load.gap_s(fleet), on, load.hedge),
                repeat,
            )
            return Measured(off, on, p99)
        finally:
            llm.teardown()


def _round(llm: ProcessLLM, crowd: Crowd, load: Load, gap_s: float, rounds: Rounds, hedge: float) -> float:
    """Make the calls of a round, and return the 99th percentile of their times."""
    rows = load.calls * load.rows
    inputs = noop.inputs(rows)
    calls = [inputs[at : at + load.rows] for at in range(0, rows, load.rows)]
    times_s = _call_times(llm, calls, gap_s, random.Random(_SEED), hedge)
    work = crowd.work()
    rounds.times_s.append(times_s)
    rounds.extra.append(sum(one.begun for one in work) / rows - 1)
    rounds.busy_s.append(sum(one.busy_s for one in work) / rows)
    return percentile(times_s, 99)


def _call_times(
    llm: ProcessLLM, calls: Sequence[list[dict[str, str]]], gap_s: float, chance: random.Random, hedge: float
) -> list[float]:
    """Begin each call at its moment, whether or not others have ended, and wait for all."""
    times_s: list[float] = []
    left = threading.Semaphore(0)
    at = time.perf_counter()
    for call in calls:
        at += chance.expovariate(1 / gap_s)
        time.sleep(max(0.0, at - time.perf_counter()))
        begun_at = time.perf_counter()

        def done(_: Any, begun_at: float = begun_at) -> None:
            times_s.append(time.perf_counter() - begun_at)
            left.release()

        llm.generate(call, hedge=hedge or False).add_done_callback(done)
    for _ in calls:
        left.acquire()
    return times_s


def _line(name: str, measured: Measured) -> tuple[str, ...]:
    off, on = measured.off, measured.on
    times = [f"{1000 * one.percentile(percent):,.0f}" for percent in (50, 99) for one in (off, on)]
    return (name, *times, f"{measured.p99.ratio:.2f}", f"{100 * measured.extra:.1f} %", f"{measured.busy:.2f}")


def _figures(measured: Measured) -> dict[str, Any]:
    return {
        "calls_s": {"without": measured.off.times_s, "with": measured.on.times_s},
        "p99_s": {"without": measured.p99.baseline, "with": measured.p99.measured, "ratios": measured.p99.ratios},
        "extra": measured.on.extra,
        "busy_s_per_row": {"without": measured.off.busy_s, "with": measured.on.busy_s},
    }


def _draw(figure: Any, found: dict[Fleet, Measured]) -> None:
    all_axes = figure.subplots(1, len(found), sharey=True)
    for axes, (fleet, measured) in zip(all_axes, found.items(), strict=True):
        for label, rounds in (("without hedging", measured.off), ("with", measured.on)):
            times = sorted(1000 * took for one in rounds.times_s for took in one)
            axes.step(times, [1 - number / len(times) for number in range(len(times))], label=label, where="post")
        axes.axhline(0.01, color="grey", linewidth=0.8, linestyle=":")
        axes.set(title=fleet.name, xlabel="milliseconds", xlim=(0, None), yscale="log")
    all_axes[0].set_ylabel("share of calls that take longer")
    all_axes[0].annotate("99th percentile", (0.99, 0.01), xycoords=("axes fraction", "data"), ha="right", va="bottom")
    all_axes[0].legend()


@click.command()
@click.option("--workers", default=64, show_default=True, type=click.IntRange(2), help="Of the fleet.")
@click.option(
    "--usual", "usual_s", default=0.1, show_default=True, type=FiniteRange(0.001), help="A row's median seconds."
)
@click.option(
    "--load", "share", default=0.5, show_default=True, type=FiniteRange(0.01, 0.99), help="Of what it could carry."
)
@click.option("--calls", default=600, show_default=True, type=click.IntRange(10), help="Calls of a round.")
@click.option("--rows", default=4, show_default=True, type=click.IntRange(1), help="Rows of a call.")
@click.option("--hedge", default=3.0, show_default=True, type=FiniteRange(1), help="As in a call.")
@click.option("--repeat", default=2, show_default=True, type=click.IntRange(1), help="Rounds with hedging.")
@reporting
def hedging(workers: int, usual_s: float, share: float, calls: int, rows: int, hedge: float, repeat: int) -> Report:
    """Measure how long calls take with hedging and without, and what hedging computes in vain."""
    load = Load(workers, usual_s, share, calls, rows, hedge)
    found = {fleet: _measure(fleet, load, repeat) for fleet in FLEETS}
    slow = found[FLEETS[0]]
    return Report(
        title=f"Milliseconds of a call of {rows} rows, without hedging and with",
        headings=("fleet", "p50", "with", "p99", "with", "with/without", "rows twice", "busy with/without"),
        lines=[_line(fleet.name, measured) for fleet, measured in found.items()],
        figures={
            "workers": workers,
            "usual_s": usual_s,
            "load": share,
            "rows_per_call": rows,
            "hedge": hedge,
            "fleets": {fleet.name: _figures(measured) for fleet, measured in found.items()},
        },
        goals=[
            Goal(f"p99 with / without, {FLEETS[0].name}", slow.p99.ratio, 0.5, at_most=True),
            Goal(f"rows twice, {FLEETS[0].name}", slow.extra, 0.05, at_most=True),
        ],
        caption=f"{workers} simulated workers of one row at a time, rows of {1000 * usual_s:g} ms, hedge={hedge:g}; "
        f"{calls} calls a round at {100 * share:.0f} % of what the fleet carries; {repeat} rounds between {repeat + 1}",
        draw=lambda figure: _draw(figure, found),
    )
