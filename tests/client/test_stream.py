from __future__ import annotations

import asyncio
import queue
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any, cast

import pytest
from fleet import until
from voices import FakeLink, FakeVoice

from genpool.client.astream import astream
from genpool.client.call import Call, CallSettings
from genpool.client.record import Record, Share
from genpool.client.row import Row as SentRow
from genpool.client.run import Run
from genpool.client.stream import AsyncRows, Row, Rows, stream
from genpool.protocol.errors import Closed, RemoteError
from genpool.tasks.output import LLMOutput

_WINDOW = 8


class FakeCall:
    """Begins inputs; ``when_begun(call)`` may finish some, in any order."""

    makes_prompts = False

    def __init__(self, when_begun: Callable[[FakeCall], Any] = lambda call: call.finish_all()) -> None:
        self._when_begun = when_begun
        self._tell: Callable[[list[Record]], None] = lambda records: None
        self.pending: dict[int, Any] = {}
        self.groups: list[int] = []
        self.cancelled = self.begun = self.begun_bytes = 0

    def make(self, finished: Callable[[list[Record]], None]) -> Call:
        self._tell = finished
        return cast(Call, self)

    def begin(self, start: int, inputs: Sequence[Any]) -> int:
        self.groups.append(len(inputs))
        self.begun += len(inputs)
        self.pending.update(enumerate(inputs, start))
        self._when_begun(self)
        return len(inputs)

    def cancel(self, error: BaseException | None = None) -> None:
        self.cancelled += 1

    def finish(self, index: int, error: RemoteError | None = None) -> None:
        given = self.pending.pop(index)
        output = LLMOutput(model_name="model", prompt_used=given, raw_output=f"answer to {given}", parsed_output=None)
        part: list[LLMOutput] | RemoteError = [output] if error is None else error
        self._tell([self.record(index, given, Share(0, 1, outcome=part), error)])

    def record(self, index: int, given: Any, share: Share, error: RemoteError | None) -> Record:
        return Record(index, given, [share], 0, failure=error)

    def finish_all(self, *, backwards: bool = False) -> None:
        for index in sorted(self.pending, reverse=backwards):
            self.finish(index)


def streamed(call: FakeCall, inputs: Iterable[Any], window: int = _WINDOW, *, ordered: bool = False) -> Rows:
    return stream(call.make, inputs, lambda: window, ordered=ordered)


def astreamed(call: FakeCall, inputs: Any, window: int = _WINDOW, *, ordered: bool = False) -> AsyncRows:
    return astream(call.make, inputs, lambda: window, ordered=ordered)


async def gathered(rows: AsyncIterator[Row]) -> list[Row]:
    return [row async for row in rows]


def once_full(call: FakeCall, window: int, finish: Callable[[FakeCall], Any]) -> None:
    if len(call.pending) == window:
        finish(call)


class Watched:
    """A source that knows how far it was read, and never lets more than ``window`` be read and not yielded."""

    def __init__(self, call: FakeCall, count: int, window: int = _WINDOW) -> None:
        self.call, self.count, self.window = call, count, window
        self.read = self.yielded = self.furthest = 0

    def __iter__(self) -> Iterator[int]:
        for number in range(self.count):
            self.read += 1
            self.furthest = max(self.furthest, self.read - self.yielded)
            assert self.read - self.yielded <= self.window
            yield number
        self.call.finish_all()


def test_every_row_comes_with_its_index_input_and_outputs() -> None:
    rows = list(streamed(FakeCall(), ["a", "b", "c"]))
    assert [(row.index, row.input, row.outputs[0]["raw_output"], row.error) for row in rows] == [
        (0, "a", "answer to a", None),
        (1, "b", "answer to b", None),
        (2, "c", "answer to c", None),
    ]


def test_no_inputs_no_rows() -> None:
    call = FakeCall()
    assert list(streamed(call, [])) == []
    assert call.cancelled == 1


def test_rows_come_as_they_finish() -> None:
    call = FakeCall(lambda call: once_full(call, 5, lambda call: call.finish_all(backwards=True)))
    assert [row.index for row in streamed(call, range(5))] == [4, 3, 2, 1, 0]


