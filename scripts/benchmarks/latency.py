"""How long ``generate`` of one row takes, one after the other, against an echo through libzmq's proxy."""

from __future__ import annotations

import statistics
import time
from typing import Any

import click

from . import noop
from .fleet import running_fleet
from .paired import Paired, paired
from .proxy import running_proxy
from .report import Goal, Report, percentile, reporting

_PERCENTILES = (50, 99)


@click.command()
@click.option("--rows", default=1000, show_default=True, type=click.IntRange(10), help="Rows of a round.")
@click.option("--repeat", default=9, show_default=True, type=click.IntRange(1), help="Rounds.")
@reporting
def latency(rows: int, repeat: int) -> Report:
    """Measure how long one row takes that is alone, against an echo through libzmq's proxy."""
    row = noop.inputs(1)
    pool_s: list[list[float]] = []
    proxy_s: list[list[float]] = []
    with (
        running_proxy(1, noop.INPUT_CHARACTERS, noop.OUTPUT_BYTES) as proxy,
        running_fleet(1) as fleet,
    ):
        llm = fleet.connect()
        try:

            def pool() -> float:
                pool_s.append(_latencies(llm, row, rows))
                return percentile(pool_s[-1], 50)

            def echo() -> float:
                proxy_s.append(proxy.latencies_s(rows))
                return percentile(proxy_s[-1], 50)

            llm.generate(row).result()
            medians = paired("one row at a time", echo, pool, repeat)
        finally:
            llm.teardown()
    by_percent = {
        percent: Paired([percentile(one, percent) for one in proxy_s], [percentile(one, percent) for one in pool_s])
        for percent in _PERCENTILES
    }
    return Report(
        title=f"Milliseconds of one row at a time, medians of {repeat} rounds of {rows:,}",
        headings=("percentile", "pool", "proxy", "pool/proxy", "min", "max"),
        lines=[_line(percent, figures) for percent, figures in by_percent.items()],
        figures={
            f"p{percent}": {"pool_s": one.measured, "proxy_s": one.baseline, "ratios": one.ratios}
            for percent, one in by_percent.items()
        },
        goals=[Goal("p50, pool/proxy", medians.ratio, 2.5, 1.6, at_most=True)],
        caption=f"{noop.INPUT_CHARACTERS} characters in, {noop.OUTPUT_BYTES} bytes out, one worker, loopback TCP",
        draw=lambda figure: _draw(figure, pool_s, proxy_s),
    )


def _latencies(llm: Any, row: list[dict[str, str]], count: int) -> list[float]:
    times: list[float] = []
    for _ in range(count):
        begun_at = time.perf_counter()
        llm.generate(row).result()
        times.append(time.perf_counter() - begun_at)
    return times


def _line(percent: int, figures: Paired) -> tuple[str, ...]:
    times = [f"{1000 * statistics.median(one):.2f}" for one in (figures.measured, figures.baseline)]
    return (f"p{percent}", *times, *(f"{one:.2f}" for one in (figures.ratio, min(figures.ratios), max(figures.ratios))))


def _draw(figure: Any, pool_s: list[list[float]], proxy_s: list[list[float]]) -> None:
    axes = figure.add_subplot()
    for name, rounds in (("pool", pool_s), ("proxy", proxy_s)):
        times = sorted(1000 * time for one in rounds for time in one)
        axes.plot(times, [number / len(times) for number in range(len(times))], label=name)
    axes.set(xlabel="milliseconds", ylabel="share of rows that are done", xscale="log")
    axes.legend()
