"""How busy the pool keeps unequal workers with unequal rows, against a split that gives each worker as many rows.

Workers are simulated (crowd.py), each at a speed of its own, and take one row at a time. Rows take log-normal times, as
completions do. Busy time is what the rows take, and no more, so everything else counts as idle:

- start: until the first row comes, with the packing of all of them at the client.
- between: from when a worker has noticed the end of one row until the next one has come: a round trip to the broker.
- noticing: from a row's end until the simulated worker notices it, which a real engine does not need.
- end: when no row waits any more and others still run. More rows make its share smaller, whoever hands them out.

Beside it stand two that are computed from the very same times: the even split, and a pool without delay, which would
lose nothing but the time at the end. That one is chance, for a long row among the last may fall to a slow worker, and
so few rows may do better through the pool.
"""

from __future__ import annotations

import functools
import heapq
import math
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click
from rich.progress import track

from genpool import ProcessLLM
from genpool.protocol.content import unpack_row
from genpool.protocol.number import FiniteRange

from .crowd import Crowd, CrowdSettings, Work, running_crowd
from .fleet import NAME, running_fleet
from .report import Goal, Report, err, reporting

# 98 of 100 rows take between these, at a speed of 1 and a scale of 1; the others are cut to them.
_SHORTEST_S, _LONGEST_S = 0.05, 5.0
_DEVIATIONS = statistics.NormalDist().inv_cdf(0.99)

_SLOWEST, _FASTEST = 0.5, 2.0

# For each worker, its rows: when each began, counted from the call, and how long it took.
Plan = list[list[tuple[float, float]]]


@dataclass(frozen=True)
class _Measured:
    """Shares of all workers' time: how busy they were, and what they were idle for; ``plan`` is what they did."""

    pool: float
    idle: dict[str, float]
    split: float
    no_delay: float
    round_trip_s: float
    plan: Plan
    split_plan: Plan


def _row_times(count: int, source: random.Random) -> list[float]:
    """Seconds of each row at a speed of 1."""
    middle = math.log(_SHORTEST_S * _LONGEST_S) / 2
    deviation = math.log(_LONGEST_S / _SHORTEST_S) / 2 / _DEVIATIONS
    return [min(_LONGEST_S, max(_SHORTEST_S, source.lognormvariate(middle, deviation))) for _ in range(count)]


def _speeds(workers: int) -> list[float]:
    """From the slowest to the fastest worker, each by the same factor faster than the one before."""
    return [_SLOWEST * (_FASTEST / _SLOWEST) ** (number / max(1, workers - 1)) for number in range(workers)]


def _seconds(speeds: Sequence[float], worker: int, payload: bytes) -> float:
    """A row says how long it takes."""
    content, _ = unpack_row(payload)
    return float(content["input"]) / speeds[worker]


def _even_split(times: Sequence[float], speeds: Sequence[float]) -> Plan:
    """Each worker has every so manieth row from the start, and loses no time."""
    plan: Plan = []
    for worker, speed in enumerate(speeds):
        at = 0.0
        plan.append([])
        for seconds in times[worker :: len(speeds)]:
            plan[-1].append((at, seconds / speed))
            at += seconds / speed
    return plan


def _no_delay(times: Sequence[float], speeds: Sequence[float]) -> Plan:
    """Whoever is free takes the next row, and no time passes in between."""
    plan: Plan = [[] for _ in speeds]
    free = [(0.0, worker) for worker in range(len(speeds))]
    for seconds in times:
        at, worker = heapq.heappop(free)
        took = seconds / speeds[worker]
        plan[worker].append((at, took))
        heapq.heappush(free, (at + took, worker))
    return plan


def _makespan(plan: Plan) -> float:
    return max(began + took for rows in plan for began, took in rows)


def _utilisation(plan: Plan) -> float:
    """Busy time of all workers over their number times the makespan."""
    return sum(took for rows in plan for _, took in rows) / (len(plan) * _makespan(plan))


def _measure(llm: ProcessLLM, crowd: Crowd, times: Sequence[float], speeds: Sequence[float]) -> _Measured:
    inputs = [{"input": f"{seconds:.6f}"} for seconds in times]
    begun_at = time.monotonic()
    llm.generate(inputs).result()
    work = crowd.work()
    plan = [[(began - begun_at, took) for began, took, _ in one.spans] for one in work]
    gaps = [gap for one in work for gap in _gaps(one)]
    split = _even_split(times, speeds)
    return _Measured(
        pool=_utilisation(plan),
        idle=_idle(plan, work, sum(gaps)),
        split=_utilisation(split),
        no_delay=_utilisation(_no_delay(times, speeds)),
        round_trip_s=statistics.median(gaps) if gaps else 0.0,
        plan=plan,
        split_plan=split,
    )


def _gaps(work: Work) -> list[float]:
    """Seconds from when the end of each row was noticed until the next one began."""
    return [following[0] - row[2] for row, following in zip(work.spans, work.spans[1:], strict=False)]


def _idle(plan: Plan, work: Sequence[Work], between_s: float) -> dict[str, float]:
    """The shares of the workers' time that were not busy: see the module."""
    makespan = _makespan(plan)
    all_s = len(plan) * makespan
    start_s = sum(rows[0][0] if rows else makespan for rows in plan)
    noticing_s = sum(noticed - began - took for one in work for began, took, noticed in one.spans[:-1])
    end_s = sum(makespan - sum(rows[-1]) for rows in plan if rows)
    shares = {"start": start_s, "between": between_s, "noticing": noticing_s, "end": end_s}
    return {name: seconds / all_s for name, seconds in shares.items()}


