"""What the client itself costs: processor time a row, and its memory over a stream of a million rows.

The client is a process of its own, so that nothing else is counted. It streams from a generator, which it must not
hold, and then generates from a list, which it must. In the other order what the list has left free would hide growth.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click
from rich.progress import Progress

from genpool import ProcessLLM

from . import noop
from .child import running_child
from .fleet import NAME, running_fleet
from .report import Goal, Report, err, rate, reporting
from .usage import rss_bytes

# How often memory is looked at over a stream.
_LOOKS = 50

# By then all that is made once is made: later memory is the stream's own.
_SETTLED_AT = 0.1

_MIB = 1024 * 1024


@dataclass(frozen=True)
class _Look:
    """So many rows are answered: seconds and processor seconds from the beginning, and memory now."""

    rows: int
    taken_s: float
    cpu_s: float
    rss_bytes: int


def _inputs(count: int) -> Iterator[dict[str, str]]:
    text = "i" * (noop.INPUT_CHARACTERS - 10)
    return ({"input": f"{number:09d} {text}"} for number in range(count))


def _run(parent: Any, address: str, listed: int, streamed: int) -> None:
    """The client's process: says a _Look now and then over the stream, and then one for the list."""
    llm = ProcessLLM.connect(NAME, broker=address)
    llm.generate(list(_inputs(1000))).result()
    clock = _Clock()
    every = streamed // _LOOKS
    for number, _ in enumerate(llm.stream(_inputs(streamed)), 1):
        if number % every == 0:
            parent.send(clock.look(number))
    inputs = list(_inputs(listed))
    clock = _Clock()
    llm.generate(inputs).result()
    parent.send(clock.look(listed))
    llm.teardown()


class _Clock:
    def __init__(self) -> None:
        self._began_at, self._cpu_s = time.perf_counter(), time.process_time()

    def look(self, rows: int) -> _Look:
        taken_s, cpu_s = time.perf_counter() - self._began_at, time.process_time() - self._cpu_s
        return _Look(rows, taken_s, cpu_s, rss_bytes(os.getpid()))


def _measure(listed: int, streamed: int) -> tuple[_Look, list[_Look]]:
    with running_fleet(4, "--batch-size", "64", "--concurrency", "2") as fleet:
        looks: list[_Look] = []
        with (
            running_child(_run, fleet.address, listed, streamed) as child,
            Progress(console=err, transient=True) as bar,
        ):
            task = bar.add_task("Streaming and generating", total=streamed + listed)
            for _ in range(streamed // (streamed // _LOOKS)):
                looks.append(child.pipe.recv())
                bar.update(task, completed=looks[-1].rows)
            of_list = child.pipe.recv()
        return of_list, looks


def _draw(figure: Any, looks: list[_Look]) -> None:
    axes = figure.add_subplot()
    axes.plot([look.rows / 1000 for look in looks], [look.rss_bytes / _MIB for look in looks])
    highest = max(look.rss_bytes / _MIB for look in looks)
    axes.set(xlabel="thousand rows streamed", ylabel="the client's memory in MiB", ylim=(0, 1.3 * highest))


@click.command()
@click.option("--list", "listed", default=100_000, show_default=True, type=click.IntRange(1), help="Rows in a list.")
@click.option("--rows", default=1_000_000, show_default=True, type=click.IntRange(_LOOKS), help="Rows streamed.")
@reporting
def client(listed: int, rows: int) -> Report:
    """Measure the client's processor time, and its memory while it streams rows from a generator."""
    of_list, looks = _measure(listed, rows)
    settled = looks[int(len(looks) * _SETTLED_AT)]
    last = looks[-1]
    growth = last.rss_bytes / settled.rss_bytes
    ways = {f"stream {last.rows:,} from a generator": last, f"generate a list of {listed:,}": of_list}
    lines = [
        (
            name,
            rate(look.rows / look.taken_s),
            f"{look.cpu_s / look.rows * 100_000:.2f}",
            f"{look.rss_bytes / _MIB:.0f}",
        )
        for name, look in ways.items()
    ]
    return Report(
        title="What the client costs",
        headings=("", "rows/s", "CPU s/100,000", "MiB at the end"),
        lines=lines,
        figures={"list": of_list.__dict__, "stream": [look.__dict__ for look in looks]},
        goals=[Goal(f"memory at {last.rows:,} / at {settled.rows:,} rows", growth, 1.1, 1.02, at_most=True)],
        caption=f"{noop.INPUT_CHARACTERS} characters in, {noop.OUTPUT_BYTES} bytes out, 4 workers with 64 rows a call",
        draw=lambda figure: _draw(figure, looks),
    )
