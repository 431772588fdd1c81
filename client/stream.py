"""Rows as they finish: bounded reading ahead, and the input's order where it is asked for."""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ..protocol.errors import RemoteError
from ..tasks.output import LLMOutput
from .call import Call
from .record import Record

# How often a reader that waits for room looks whether the window has grown.
_WINDOW_LOOK_S = 0.5

# After so many inputs the reader asks again how large the window is, which costs as much as to begin one. A window that
# shrinks is followed so many inputs later.
_LOOK_AFTER = 64

# So many bytes of rows are read ahead for each LLM: what a client has at its broker, and as many again. A larger value
# takes more memory, and a smaller one leaves the LLMs waiting for large rows.
_WINDOW_BYTES = 64 * 1024 * 1024

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


class Order:
    """Which rows may be yielded now: all that have arrived, or only those whose predecessors were yielded."""

    def __init__(self, *, ordered: bool) -> None:
        self._ordered = ordered
        self._next = 0
        self._early: dict[int, Row] = {}

    def arrived(self, records: Iterable[Record]) -> list[Row]:
        rows = [Row(one.index, one.input, one.outputs, one.failure, one.makers) for one in records]
        if not self._ordered:
            return rows
        self._early.update([(row.index, row) for row in rows])
        following: list[Row] = []
        while (row := self._early.pop(self._next, None)) is not None:
            self._next += 1
            following.append(row)
        return following


class Window:
    """How far inputs are read ahead: ``most()`` of them, and no more bytes of rows than keep the LLMs at work.

    ``begun`` and ``yielded`` count inputs. However large it is, one begins where no other is under way.
    """

    def __init__(self, call: Call, most: Callable[[], int]) -> None:
        self.begun = self.yielded = 0
        self._call = call
        self._most = most
        self._arrived = self._arrived_bytes = 0

    @property
    def room(self) -> int:
        """How many inputs may begin now, if they are as large as others; 0 or less when none may."""
        room = self._most() + self.yielded - self.begun
        begun_bytes = self._call.begun_bytes
        if not self.begun or not begun_bytes:
            return room
        under_way, size = self.begun - self._arrived, begun_bytes - self._arrived_bytes
        if under_way <= 0:
            return min(room, max(1, int(_WINDOW_BYTES * self.begun / begun_bytes)))
        usual = max(size / under_way, begun_bytes / self.begun)
        return min(room, int((_WINDOW_BYTES - size) / usual))

    def note_arrival(self, records: Iterable[Record]) -> None:
        """These inputs are finished: their rows take no memory when they are told of."""
        for record in records:
            self._arrived += 1
            self._arrived_bytes += record.size


@dataclass(frozen=True, slots=True)
class _End:
    """No more inputs: how many there were, and what reading them raised."""

    begun: int
    error: BaseException | None


class _Reader:
    """Reads the inputs of ``stream`` in a thread of its own, and begins them, no further ahead than the window."""

    def __init__(self, call: Call, inputs: Iterable[Any], window: Window, end: Callable[[_End], None]) -> None:
        self._call, self._inputs, self._window, self._end = call, inputs, window, end
        self._news = threading.Condition()
        self._is_waiting = self._is_left = False

    def start(self) -> None:
        run = contextvars.copy_context().run
        # A daemon, for a source may block for ever, and nothing can end that from outside.
        threading.Thread(target=run, args=(self._run,), name="genpool-inputs", daemon=True).start()

    def note_yield(self) -> None:
        """Whoever iterates is done with one row more: there is room for another."""
        self._window.yielded += 1  # before the look at who waits: see _wait_for_room
        self.note_room()

    def note_room(self) -> None:
        """There may be room for more."""
        if self._is_waiting:
            self._tell()

    def leave(self) -> None:
        """Nobody wants more rows; the thread ends with the next input at the latest."""
        self._is_left = True
        self._tell()

    def _tell(self) -> None:
        with self._news:
            self._news.notify()

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            self._begin_all()
        # A source is user code: what it raises is raised to who iterates, after the rows that were begun.
        except BaseException as raised:
            error = raised
        self._end(_End(self._call.begun, error))

    def _begin_all(self) -> None:
        items = iter(self._inputs)
        # Only what makes no row wait may begin together. A list has all its inputs ready; another source may take long
        # for the next one, or wait for an earlier row's outputs even, and so may a task that makes prompts here.
        is_ready = type(self._inputs) in (list, tuple) and not self._call.makes_prompts
        window = self._window
        part: list[Any] = []
        room = 0
        while not self._is_left and (room := room or self._wait_for_room()):
            part = part or list(islice(items, room if is_ready else 1))
            if not part:
                return
            is_first = not window.begun  # and nobody knows yet how large they are
            begun = self._call.begin(window.begun, part[:room])
            del part[:begun]
            window.begun += begun
            room = 0 if is_first else room - begun

    def _wait_for_room(self) -> int:
        """Wait until more inputs may begin, and return how many: 0 when none shall."""
        with self._news:
            # Raised before the window is read, which is written before this is read, so that no row is missed.
            self._is_waiting = True
            while (room := self._window.room) <= 0 and not self._is_left:
                # The window follows the fleet, which does not tell here when it grows.
                self._news.wait(_WINDOW_LOOK_S)
            self._is_waiting = False
        return 0 if self._is_left else min(room, _LOOK_AFTER)


def stream(
    make_call: Callable[[Callable[[list[Record]], None]], Call],
    inputs: Iterable[Any],
    most: Callable[[], int],
    *,
    ordered: bool,
) -> Rows:
    """Yield each of ``inputs`` when it is finished; at most ``most()`` of them are begun and not yielded.

    Inputs are read in a thread of their own: neither a slow source nor one that waits for an earlier row's outputs
    holds up what is finished, and a slow consumer does not leave the LLMs idle. What the source raises is raised here,
    after the rows that were begun. Leaving the iteration withdraws what is under way.
    """
    finished: queue.SimpleQueue[list[Record] | _End] = queue.SimpleQueue()
    call = make_call(finished.put)
    order = Order(ordered=ordered)
    window = Window(call, most)
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
            window.note_arrival(got)
            reader.note_room()
            for row in order.arrived(got):
                yielded += 1
                yield row
                reader.note_yield()
        if end.error is not None:
            raise end.error
    finally:
        reader.leave()
        call.cancel(end.error if end is not None else None)


def _next_of(finished: queue.SimpleQueue[list[Record] | _End]) -> list[Record] | _End:
    while True:
        try:
            # In slices: Python may miss a signal that comes just before a wait, until the wait ends.
            return finished.get(timeout=_SIGNAL_LOOK_S)
        except queue.Empty:
            continue
