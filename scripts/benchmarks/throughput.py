"""Rows a second through the pool with an LLM that does nothing, against libzmq's proxy."""

from __future__ import annotations

import time
from typing import Any

import click

from . import noop
from .fleet import running_fleet
from .paired import Paired, paired
from .proxy import running_proxy
from .report import Goal, Report, reporting

# How a worker takes its rows: (--batch-size, --concurrency). The first decides; the others show what batching gives.
_WAYS = ((256, 2), (64, 2), (16, 2), (1, 64), (1, 1))


def _measure(batch_size: int, concurrency: int, workers: int, rows: int, repeat: int) -> Paired:
    arguments = ("--batch-size", str(batch_size), "--concurrency", str(concurrency))
    inputs = noop.inputs(rows)
    with (
        running_proxy(workers, noop.INPUT_CHARACTERS, noop.OUTPUT_BYTES) as proxy,
        running_fleet(workers, *arguments) as fleet,
    ):
        llm = fleet.connect()
        try:
            llm.generate(inputs[: rows // 10 + 1]).result()

            def pool() -> float:
                begun_at = time.perf_counter()
                llm.generate(inputs).result()
                return rows / (time.perf_counter() - begun_at)

            what = f"{batch_size} rows a call, {concurrency} calls"
            return paired(what, lambda: proxy.requests_per_s(rows), pool, repeat)
        finally:
            llm.teardown()


def _draw(ways: dict[str, Paired]) -> Any:
    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        axes.boxplot([way.ratios for way in ways.values()], orientation="horizontal", tick_labels=list(ways))
        axes.axvline(1.0, color="grey", linestyle=":")
        axes.set(xlabel="rows a second / the proxy's requests a second", xlim=(0, None))

    return draw


@click.command()
@click.option("--rows", default=20_000, show_default=True, type=click.IntRange(1), help="Rows of a round.")
@click.option("--workers", default=4, show_default=True, type=click.IntRange(1), help="Worker processes.")
@click.option("--repeat", default=5, show_default=True, type=click.IntRange(1), help="Rounds of each way.")
@reporting
def throughput(rows: int, workers: int, repeat: int) -> Report:
    """Measure rows a second with an LLM that does nothing, against libzmq's proxy without policy."""
    ways = {f"{batch} a call, {calls} at once": _measure(batch, calls, workers, rows, repeat) for batch, calls in _WAYS}
    lines = [(name, *way.cells) for name, way in ways.items()]
    first = next(iter(ways))
    return Report(
        title=f"Rows a second through 1 client and {workers} workers, medians of {repeat} rounds of {rows:,} rows",
        headings=("how a worker takes rows", "pool", "proxy", "pool/proxy", "min", "max"),
        lines=lines,
        figures={
            "rows": rows,
            "workers": workers,
            "ways": {
                name: {"pool_rows_per_s": way.measured, "proxy_requests_per_s": way.baseline, "ratios": way.ratios}
                for name, way in ways.items()
            },
        },
        goals=[Goal(f"pool/proxy, {first}", ways[first].ratio, 1.0, 1.5)],
        caption=f"{noop.INPUT_CHARACTERS} characters in, {noop.OUTPUT_BYTES} bytes out, loopback TCP",
        draw=_draw(ways),
    )
