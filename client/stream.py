"""Rows as they finish: bounded reading ahead, and the input's order where it is asked for."""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Sequence,
)
from dataclasses import dataclass
from typing import Any

from ..protocol.errors import RemoteError
from ..tasks.output import LLMOutput
from .call import Call
from .record import Record

# How often a reader that waits for room looks whether the window has grown.
_WINDOW_LOOK_S = 0.5

# How long a signal may go unnoticed by a thread that waits for rows.
_SIGNAL_LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class Row:
    """One input that is finished on all its LLMs.

    Attributes:
        index: its position in the inputs, from 0.
        input: the input itself.
        outputs: its outputs, in the order of the LLMs; where shares have failed, those that are there.
        error: the first failure, with the others in its ``others``; None when nothing failed.
        llms: for each output, the position of the LLM that made it.
    """

    index: int
    input: Any
    outputs: list[LLMOutput]
    error: RemoteError | None
    llms: Sequence[int] = ()


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
        row = Row(record.index, record.input, record.outputs, record.failure, record.makers)
        if not self._ordered:
            yield row
            return
        self._early[row.index] = row
        while (following := self._early.pop(self._next, None)) is not None:
            self._next += 1
            yield following


@dataclass(frozen=True, slots=True)
class _End:
    """No more inputs: how many there were, and what reading them raised."""

    begun: int
    error: BaseException | None


class _Reader:
    """Reads the inputs of ``stream`` in a thread of its own, and begins each, no further ahead than the window."""

    def __init__(
        self, call: Call, inputs: Iterable[Any], window: Callable[[], int], end: Callable[[_End], None]
    ) -> None:
        self._call, self._inputs, self._window, self._end = call, inputs, window, end
        self._news = threading.Condition()
        self._begun = self._yielded = 0
        self._is_left = False

    def start(self) -> None:
        run = contextvars.copy_context().run
        # A daemon, for a source may block for ever, and nothing can end that from outside.
        threading.Thread(target=run, args=(self._run,), name="genpool-inputs", daemon=True).start()

    def note_yield(self) -> None:
        """Whoever iterates is done with one row more: there is room for another."""
        with self._news:
            self._yielded += 1
            self._news.notify()

    def leave(self) -> None:
        """Nobody wants more rows; the thread ends with the next input at the latest."""
        with self._news:
            self._is_left = True
            self._news.notify()

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            items = iter(self._inputs)
            while self._wait_for_room() and (item := next(items, self)) is not self:
                self._call.begin([(self._begun, item)])
                self._begun += 1
        # A source is user code: what it raises is raised to who iterates, after the rows that were begun.
        except BaseException as raised:
            error = raised
        self._end(_End(self._begun, error))

    def _wait_for_room(self) -> bool:
        """Wait until another input may begin. False when none shall."""
        with self._news:
            while not self._is_left and self._begun - self._yielded >= self._window():
                # The window follows the fleet, which does not tell here when it grows.
                self._news.wait(_WINDOW_LOOK_S)
            return not self._is_left


def stream(
    make_call: Callable[[Callable[[Record], None]], Call],
    inputs: Iterable[Any],
    window: Callable[[], int],
    *,
    ordered: bool,
) -> Rows:
    """Yield each of ``inputs`` when it is finished; at most ``window()`` of them are begun and not yielded.

    Inputs are read in a thread of their own: neither a slow source nor one that waits for an earlier row's outputs
    holds up what is finished, and a slow consumer does not leave the LLMs idle. What the source raises is raised here,
    after the rows that were begun. Leaving the iteration withdraws what is under way.
    """
    finished: queue.SimpleQueue[Record | _End] = queue.SimpleQueue()
    call = make_call(finished.put)
    order = _Order(ordered=ordered)
    reader = _Reader(call, inputs, window, finished.put)
    end: _End | None = None
    yielded = 0
    reader.start()
    try:
        while end is None or yielded < end.begun:
            got = _next_of(finished)
            if isinstance(got, _End):
                end = got
                continue
            for row in order.arrived(got):
                yielded += 1
                yield row
                reader.note_yield()
        if end.error is not None:
            raise end.error
    finally:
        reader.leave()
        call.cancel()


def _next_of(finished: queue.SimpleQueue[Record | _End]) -> Record | _End:
    while True:
        try:
            # In slices: Python may miss a signal that comes just before a wait, until the wait ends.
            return finished.get(timeout=_SIGNAL_LOOK_S)
        except queue.Empty:
            continue


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
    """``stream`` for asyncio: inputs may be an async iterable, and are read in the event loop's thread.

    What the source raises is raised here after the rows that were begun, as there.
    """
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
    error: BaseException | None = None
    try:
        while not exhausted or pump.yielded < pump.begun:
            one = await arrived.get()
            if not isinstance(one, Record):
                exhausted, error = True, one
                continue
            for row in order.arrived(one):
                pump.note_yield()
                yield row
        if error is not None:
            raise error
    finally:
        reading.cancel()
        call.cancel()


async def _as_async(inputs: Iterable[Any]) -> AsyncIterator[Any]:
    for one in inputs:
        yield one
