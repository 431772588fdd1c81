"""Rows a second with few and with many workers connected, and what the broker spends on each row.

The workers are simulated (crowd.py) and answer at once. By default each takes one row at a time, as a real fleet's
rows come back one by one: then a row costs a message each way whatever the fleet's size, and what is left to differ is
how many workers are connected. With ``--in-all`` the workers share so many places instead; few workers then get many
rows in a message.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import click
from commands import until
from rich.progress import track

from . import noop
from .crowd import CrowdSettings, running_crowd
from .fleet import NAME, running_fleet
from .paired import Paired
from .report import Goal, Report, err, rate, reporting
from .usage import cpu_s

_IDLE_S = 1.0


@dataclass(frozen=True)
class _Measured:
    """``broker_s`` is the broker's processor time a row, ``idle_share`` its share of a core when no rows come."""

    rows_per_s: float
    broker_s: float
    idle_share: float


def _measure(workers: int, concurrency: int, rows: int) -> _Measured:
    """In a fleet of its own, so that no other one's pings are in the figure."""
    with running_fleet(0) as fleet, running_crowd(CrowdSettings(fleet.address, NAME, workers, 1, concurrency)):
        llm = fleet.connect()
        try:
            link = llm.link()
            until(lambda: link.fleet and link.fleet[NAME].ready == workers, f"{workers} workers")
            llm.generate(noop.inputs(rows // 10 + 1)).result()
            before, inputs = cpu_s(fleet.broker.pid), noop.inputs(rows)
            begun_at = time.perf_counter()
            llm.generate(inputs).result()
            took_s, used_s = time.perf_counter() - begun_at, cpu_s(fleet.broker.pid) - before
            return _Measured(rows / took_s, used_s / rows, _idle_share(fleet.broker.pid))
        finally:
            llm.teardown()


def _idle_share(pid: int) -> float:
    before, begun_at = cpu_s(pid), time.perf_counter()
    time.sleep(_IDLE_S)
    return (cpu_s(pid) - before) / (time.perf_counter() - begun_at)


def _line(size: int, measured: list[_Measured], ratios: Paired | None) -> tuple[str, ...]:
    return (
        f"{size:,}",
        rate(statistics.median(one.rows_per_s for one in measured)),
        *(["1", "", ""] if ratios is None else [f"{x:.2f}" for x in (ratios.ratio, *_spread(ratios))]),
        f"{1e6 * statistics.median(one.broker_s for one in measured):.0f}",
        f"{100 * statistics.mean(one.idle_share for one in measured):.1f} %",
    )


def _spread(ratios: Paired) -> tuple[float, float]:
    return min(ratios.ratios), max(ratios.ratios)


def _draw(figure: Any, found: dict[int, list[_Measured]]) -> None:
    sizes = list(found)
    rates, costs = figure.subplots(1, 2)
    for axes, values, label in (
        (rates, [[one.rows_per_s for one in found[size]] for size in sizes], "rows a second"),
        (costs, [[1e6 * one.broker_s for one in found[size]] for size in sizes], "broker, µs a row"),
    ):
        axes.plot(sizes, [statistics.median(one) for one in values], marker="o")
        axes.fill_between(sizes, [min(one) for one in values], [max(one) for one in values], alpha=0.2)
        axes.set(xscale="log", xlabel="workers connected", ylabel=label, ylim=(0, None))
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes], minor=False)
        axes.minorticks_off()


@click.command()
@click.option("--size", "sizes", default=[10, 100, 1000], show_default=True, multiple=True, type=click.IntRange(1))
@click.option("--in-all", type=click.IntRange(1), help="Rows that all workers take at once, shared, and not one each.")
@click.option("--rows", default=10_000, show_default=True, type=click.IntRange(1), help="Rows of a measurement.")
@click.option("--repeat", default=5, show_default=True, type=click.IntRange(1), help="Measurements of each size.")
@reporting
def workers(sizes: tuple[int, ...], in_all: int | None, rows: int, repeat: int) -> Report:
    """Measure rows a second with more and more workers connected, and the broker's processor time a row."""
    first, *others = sizes
    places = {size: 1 if in_all is None else max(1, in_all // size) for size in sizes}
    found: dict[int, list[_Measured]] = {size: [] for size in sizes}
    for size in track([*sizes * repeat, first], "Measuring", console=err, transient=True):
        found[size].append(_measure(size, places[size], rows))
    rates = {size: [one.rows_per_s for one in measured] for size, measured in found.items()}
    ratios = {size: Paired(rates[first], rates[size]) for size in others}
    takes = "one row each" if in_all is None else f"{in_all:,} rows in all"
    return Report(
        title=f"Rows a second through 1 client and more and more workers, which take {takes}",
        headings=("workers", "rows/s", f"/ {first:,} workers", "min", "max", "µs/row", "idle"),
        lines=[_line(size, measured, ratios.get(size)) for size, measured in found.items()],
        figures={
            "rows": rows,
            "workers": {
                size: {
                    "rows_at_once_each": places[size],
                    "rows_per_s": rates[size],
                    "ratios": ratios[size].ratios if size in ratios else None,
                    "broker_us_per_row": [1e6 * one.broker_s for one in measured],
                    "idle_broker_share_of_a_core": [one.idle_share for one in measured],
                }
                for size, measured in found.items()
            },
        },
        goals=[Goal(f"{size:,} workers / {first:,} workers", one.ratio, 0.8, 0.95) for size, one in ratios.items()],
        caption=f"medians of {repeat} fleets of each size; the broker's µs a row, and its share of a core when idle\n"
        f"{rows:,} rows, {noop.INPUT_CHARACTERS} characters in,"
        f" {noop.OUTPUT_BYTES} bytes out, loopback TCP; simulated workers in one process",
        draw=lambda figure: _draw(figure, found),
    )
