"""Rows a second, and what the broker needs for a row that waits, with a few and with very many rows waiting there.

An ordinary client keeps only a window of rows at the broker. Here a few simulated clients have no window: each submits
its share of the rows that are to wait, and another one for each that is answered, so that the backlog stands.
"""

from __future__ import annotations

import os
import random
import socket
import statistics
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import click
from commands import START_LIMIT_S, ScriptError
from rich.progress import track

from genpool.protocol.content import pack_row
from genpool.protocol.messages import (
    Answer,
    Ask,
    Await,
    Fleet,
    Hello,
    Message,
    Ping,
    Release,
    RowKind,
    Status,
    Submit,
    SubmitRun,
)
from genpool.protocol.session import Send, Session, SessionSettings

from . import noop
from .crowd import CrowdSettings, running_crowd
from .fleet import NAME, running_fleet
from .loop import Loop, Peer
from .paired import Paired
from .report import Goal, Report, err, rate, reporting
from .usage import cpu_s, rss_bytes

_CLIENTS = 10
_WORKERS = 4
_BATCH_SIZE = 64
_CONCURRENCY = 2
_PLACES = _WORKERS * _BATCH_SIZE * _CONCURRENCY

# Answers before a measurement begins.
_WARM_UP = 2000

# With fewer rows, what the process needs for everything else drowns what they need.
_LEAST_ROWS_TO_WEIGH = 50_000


class _Flood(Session):
    """A client that keeps ``level`` rows at the broker. It trusts the broker: of its rows it knows only how many."""

    def __init__(self, address: str, level: int, payload: bytes, now: float) -> None:
        super().__init__(address, SessionSettings(), random.random, now)
        self._level = level
        self._payload = payload
        self._prefix = os.urandom(8)
        self._submitted = 0
        self.answered = 0
        self.is_filled = False

    def _hello(self) -> Hello:
        return Hello(role="client", instance=self._prefix * 2, host=socket.gethostname(), pid=os.getpid())

    def _held(self) -> int:
        return self._submitted - self.answered

    def _opened(self, now: float) -> None:
        self._effect(Send(Await([], more=False)))
        self._fill()

    def _broken(self, now: float) -> None:
        raise ScriptError(f"a simulated client lost the broker: {self.trouble}")

    def _on_message(self, message: Message, now: float) -> None:
        match message:
            case Answer():
                self.answered += len(message.ids)
                self._effect(Send(Release(message.ids)))
                self._submit(len(message.ids))
            case Status():
                self._fill()
            case Ping() | Fleet():
                pass
            case _:
                raise ScriptError(f"the broker sent a simulated client a {type(message).__name__}")

    def _fill(self) -> None:
        """Submit one message after the other, each when the broker has read the last: its memory is measured."""
        missing = self._level - self._held()
        self._submit(min(missing, self.limits.max_rows))
        self.is_filled = not missing
        if missing:
            self._effect(Send(Ask()))

    def _submit(self, count: int) -> None:
        ids = [self._prefix + number.to_bytes(8, "big") for number in range(self._submitted, self._submitted + count)]
        self._submitted += count
        if count:
            run = SubmitRun(NAME, RowKind.INPUT, 1, b"", None, again=False, ids=ids, payloads=[self._payload] * count)
            self._effect(Send(Submit([run])))


@dataclass(frozen=True)
class _Measured:
    """``broker_s`` is the broker's processor time a row, ``row_bytes`` its memory for one that waits, all included."""

    rows_per_s: float
    broker_s: float
    row_bytes: float


def _measure(backlog: int, rows: int, payload: bytes) -> _Measured:
    with running_fleet(0, broker_arguments=("--max-client-rows", str(backlog + _PLACES))) as fleet:
        loop = Loop(fleet.address)
        now = time.monotonic()
        # On top of the rows that wait there are those that the workers hold.
        shares = _split(backlog + _PLACES, _CLIENTS)
        clients = [_Flood(fleet.address, share, payload, now) for share in shares]
        loop.add([Peer(client) for client in clients])
        try:
            before = rss_bytes(fleet.broker.pid)
            _run(loop, lambda: all(client.is_filled for client in clients))
            needed = rss_bytes(fleet.broker.pid) - before
            with running_crowd(CrowdSettings(fleet.address, NAME, _WORKERS, _BATCH_SIZE, _CONCURRENCY)):
                _run(loop, lambda: _answered(clients) >= _WARM_UP)
                begun, begun_at, used_s = _answered(clients), time.perf_counter(), cpu_s(fleet.broker.pid)
                _run(loop, lambda: _answered(clients) >= begun + rows)
                took_s, used_s = time.perf_counter() - begun_at, cpu_s(fleet.broker.pid) - used_s
            answered = _answered(clients) - begun
            return _Measured(answered / took_s, used_s / answered, needed / (backlog + _PLACES))
        finally:
            loop.close()


