"""Megabytes a second with rows and outputs from small to large, against libzmq's proxy that moves the same bytes."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import click

from . import noop
from .fleet import running_fleet
from .paired import Paired, paired
from .proxy import running_proxy
from .report import Goal, Report, reporting

_MEGABYTE = 1_000_000
# The goals are for this one.
_LARGE_BYTES = _MEGABYTE

# What a client keeps at its broker, and so the proxy's client, too: rows, and bytes of rows.
_ROWS_UNDER_WAY = 256
_BYTES_UNDER_WAY = 32 * 1024 * 1024

# Calls at once in each of four workers: all that is under way of rows of a megabyte.
_CONCURRENCY = 8


@dataclass(frozen=True)
class _Measured:
    """MB/s of the pool, and of a proxy whose ends pack and open texts, each beside the plain proxy's."""

    pool: Paired
    texts: Paired


def _measure(size: int, workers: int, megabytes: int, repeat: int) -> _Measured:
    rows = max(1, megabytes * _MEGABYTE // size)
    inputs = noop.inputs(rows, size)
    under_way = max(1, min(_ROWS_UNDER_WAY, _BYTES_UNDER_WAY // size))
    megabytes_a_row = 2 * size / _MEGABYTE
    with (
        running_proxy(workers, size, size) as proxy,
        running_proxy(workers, size, size, texts=True) as text_proxy,
        running_fleet(workers, "--concurrency", str(_CONCURRENCY), output_bytes=size) as fleet,
    ):
        llm = fleet.connect()
        try:

            def pool() -> float:
                begun_at = time.perf_counter()
                for _ in llm.stream(inputs):
                    pass
                return megabytes_a_row * rows / (time.perf_counter() - begun_at)

            def plain() -> float:
                return megabytes_a_row * proxy.requests_per_s(rows, under_way)

            def texts() -> float:
                return megabytes_a_row * text_proxy.requests_per_s(rows, under_way)

            pool()
            texts()
            return _Measured(
                paired(f"rows of {_said(size)}", plain, pool, repeat),
                paired(f"texts of {_said(size)} without a pool", plain, texts, repeat),
            )
        finally:
            llm.teardown()


def _said(size: int) -> str:
    """A size in words."""
    return f"{size / _MEGABYTE:g} MB" if size >= _MEGABYTE else f"{size / 1000:g} kB"


def _draw(figure: Any, by_size: dict[int, _Measured]) -> None:
    speeds, shares = figure.subplots(1, 2)
    sizes = list(by_size)
    for name, rounds in (
        ("libzmq's proxy", [one.pool.baseline for one in by_size.values()]),
        ("that with texts", [one.texts.measured for one in by_size.values()]),
        ("pool", [one.pool.measured for one in by_size.values()]),
    ):
        (line,) = speeds.plot(sizes, [statistics.median(one) for one in rounds], marker="o", label=name)
        speeds.fill_between(
            sizes, [min(one) for one in rounds], [max(one) for one in rounds], color=line.get_color(), alpha=0.2
        )
    speeds.set_xscale("log")
    speeds.set_xticks(sizes, [_said(size) for size in sizes])
    speeds.minorticks_off()
    speeds.set(xlabel="a row and its output, each", ylabel="MB/s, in and out", ylim=(0, None))
    speeds.legend()
    shares.boxplot([one.pool.ratios for one in by_size.values()], tick_labels=[_said(size) for size in sizes])
    shares.axhline(1.0, color="grey", linestyle=":")
    shares.set(xlabel="a row and its output, each", ylabel="pool / proxy", ylim=(0, None))


@click.command()
@click.option(
    "--bytes",
    "sizes",
    default=[10_000, 100_000, _LARGE_BYTES, 8 * _MEGABYTE],
    show_default=True,
    multiple=True,
    type=click.IntRange(10),
    help="Length of a row, and of its output; repeat.",
)
@click.option("--megabytes", default=100, show_default=True, type=click.IntRange(1), help="Rows of a round, in all.")
@click.option("--workers", default=4, show_default=True, type=click.IntRange(1), help="Worker processes.")
@click.option("--repeat", default=5, show_default=True, type=click.IntRange(1), help="Rounds of each size.")
@reporting
def payload(sizes: tuple[int, ...], megabytes: int, workers: int, repeat: int) -> Report:
    """Measure megabytes a second with large rows and outputs, against libzmq's proxy without policy."""
    by_size = {size: _measure(size, workers, megabytes, repeat) for size in sorted(sizes)}
    lines = [(_said(size), *one.pool.cells, f"{one.texts.ratio:.2f}") for size, one in by_size.items()]
    return Report(
        title=f"MB/s, in and out, with 1 client and {workers} workers, medians of {repeat} rounds of {megabytes} MB",
        headings=("a row and its output, each", "pool", "proxy", "pool/proxy", "min", "max", "texts/proxy"),
        lines=lines,
        figures={
            "megabytes": megabytes,
            "workers": workers,
            "bytes": {
                str(size): {
                    "pool_mb_per_s": one.pool.measured,
                    "proxy_mb_per_s": one.pool.baseline,
                    "ratios": one.pool.ratios,
                    "texts_mb_per_s": one.texts.measured,
                    "texts_ratios": one.texts.ratios,
                }
                for size, one in by_size.items()
            },
        },
        goals=[
            Goal(f"pool/proxy, {_said(size)}", one.pool.ratio, 0.7, 0.9)
            for size, one in by_size.items()
            if size == _LARGE_BYTES
        ],
        caption=f"up to {_ROWS_UNDER_WAY} rows and {_BYTES_UNDER_WAY // 2**20} MiB under way, loopback TCP; texts: the "
        "proxy again, whose ends pack and open each",
        draw=lambda figure: _draw(figure, by_size),
    )
