"""Rows as they finish: bounded reading ahead, and the input's order where it is asked for."""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ..protocol.errors import RemoteError
from ..tasks.output import LLMOutput
from .call import Call, Record

# A source whose last input took longer is slow: what has finished is yielded before it is read again.
_SLOW_S = 0.005


@dataclass(frozen=True, slots=True)
class Row:
    """One input that is finished on all its LLMs.

    Attributes:
        index: its position in the inputs, from 0.
        input: the input itself.
        outputs: its outputs, in the order of the LLMs; where shares have failed, those that are there.
        error: the first failure, with the others in its ``others``; None when nothing failed.
    """

    index: int
    input: Any
    outputs: list[LLMOutput]
    error: RemoteError | None


# What a stream is: leaving it early is ``close()`` or ``aclose()``.
Rows = Generator[Row]
AsyncRows = AsyncGenerator[Row]


class _Order:
    """Which rows may be yielded now: all that have arrived, or only those whose predecessors were yielded."""

    def __init__(self, *, ordered: bool) -> None:
        self._ordered = ordered
        self._next = 0
        self._early: dict[int, Row] = {}

    def arrived(self, record: Record) -> Iterator[Row]:
        row = Row(record.index, record.input, record.outputs, record.failure)
        if not self._ordered:
            yield row
            return
        self._early[row.index] = row
        while (following := self._early.pop(self._next, None)) is not None:
            self._next += 1
            yield following


class _Source:
    """The inputs, numbered, how many were read, and whether reading the last one took long."""

    def __init__(self, inputs: Iterable[Any]) -> None:
        self._items = enumerate(inputs)
        self.count = 0
        self.is_exhausted = False
        self.is_slow = False

    def read(self) -> list[tuple[int, Any]]:
        """The next input, or none."""
        since = time.monotonic()
        item = next(self._items, None)
        self.is_slow = time.monotonic() - since > _SLOW_S
        self.is_exhausted = item is None
        self.count += item is not None
        return [] if item is None else [item]


def stream(
    make_call: Callable[[Callable[[Record], None]], Call],
    inputs: Iterable[Any],
    window: Callable[[], int],
    *,
    ordered: bool,
) -> Rows:
    """Yield each of ``inputs`` when it is finished; at most ``window()`` of them are begun and not yielded.

    Inputs are read in the thread that iterates, and each begins before the next is read, which may take for ever.
    Leaving the iteration withdraws what is under way.
    """
    finished: queue.SimpleQueue[Record] = queue.SimpleQueue()
    call = make_call(finished.put)
    order = _Order(ordered=ordered)
    source = _Source(inputs)
    yielded = 0
    try:
        while not source.is_exhausted or yielded < source.count:
            has_room = not source.is_exhausted and source.count - yielded < window()
            # A quick source is read on before a row is yielded, for a slow consumer must not leave the LLMs idle.
            if has_room and (finished.empty() or not source.is_slow):
                call.begin(source.read())
                if finished.empty():
                    continue
            for row in order.arrived(finished.get()):
                yielded += 1
                yield row
    finally:
        call.cancel()


class _Pump:
    """Reads the inputs of ``astream`` in a task of its own, and begins them, no further ahead than the window."""

    def __init__(self, call: Call, inputs: Iterable[Any] | AsyncIterable[Any], window: Callable[[], int]) -> None:
        self._call = call
        self._source = inputs if isinstance(inputs, AsyncIterable) else _as_async(inputs)
        self._window = window
        self._room = asyncio.Event()
        self.begun = self.yielded = 0

    async def run(self) -> None:
        async for given in self._source:
            self._call.begin([(self.begun, given)])
            self.begun += 1
            # What has finished gets its turn: a plain iterable never waits, and each of its items may take long.
            await asyncio.sleep(0)
            while self.begun - self.yielded >= self._window():
                self._room.clear()
                await self._room.wait()

    def note_yield(self) -> None:
        self.yielded += 1
        self._room.set()


async def astream(
    make_call: Callable[[Callable[[Record], None]], Call],
    inputs: Iterable[Any] | AsyncIterable[Any],
    window: Callable[[], int],
    *,
    ordered: bool,
) -> AsyncRows:
    """``stream`` for asyncio: inputs may be an async iterable, and are read in the event loop's thread."""
    loop = asyncio.get_running_loop()
    # Records, and at the end of the inputs None or what reading them raised.
    arrived: asyncio.Queue[Record | BaseException | None] = asyncio.Queue()

    def hand_over(record: Record) -> None:
        try:
            loop.call_soon_threadsafe(arrived.put_nowait, record)
        except RuntimeError:
            pass  # the loop has ended, and nobody waits for the row

    call = make_call(hand_over)
    order = _Order(ordered=ordered)
    pump = _Pump(call, inputs, window)
    reading = asyncio.ensure_future(pump.run())
    reading.add_done_callback(lambda task: arrived.put_nowait(None if task.cancelled() else task.exception()))
    exhausted = False
    try:
        while not exhausted or pump.yielded < pump.begun:
            one = await arrived.get()
            if isinstance(one, BaseException):
                raise one
            exhausted |= one is None
            for row in order.arrived(one) if one is not None else ():
                pump.note_yield()
                yield row
    finally:
        reading.cancel()
        call.cancel()


async def _as_async(inputs: Iterable[Any]) -> AsyncIterator[Any]:
    for one in inputs:
        yield one