def _split(total: int, parts: int) -> list[int]:
    return [total // parts + (part < total % parts) for part in range(parts)]


def _run(loop: Loop, is_over: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    loop.run(lambda: is_over() or time.monotonic() > deadline)
    if not is_over():
        raise ScriptError(f"the broker did not get on with its rows within {START_LIMIT_S:g} s")


def _answered(clients: list[_Flood]) -> int:
    return sum(client.answered for client in clients)


def _deque_bytes(rows: int, payload: bytes) -> float:
    """What a row needs in a deque alone, its payload included, in a process that does nothing else."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_fill_deque, rows, payload).result() / rows


def _fill_deque(rows: int, payload: bytes) -> int:
    before = rss_bytes(os.getpid())
    waiting = deque(bytes(bytearray(payload)) for _ in range(rows))
    return (rss_bytes(os.getpid()) - before) * bool(waiting)


@dataclass(frozen=True)
class _Found:
    """All measurements of one backlog; the bytes are beyond the payload, and None where they cannot be told."""

    backlog: int
    rates: list[float]
    broker_s: list[float]
    ratios: Paired | None
    broker_bytes: list[float] | None
    deque_bytes: float | None

    @property
    def needed(self) -> float:
        return statistics.median(self.broker_bytes or ())


def _line(found: _Found) -> tuple[str, ...]:
    ratios = ["1", "", ""]
    if found.ratios is not None:
        ratios = [f"{x:.2f}" for x in (found.ratios.ratio, min(found.ratios.ratios), max(found.ratios.ratios))]
    memory = ["", ""]
    if found.broker_bytes is not None:
        memory = [f"{found.needed:.0f}", f"{found.deque_bytes:.0f}"]
    cost = f"{1e6 * statistics.median(found.broker_s):.1f}"
    return (f"{found.backlog:,}", rate(statistics.median(found.rates)), *ratios, cost, *memory)


def _figures(found: _Found) -> dict[str, Any]:
    return {
        "rows_per_s": found.rates,
        "ratios": found.ratios and found.ratios.ratios,
        "broker_us_per_row": [1e6 * one for one in found.broker_s],
        "broker_bytes_beyond_payload": found.broker_bytes,
        "deque_bytes_beyond_payload": found.deque_bytes,
    }


def _goals(found: list[_Found]) -> list[Goal]:
    rates = [
        Goal(f"rows/s, {one.backlog:,} / {found[0].backlog:,} waiting", one.ratios.ratio, 0.8, 0.95)
        for one in found
        if one.ratios is not None
    ]
    memory = [
        Goal(f"bytes a row beyond its payload, {one.backlog:,} waiting", one.needed, 400, 200, at_most=True)
        for one in found
        if one.broker_bytes is not None
    ]
    return rates + memory


def _draw(figure: Any, found: list[_Found], payload_bytes: int) -> None:
    rates, memory = figure.subplots(1, 2)
    sizes = [one.backlog for one in found]
    rates.plot(sizes, [statistics.median(one.rates) for one in found], marker="o")
    rates.fill_between(sizes, [min(one.rates) for one in found], [max(one.rates) for one in found], alpha=0.2)
    rates.set(xscale="log", xlabel="rows that wait", ylabel="rows a second", ylim=(0, None))
    rates.set_xticks(sizes, [f"{size:,}" for size in sizes])
    rates.minorticks_off()
    weighed = [one for one in found if one.broker_bytes is not None]
    if not weighed:
        return
    names = ["a deque\nalone", *(f"{one.backlog:,}\nrows" for one in weighed)]
    needed = [weighed[-1].deque_bytes or 0.0, *(one.needed for one in weighed)]
    memory.bar(names, [payload_bytes] * len(names), label="the payload", color="lightgrey")
    bars = memory.bar(names, needed, bottom=payload_bytes, label="what is needed beyond it")
    memory.bar_label(bars, [f"+ {one:.0f}" for one in needed])
    memory.axhline(payload_bytes + 400, color="grey", linestyle=":", label="must: payload + 400")
    memory.axhline(payload_bytes + 200, color="grey", linestyle="--", label="aim: payload + 200")
    memory.set(ylabel="bytes a row", ylim=(0, 1.5 * (payload_bytes + max(needed))))
    memory.legend(loc="upper left", fontsize="small")


@click.command()
@click.option("--size", "sizes", default=[1000, 100_000, 1_000_000], multiple=True, type=click.IntRange(1))
@click.option("--rows", default=50_000, show_default=True, type=click.IntRange(1), help="Rows of a measurement.")
@click.option("--repeat", default=5, show_default=True, type=click.IntRange(1), help="Measurements of each backlog.")
@reporting
def backlog(sizes: tuple[int, ...], rows: int, repeat: int) -> Report:
    """Measure rows a second and the broker's memory with more and more rows waiting there."""
    first = sizes[0]
    payload = pack_row(noop.inputs(1)[0], None)
    measured: dict[int, list[_Measured]] = {size: [] for size in sizes}
    for size in track([*sizes * repeat, first], "Measuring", console=err, transient=True):
        measured[size].append(_measure(size, rows, payload))
    found = [_find(size, first, measured, payload) for size in sizes]
    return Report(
        title="Rows a second, and the broker's memory a row, with more and more rows waiting",
        headings=("waiting", "rows/s", f"/ {first:,}", "min", "max", "µs/row", "bytes/row", "in a deque"),
        lines=[_line(one) for one in found],
        figures={
            "rows": rows,
            "payload_bytes": len(payload),
            "backlogs": {one.backlog: _figures(one) for one in found},
        },
        goals=_goals(found),
        caption=f"medians of {repeat} fleets of each size; the broker's µs, its bytes beyond the payload's\n"
        f"{_CLIENTS} simulated clients, {_WORKERS} simulated workers"
        f" with {_BATCH_SIZE} rows a call, {len(payload)} bytes in, {noop.OUTPUT_BYTES} bytes out, loopback TCP",
        draw=lambda figure: _draw(figure, found, len(payload)),
    )


def _find(size: int, first: int, measured: dict[int, list[_Measured]], payload: bytes) -> _Found:
    rates = [one.rows_per_s for one in measured[size]]
    costs = [one.broker_s for one in measured[size]]
    ratios = None if size == first else Paired([one.rows_per_s for one in measured[first]], rates)
    if size < _LEAST_ROWS_TO_WEIGH:
        return _Found(size, rates, costs, ratios, None, None)
    needed = [one.row_bytes - len(payload) for one in measured[size]]
    return _Found(size, rates, costs, ratios, needed, _deque_bytes(size, payload) - len(payload))
