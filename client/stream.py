"""Rows as they finish: bounded reading ahead, and the input's order where it is asked for."""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
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
) -> Iterator[Row]:
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


async def astream(
    make_call: Callable[[Callable[[Record], None]], Call],
    inputs: Iterable[Any] | AsyncIterable[Any],
    window: Callable[[], int],
    *,
    ordered: bool,
) -> AsyncIterator[Row]:
    """``stream`` for asyncio: inputs may be an async iterable, and are read in the event loop's thread."""
    loop = asyncio.get_running_loop()
    finished: asyncio.Queue[Record] = asyncio.Queue()

    def hand_over(record: Record) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(finished.put_nowait, record)

    call = make_call(hand_over)
    order = _Order(ordered=ordered)
    source = aiter(inputs) if isinstance(inputs, AsyncIterable) else _as_async(inputs)
    begun = yielded = 0
    reading: asyncio.Task[Any] | None = None
    waiting: asyncio.Task[Record] | None = None
    exhausted = False
    try:
        while not exhausted or yielded < begun:
            if reading is None and not exhausted and begun - yielded < window():
                reading = asyncio.ensure_future(_next(source))
            if waiting is None and yielded < begun:
                waiting = asyncio.ensure_future(finished.get())
            await asyncio.wait([task for task in (reading, waiting) if task], return_when=asyncio.FIRST_COMPLETED)
            if reading is not None and reading.done():
                (exhausted, given), reading = reading.result(), None
                if not exhausted:
                    call.begin([(begun, given)])
                    begun += 1
            if waiting is not None and waiting.done():
                record, waiting = waiting.result(), None
                for row in order.arrived(record):
                    yielded += 1
                    yield row
    finally:
        for task in (reading, waiting):
            if task is not None:
                task.cancel()
        call.cancel()


async def _next(source: AsyncIterator[Any]) -> tuple[bool, Any]:
    """Whether ``source`` is exhausted, and its next item."""
    try:
        return False, await anext(source)
    except StopAsyncIteration:
        return True, None


async def _as_async(inputs: Iterable[Any]) -> AsyncIterator[Any]:
    for one in inputs:
        yield one
