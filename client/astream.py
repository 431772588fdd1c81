"""Rows as they finish, for asyncio: see stream.py.

Imported when it is used: asyncio would take a quarter of the time that ``from genpool import LLMPool`` does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from typing import Any

from .call import Call
from .record import Record
from .stream import AsyncRows, Order, Window


class _Pump:
    """Reads the inputs of ``astream`` in a task of its own, and begins them, no further ahead than the window."""

    def __init__(self, call: Call, inputs: Iterable[Any] | AsyncIterable[Any], window: Window) -> None:
        self._call = call
        self._source = inputs if isinstance(inputs, AsyncIterable) else _as_async(inputs)
        self._window = window
        self._room = asyncio.Event()

    async def run(self) -> None:
        async for given in self._source:
            self._call.begin(self._window.begun, [given])
            self._window.begun += 1
            # What has finished gets its turn: a plain iterable never waits, and each of its items may take long.
            await asyncio.sleep(0)
            while self._window.room <= 0:
                self._room.clear()
                await self._room.wait()

    def note_arrival(self, records: list[Record]) -> None:
        self._window.note_arrival(records)
        self._room.set()

    def note_yield(self) -> None:
        self._window.yielded += 1
        self._room.set()


async def astream(
    make_call: Callable[[Callable[[list[Record]], None]], Call],
    inputs: Iterable[Any] | AsyncIterable[Any],
    most: Callable[[], int],
    *,
    ordered: bool,
    waits: bool = False,
) -> AsyncRows:
    """``stream`` for asyncio: inputs may be an async iterable, and are read in the event loop's thread.

    ``waits`` says whether ``make_call`` may take long. What the source raises is raised here after the rows that were
    begun, as there.
    """
    loop = asyncio.get_running_loop()
    # Records that have finished, and at the end of the inputs None or what reading them raised.
    arrived: asyncio.Queue[list[Record] | BaseException | None] = asyncio.Queue()

    def hand_over(records: list[Record]) -> None:
        try:
            loop.call_soon_threadsafe(arrived.put_nowait, records)
        except RuntimeError:
            pass  # the loop has ended, and nobody waits for the rows

    call = await asyncio.to_thread(make_call, hand_over) if waits else make_call(hand_over)
    order = Order(ordered=ordered)
    window = Window(call, most)
    pump = _Pump(call, inputs, window)
    reading = asyncio.ensure_future(pump.run())
    reading.add_done_callback(lambda task: arrived.put_nowait(_raised_by(task)))
    exhausted = False
    error: BaseException | None = None
    try:
        while not exhausted or window.yielded < window.begun:
            one = await arrived.get()
            if not isinstance(one, list):
                exhausted, error = True, one
                continue
            pump.note_arrival(one)
            for row in order.arrived(one):
                pump.note_yield()
                yield row
        if error is not None:
            raise error
    finally:
        reading.cancel()
        call.cancel(error)


def _raised_by(task: asyncio.Future[None]) -> BaseException | None:
    # The source may have awaited what was cancelled.
    return asyncio.CancelledError() if task.cancelled() else task.exception()


async def _as_async(inputs: Iterable[Any]) -> AsyncIterator[Any]:
    for one in inputs:
        yield one