def test_or_in_the_order_of_the_inputs() -> None:
    call = FakeCall(lambda call: once_full(call, 5, lambda call: call.finish_all(backwards=True)))
    assert [row.index for row in streamed(call, range(5), ordered=True)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("ordered", [False, True])
def test_the_window_bounds_reading_ahead(ordered: bool) -> None:
    chance = random.Random(0)

    def finish_some(call: FakeCall) -> None:
        if source.read - source.yielded < _WINDOW:
            return
        some = {min(call.pending), *chance.sample(sorted(call.pending), chance.randint(0, len(call.pending)))}
        for index in chance.sample(sorted(some), len(some)):
            call.finish(index)

    call = FakeCall(finish_some)
    source = Watched(call, 500)
    seen: list[int] = []
    for row in streamed(call, source, ordered=ordered):
        source.yielded += 1
        seen.append(row.index)
    assert sorted(seen) == list(range(500))
    assert (seen == sorted(seen)) is ordered
    assert source.furthest == _WINDOW


_MEBIBYTE = 1024 * 1024


class Sized(FakeCall):
    """Each input has rows of so many bytes as it says, and none begins together with another."""

    def begin(self, start: int, inputs: Sequence[Any]) -> int:
        self.begun_bytes += inputs[0]
        return super().begin(start, inputs[:1])

    def record(self, index: int, given: Any, share: Share, error: RemoteError | None) -> Record:
        record = super().record(index, given, share, error)
        record.size = given
        return record

    @property
    def size(self) -> int:
        return sum(self.pending.values())


def stream_of_sizes(call: FakeCall, inputs: Iterable[int], *, is_async: bool) -> list[int]:
    """The indices that came."""
    if is_async:
        return [row.index for row in asyncio.run(gathered(astreamed(call, inputs, 10_000)))]
    return [row.index for row in streamed(call, inputs, 10_000)]


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("source", [list, iter])
def test_the_window_is_bounded_in_bytes(source: Callable[[list[int]], Iterable[int]], *, is_async: bool) -> None:
    sizes: list[int] = []

    def finish_when_full(call: FakeCall) -> None:
        sizes.append(cast(Sized, call).size)
        if sizes[-1] + 10 * _MEBIBYTE > 64 * _MEBIBYTE:
            call.finish(min(call.pending))
        if call.begun == 50:
            call.finish_all()

    call = Sized(finish_when_full)
    assert stream_of_sizes(call, source([10 * _MEBIBYTE] * 50), is_async=is_async) == list(range(50))
    assert max(sizes) == 60 * _MEBIBYTE


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("source", [list, iter])
def test_inputs_of_all_sizes_pass_the_window(source: Callable[[list[int]], Iterable[int]], *, is_async: bool) -> None:
    sizes = [0] * 5 + [1] * 20 + [10 * _MEBIBYTE] * 30 + [100 * _MEBIBYTE] * 3 + [0] * 5 + [1] * 200

    def finish_many(call: FakeCall) -> None:
        if cast(Sized, call).size > 40 * _MEBIBYTE or call.begun in (5, len(sizes)):
            call.finish_all()

    assert stream_of_sizes(Sized(finish_many), source(sizes), is_async=is_async) == list(range(len(sizes)))


def test_after_the_window_was_full_of_bytes_the_next_begins_when_one_arrives() -> None:
    call = Sized(lambda call: None)
    rows = streamed(call, iter([30 * _MEBIBYTE] * 6), ordered=True)
    yielding = threading.Thread(target=lambda: [None for _ in rows], daemon=True)
    yielding.start()
    until(lambda: call.begun == 2, "two that are as much as may be")
    call.finish(1)
    until(lambda: call.begun == 3, "a third, though none was yielded")
    while call.begun < 6 or call.pending:
        until(lambda: bool(call.pending), "another")
        call.finish(min(call.pending))
    yielding.join(timeout=10)
    assert not yielding.is_alive()


def test_the_window_may_grow_and_shrink() -> None:
    windows = [2]

    def finish(call: FakeCall) -> None:
        if windows[-1] == 2:
            once_full(call, 2, lambda call: call.finish(0))
        elif len(call.pending) >= min(windows[-1], 6):
            call.finish_all()

    call = FakeCall(finish)
    source = Watched(call, 40, window=8)
    for row in stream(call.make, source, lambda: windows[-1], ordered=False):
        source.yielded += 1
        windows.append(8 if row.index < 20 else 1)
        if windows[-1] == 1:
            call.finish_all()  # what the larger window has let in
    assert source.yielded == 40
    assert source.furthest > 2


def test_an_endless_source_is_read_as_far_as_the_window() -> None:
    call = FakeCall()
    source = Watched(call, 10**12)
    rows = streamed(call, source)
    for _ in range(100):
        next(rows)
        source.yielded += 1
    assert source.read <= 100 + _WINDOW
    rows.close()


def test_an_input_begins_before_the_next_is_read() -> None:
    call = FakeCall()

    def each_waits_for_the_last() -> Iterator[int]:
        for number in range(20):
            assert sum(call.groups) == number
            yield number

    assert len(list(streamed(call, each_waits_for_the_last()))) == 20


def test_a_list_begins_as_far_as_the_window_at_once() -> None:
    call = FakeCall()
    assert len(list(streamed(call, list(range(50))))) == 50
    assert call.groups[0] == _WINDOW
    assert max(call.groups) <= _WINDOW
    assert sum(call.groups) == 50


def test_but_one_by_one_where_a_task_makes_prompts_for_none_may_wait_for_another() -> None:
    call = FakeCall()
    call.makes_prompts = True
    assert len(list(streamed(call, list(range(20))))) == 20
    assert set(call.groups) == {1}


@pytest.mark.parametrize("source", [list, iter])
def test_an_llm_that_goes_is_raised_after_the_rows_that_were_begun(
    source: Callable[[list[Any]], Iterable[Any]],
) -> None:
    class Going(FakeVoice):
        def submit_rows(self, rows: list[SentRow] | Run) -> None:
            if len(link.rows) + len(rows) > 4:
                raise Closed("it was torn down")
            super().submit_rows(rows)

    def make(finished: Callable[[list[Record]], None]) -> Call:
        settings = CallSettings(1, [1.0], False, None, b"", None, False)
        return Call([Going("a", link, arguments=["input"])], settings, finished)

    link = FakeLink()
    rows = stream(make, source([{"input": text} for text in "uvwxyz"]), lambda: 4, ordered=False)
    assert [next(rows).index for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(Closed):
        next(rows)


def test_leaving_the_iteration_cancels() -> None:
    call = FakeCall(lambda call: call.finish(0) if len(call.groups) == 3 else None)
    for row in streamed(call, range(100)):
        assert row.index == 0
        break
    assert call.cancelled == 1
    assert 0 not in call.pending
    assert len(call.groups) <= _WINDOW + 1


def test_an_iteration_that_never_starts_begins_nothing() -> None:
    call = FakeCall()
    rows = streamed(call, range(100))
    rows.close()
    assert call.groups == []


def test_an_error_of_the_consumer_cancels() -> None:
    call = FakeCall(lambda call: call.finish(0) if len(call.groups) == 3 else None)
    rows = streamed(call, range(100))
    next(rows)
    with pytest.raises(RuntimeError, match="stop"):
        rows.throw(RuntimeError("stop"))
    assert call.cancelled == 1


def test_a_failed_row_is_yielded_and_nothing_is_raised() -> None:
    error = RemoteError("ValueError", "bad")

    def finish(call: FakeCall) -> None:
        for index in list(call.pending):
            call.finish(index, error if index == 1 else None)

    rows = sorted(streamed(FakeCall(finish), range(3)), key=lambda row: row.index)
    assert [row.error for row in rows] == [None, error, None]
    assert rows[1].outputs == []


def test_an_error_of_the_source_is_raised_after_the_rows_before_it_and_cancels() -> None:
    def source() -> Iterator[str]:
        yield "a"
        yield "b"
        raise OSError("the disk is gone")

    call = FakeCall()
    rows = streamed(call, source())
    assert [next(rows).input, next(rows).input] == ["a", "b"]
    with pytest.raises(OSError, match="the disk is gone"):
        next(rows)
    assert call.cancelled == 1


def test_a_source_may_wait_for_the_outputs_of_an_earlier_row() -> None:
    outputs: queue.SimpleQueue[str] = queue.SimpleQueue()

    def source() -> Iterator[str]:
        yield "start"
        for _ in range(5):
            yield outputs.get(timeout=10)

    inputs: list[Any] = []
    for row in streamed(FakeCall(), source()):
        inputs.append(row.input)
        outputs.put(f"{row.input}!")
    assert inputs == ["start" + "!" * number for number in range(6)]


def test_a_slow_consumer_does_not_hold_up_reading() -> None:
    call = FakeCall(lambda call: call.finish(0) if len(call.groups) == 1 else None)
    source = Watched(call, 100)
    rows = streamed(call, source)
    next(rows)
    until(lambda: source.read == _WINDOW, "reading as far as the window")
    rows.close()


def test_inputs_are_read_in_a_thread_of_their_own_and_in_the_context_of_who_iterates() -> None:
    variable: ContextVar[str] = ContextVar("variable", default="unset")
    seen: set[tuple[str, str]] = set()

    def source() -> Iterator[int]:
        for number in range(20):
            seen.add((threading.current_thread().name, variable.get()))
            yield number

    variable.set("set")
    assert len(list(streamed(FakeCall(), source()))) == 20
    assert seen == {("genpool-inputs", "set")}


# For asyncio.


class InThread:
    """Runs finishes on a thread of its own, as a link does."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []

    def __call__(self, call: FakeCall) -> None:
        pending = sorted(call.pending)
        thread = threading.Thread(target=lambda: [call.finish(index) for index in pending if index in call.pending])
        self.threads.append(thread)
        thread.start()
        thread.join()


@pytest.mark.parametrize("ordered", [False, True])
def test_astream_yields_all(ordered: bool) -> None:
    call = FakeCall(InThread())
    rows = asyncio.run(gathered(astreamed(call, range(50), ordered=ordered)))
    assert sorted(row.index for row in rows) == list(range(50))
    assert not ordered or [row.index for row in rows] == list(range(50))
    assert call.cancelled == 1


def test_astream_yields_in_order_what_finishes_in_another() -> None:
    call = FakeCall(lambda call: once_full(call, 5, lambda call: call.finish_all(backwards=True)))
    rows = asyncio.run(gathered(astreamed(call, range(5), ordered=True)))
    assert [row.index for row in rows] == [0, 1, 2, 3, 4]


def test_astream_takes_async_iterables() -> None:
    async def source() -> AsyncIterator[str]:
        for text in ("a", "b", "c"):
            await asyncio.sleep(0)
            yield text

    rows = asyncio.run(gathered(astreamed(FakeCall(), source())))
    assert sorted(row.input for row in rows) == ["a", "b", "c"]


def test_astream_of_nothing() -> None:
    assert asyncio.run(gathered(astreamed(FakeCall(), []))) == []


def test_the_window_bounds_astream_too() -> None:
    call = FakeCall(lambda call: once_full(call, _WINDOW, lambda call: call.finish_all()))
    source = Watched(call, 200)

    async def main() -> list[int]:
        seen: list[int] = []
        async for row in astreamed(call, source):
            source.yielded += 1
            seen.append(row.index)
        return seen

    assert sorted(asyncio.run(main())) == list(range(200))
    assert source.furthest == _WINDOW


def test_astream_yields_while_a_slow_source_is_still_waited_for() -> None:
    call = FakeCall()

    async def main() -> list[int]:
        goes_on = asyncio.Event()

        async def source() -> AsyncIterator[int]:
            yield 0
            await goes_on.wait()
            yield 1

        seen: list[int] = []
        async for row in astreamed(call, source()):
            seen.append(row.index)
            goes_on.set()
        return seen

    assert asyncio.run(main()) == [0, 1]


def test_leaving_astream_cancels() -> None:
    call = FakeCall(lambda call: call.finish(0) if len(call.groups) == 3 else None)

    async def main() -> None:
        async with aclosing(astreamed(call, range(100))) as rows:
            async for row in rows:
                assert row.index == 0
                break

    asyncio.run(main())
    assert call.cancelled == 1


def test_cancelling_the_task_that_iterates_cancels() -> None:
    call = FakeCall(lambda call: None)

    async def main() -> None:
        waiting = asyncio.ensure_future(gathered(astreamed(call, range(3))))
        while len(call.pending) < 3:
            await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(main())
    assert call.cancelled == 1


@pytest.mark.parametrize("error", [OSError("the disk is gone"), asyncio.CancelledError("of another task")], ids=repr)
def test_an_error_of_the_source_of_astream_is_raised_after_the_rows_before_it_and_cancels(error: BaseException) -> None:
    call = FakeCall(lambda call: None)

    async def source() -> AsyncIterator[str]:
        yield "a"
        # Its row finishes only after the source has failed.
        asyncio.get_running_loop().call_later(0.05, call.finish_all)
        raise error

    async def main() -> None:
        rows = astreamed(call, source())
        assert (await anext(rows)).input == "a"
        with pytest.raises(type(error)):
            await anext(rows)

    asyncio.run(main())
    assert call.cancelled == 1


def test_what_finishes_after_the_loop_has_ended_is_dropped() -> None:
    call = FakeCall(lambda call: None)

    async def main() -> None:
        rows = astreamed(call, range(3))
        waiting = asyncio.ensure_future(anext(rows))
        while len(call.pending) < 3:
            await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(main())
    call.finish_all()
    assert call.pending == {}
