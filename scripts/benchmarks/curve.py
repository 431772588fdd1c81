"""Rows a second through a broker with keys, which encrypts, against one without."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

import click

from . import noop
from .fleet import running_fleet
from .paired import Paired, paired
from .report import Goal, Report, reporting

# The goal is for rows of so many bytes, and answers as long.
_KILOBYTE = 1000
_SIZES = (100, _KILOBYTE, 10_000, 100_000)


def _measure(size: int, rows: int, workers: int, repeat: int) -> Paired:
    inputs = noop.inputs(rows, size)
    arguments = ("--batch-size", "64", "--concurrency", "2")
    with ExitStack() as stack:

        def rate(*, keys: bool) -> Any:
            fleet = stack.enter_context(running_fleet(workers, *arguments, output_bytes=size, keys=keys))
            llm = fleet.connect()
            stack.callback(llm.teardown)

            def measure() -> float:
                begun_at = time.perf_counter()
                llm.generate(inputs).result()
                return rows / (time.perf_counter() - begun_at)

            measure()
            return measure

        return paired(f"rows of {size:,} bytes", rate(keys=False), rate(keys=True), repeat)


def _draw(sizes: dict[int, Paired]) -> Any:
    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        labels = [f"{size:,} B" for size in sizes]
        axes.boxplot([one.ratios for one in sizes.values()], tick_labels=labels)
        axes.axhline(1.0, color="grey", linestyle=":")
        axes.set(xlabel="a row, and its answer", ylabel="rows a second, with keys / without", ylim=(0, None))

    return draw


@click.command()
@click.option(
    "--bytes",
    "lengths",
    default=_SIZES,
    show_default=True,
    multiple=True,
    type=click.IntRange(10),
    help="Length of a row, and of its answer; repeat.",
)
@click.option("--megabytes", default=20, show_default=True, type=click.IntRange(1), help="Rows of a round, in all.")
@click.option("--workers", default=4, show_default=True, type=click.IntRange(1), help="Worker processes.")
@click.option("--repeat", default=5, show_default=True, type=click.IntRange(1), help="Rounds of each size.")
@reporting
def curve(lengths: tuple[int, ...], megabytes: int, workers: int, repeat: int) -> Report:
    """Measure rows a second with encryption (a broker with keys), against without."""
    counts = {size: max(1, min(20_000, megabytes * 1_000_000 // size)) for size in lengths}
    sizes = {size: _measure(size, rows, workers, repeat) for size, rows in counts.items()}
    return Report(
        title=f"Rows a second through 1 client and {workers} workers, medians of {repeat} rounds",
        headings=("a row", "with keys", "without", "with/without", "min", "max"),
        lines=[(f"{size:,} bytes", *one.cells) for size, one in sizes.items()],
        figures={
            "workers": workers,
            "sizes": {
                str(size): {"with_keys": one.measured, "without": one.baseline, "ratios": one.ratios}
                for size, one in sizes.items()
            },
        },
        goals=[Goal("with/without keys, 1 kB", sizes[_KILOBYTE].ratio, 0.7, 0.7)] if _KILOBYTE in sizes else [],
        caption="64 rows a call, 2 calls at once, loopback TCP",
        draw=_draw(sizes),
    )