@click.command()
@click.option(
    "--rows",
    "counts",
    default=[1000, 4000, 16_000],
    show_default=True,
    multiple=True,
    type=click.IntRange(1),
    help="Rows of a call; repeat. The goals are for the most.",
)
@click.option("--workers", default=32, show_default=True, type=click.IntRange(1), help="Simulated workers.")
@click.option("--scale", default=10.0, show_default=True, type=FiniteRange(0, min_open=True), help="Divides all times.")
@click.option("--repeat", default=2, show_default=True, type=click.IntRange(1), help="Rounds of each, other rows each.")
@click.option("--seed", default=1, show_default=True, type=int, help="Of the rows' times.")
@reporting
def utilisation(counts: tuple[int, ...], workers: int, scale: float, repeat: int, seed: int) -> Report:
    """Measure how busy the pool keeps unequal workers with unequal rows, against an even split."""
    speeds = _speeds(workers)
    seconds = functools.partial(_seconds, speeds)
    by_count: dict[int, list[_Measured]] = {count: [] for count in sorted(counts)}
    source = random.Random(seed)
    with (
        running_fleet(0) as fleet,
        running_crowd(CrowdSettings(fleet.address, NAME, workers, seconds=seconds)) as crowd,
    ):
        llm = fleet.connect()
        try:
            _measure(llm, crowd, [_SHORTEST_S] * workers, speeds)
            for _ in track(range(repeat), "Measuring", console=err, transient=True):
                for count, rounds in by_count.items():
                    times = [one / scale for one in _row_times(count, source)]
                    rounds.append(_measure(llm, crowd, times, speeds))
        finally:
            llm.teardown()
    most, of_most = next(reversed(by_count.items()))
    reached = statistics.median(one.pool for one in of_most)
    round_trips = [one.round_trip_s for rounds in by_count.values() for one in rounds]
    return Report(
        title=f"Busy time of {workers} workers at speeds from {_SLOWEST:g} to {_FASTEST:g}, medians of {repeat} rounds",
        headings=(
            "rows",
            "pool",
            "min",
            "max",
            "even split",
            "no delay",
            *(f"idle: {name}" for name in of_most[0].idle),
        ),
        lines=[_line(count, rounds) for count, rounds in by_count.items()],
        figures={
            "workers": workers,
            "scale": scale,
            "seed": seed,
            "rows": {
                str(count): {
                    "pool": [one.pool for one in rounds],
                    "even_split": [one.split for one in rounds],
                    "no_delay": [one.no_delay for one in rounds],
                    "idle": [one.idle for one in rounds],
                    "round_trip_s": [one.round_trip_s for one in rounds],
                }
                for count, rounds in by_count.items()
            },
        },
        goals=[Goal(f"busy time, {most:,} rows", reached, 0.95, 0.98)],
        caption=(
            f"rows of {1000 * _SHORTEST_S / scale:g} to {1000 * _LONGEST_S / scale:g} ms at a speed of 1, "
            f"{1000 * statistics.median(round_trips):.2f} ms between two rows"
        ),
        draw=lambda figure: _draw(figure, by_count),
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _line(count: int, rounds: list[_Measured]) -> tuple[str, ...]:
    pool = [one.pool for one in rounds]
    shares = [
        statistics.median(pool),
        min(pool),
        max(pool),
        statistics.median(one.split for one in rounds),
        statistics.median(one.no_delay for one in rounds),
        *(statistics.median(one.idle[name] for one in rounds) for name in rounds[0].idle),
    ]
    return (f"{count:,}", *map(_percent, shares))


def _draw(figure: Any, by_count: dict[int, list[_Measured]]) -> None:
    grid = figure.add_gridspec(2, 2, width_ratios=(3, 2))
    fewest, rounds = next(iter(by_count.items()))
    upper = figure.add_subplot(grid[0, 0])
    lower = figure.add_subplot(grid[1, 0], sharex=upper, sharey=upper)
    for axes, name, plan, colour in (
        (upper, "pool", rounds[0].plan, "C0"),
        (lower, "even split", rounds[0].split_plan, "C1"),
    ):
        for worker, rows in enumerate(plan):
            axes.broken_barh(rows, (worker - 0.4, 0.8), facecolors=colour, edgecolors="white", linewidth=0.3)
        axes.set(title=f"{name}, {fewest:,} rows", ylabel="workers, fastest last")
    lower.set(xlabel="seconds")
    growth = figure.add_subplot(grid[:, 1])
    ways = {
        "pool": [[one.pool for one in rounds] for rounds in by_count.values()],
        "even split": [[one.split for one in rounds] for rounds in by_count.values()],
        "no delay": [[one.no_delay for one in rounds] for rounds in by_count.values()],
    }
    for name, shares in ways.items():
        medians = [100 * statistics.median(one) for one in shares]
        growth.plot(list(by_count), medians, marker="o", linestyle=":" if name == "no delay" else "-", label=name)
    growth.set_xscale("log")
    growth.set_xticks(list(by_count), [f"{count:,}" for count in by_count])
    growth.minorticks_off()
    growth.set(xlabel="rows", ylabel="% of the workers' time that is busy", ylim=(0, 100))
    growth.legend(loc="lower right")
