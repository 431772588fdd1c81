"""How long a client's few rows take beside clients that have very many, against the same rows on an idle fleet.

The clients with many rows are processes of their own, and so is the crowd of workers. A row takes some milliseconds
and no processor, so that the workers are what is shared, and not this machine. With n clients that share the workers
evenly, one takes n times as long; on top come the rows that run when it begins, one for each worker.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from typing import Any

import click
from commands import START_LIMIT_S, until

from genpool import ProcessLLM
from genpool.protocol.number import FiniteRange

from . import noop
from .child import Child, running_child
from .crowd import CrowdSettings, running_crowd
from .fleet import NAME, running_fleet
from .paired import Paired, paired
from .report import Goal, Report, reporting

# A client with many rows is at work when so many of them are answered.
_WARM_ROWS = 50

# How many clients with many rows there are, in turn. The goals are for one.
_CROWDS = (1, 3)

# When each of the few rows was answered, in seconds since they were asked for.
Times = list[float]


class _Many:
    """A client with many rows, in a process of its own."""

    def __init__(self, child: Child) -> None:
        self._child = child

    def begin(self) -> None:
        """Submit the rows."""
        self._child.pipe.send(True)

    def wait_until_at_work(self) -> None:
        self._child.answer("answers to a client with many rows")

    def stop(self) -> None:
        """Take back those that are left."""
        self._child.pipe.send(True)
        self._child.answer("the end of a client's rows")


@contextmanager
def _running_many(count: int, address: str, rows: int) -> Generator[list[_Many]]:
    """So many clients with so many rows each; they end with the block."""
    with ExitStack() as stack:
        yield [_Many(stack.enter_context(running_child(_serve_many, address, rows))) for _ in range(count)]


def _serve_many(parent: Connection, address: str, rows: int) -> None:
    """The process: at each word of the parent it submits all rows, and takes them back at the next."""
    inputs = noop.inputs(rows)
    llm = ProcessLLM.connect(NAME, broker=address)
    try:
        while True:
            parent.recv()
            _submit_many(parent, llm, inputs)
    except EOFError:
        pass  # the parent is gone


def _submit_many(parent: Connection, llm: ProcessLLM, inputs: list[dict[str, str]]) -> None:
    answered = 0

    def count(advance: int) -> None:
        nonlocal answered
        answered += advance

    future = llm.submit(inputs, 1, count)
    until(lambda: answered >= min(_WARM_ROWS, len(inputs)), "the first answers")
    parent.send(True)
    parent.recv()
    future.cancel()
    parent.send(True)


def _seconds(row_s: float, _worker: int, _payload: bytes) -> float:
    return row_s


@contextmanager
def _at_work(llm: ProcessLLM, clients: Sequence[_Many]) -> Generator[None]:
    """The clients' rows are under way; at the end of the block the fleet is idle again."""
    for client in clients:
        client.begin()
    for client in clients:
        client.wait_until_at_work()
    try:
        yield
    finally:
        for client in clients:
            client.stop()
        until(lambda: not llm.link().status(START_LIMIT_S)["rows"], "an idle fleet")


def _answer_times(llm: ProcessLLM, inputs: list[dict[str, str]]) -> Times:
    times: Times = []

    def note(advance: int) -> None:
        times.extend([time.perf_counter() - begun_at] * advance)

    begun_at = time.perf_counter()
    llm.submit(inputs, 1, note).result()
    return times


@click.command()
@click.option("--rows", default=100, show_default=True, type=click.IntRange(2), help="Rows of the client with few.")
@click.option("--many", default=100_000, show_default=True, type=click.IntRange(1), help="Rows of each other client.")
@click.option("--workers", default=4, show_default=True, type=click.IntRange(1), help="Simulated workers.")
@click.option(
    "--milliseconds", default=10.0, show_default=True, type=FiniteRange(0, min_open=True), help="Time of a row."
)
@click.option("--repeat", default=7, show_default=True, type=click.IntRange(1), help="Rounds.")
@reporting
def fairness(rows: int, many: int, workers: int, milliseconds: float, repeat: int) -> Report:
    """Measure how long a few rows take beside clients with very many, against the same rows on an idle fleet."""
    seconds = functools.partial(_seconds, milliseconds / 1000)
    inputs = noop.inputs(rows)
    curves: dict[int, list[Times]] = {count: [] for count in (0, *_CROWDS)}
    ratios: dict[int, Paired] = {}
    with (
        running_fleet(0) as fleet,
        running_crowd(CrowdSettings(fleet.address, NAME, workers, seconds=seconds)),
        _running_many(max(_CROWDS), fleet.address, many) as clients,
    ):
        llm = fleet.connect()
        try:

            def took_s(count: int) -> float:
                with _at_work(llm, clients[:count]):
                    curves[count].append(_answer_times(llm, inputs))
                return curves[count][-1][-1]

            _answer_times(llm, inputs)
            for count in _CROWDS:
                what = f"beside {_others(count)}"
                ratios[count] = paired(what, functools.partial(took_s, 0), functools.partial(took_s, count), repeat)
        finally:
            llm.teardown()
    return Report(
        title=f"Milliseconds of {rows} rows beside clients with {many:,}, medians of {repeat} rounds",
        headings=("beside", "busy", "idle", "busy/idle", "min", "max", "even share"),
        lines=[_line(count, one) for count, one in ratios.items()],
        figures={
            "rows": rows,
            "many": many,
            "workers": workers,
            "row_s": milliseconds / 1000,
            "clients": {
                str(count + 1): {"busy_s": one.measured, "idle_s": one.baseline, "ratios": one.ratios}
                for count, one in ratios.items()
            },
        },
        goals=[Goal("busy/idle, 2 active clients", ratios[_CROWDS[0]].ratio, 2.5, 2.1, at_most=True)],
        caption=f"{workers} workers, one row of {milliseconds:g} ms at a time each",
        draw=lambda figure: _draw(figure, curves),
    )


def _others(count: int) -> str:
    return f"{count} other client{'s' if count > 1 else ''}" if count else "an idle fleet"


def _line(count: int, one: Paired) -> tuple[str, ...]:
    times = [f"{1000 * statistics.median(side):.0f}" for side in (one.measured, one.baseline)]
    return (
        _others(count),
        *times,
        *(f"{ratio:.2f}" for ratio in (one.ratio, min(one.ratios), max(one.ratios))),
        f"{count + 1}",
    )


def _draw(figure: Any, curves: dict[int, list[Times]]) -> None:
    axes = figure.add_subplot()
    for number, (count, rounds) in enumerate(curves.items()):
        for one in rounds:
            axes.step([0, *one], range(len(one) + 1), where="post", color=f"C{number}", alpha=0.25, linewidth=0.8)
        medians = [statistics.median(times) for times in zip(*rounds, strict=True)]
        label = _others(count) if not count else f"beside {_others(count)}"
        axes.step([0, *medians], range(len(medians) + 1), where="post", color=f"C{number}", linewidth=2, label=label)
    axes.set(xlabel="seconds since they were asked for", ylabel="rows answered", xlim=(0, None), ylim=(0, None))
    axes.legend(loc="lower right")
