from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest

from genpool.protocol.errors import Closed
from genpool.worker.engines.loop import LoopThread


class Loop(LoopThread):
    """A loop that remembers whether it was ended."""

    def __init__(self) -> None:
        ended = threading.Event()

        async def at_end() -> None:
            ended.set()

        super().__init__("test-loop", at_end)
        self.ended = ended


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


class Waiting:
    """A coroutine that waits until it is cancelled, and says when it runs and when it has ended."""

    def __init__(self) -> None:
        self.runs, self.ended = threading.Event(), threading.Event()

    async def __call__(self) -> None:
        self.runs.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()


async def answer(value: int) -> int:
    if value < 0:
        raise ValueError(value)
    return value


def test_it_returns_what_the_coroutine_returns(loop: Loop) -> None:
    with ThreadPoolExecutor(8) as executor:
        assert list(executor.map(lambda k: loop.run(answer(k)), range(50))) == list(range(50))


def test_it_raises_what_the_coroutine_raises(loop: Loop) -> None:
    with pytest.raises(ValueError, match="-1"):
        loop.run(answer(-1))


def test_setting_the_flag_cancels_the_task(loop: Loop) -> None:
    waiting, flag = Waiting(), threading.Event()
    with ThreadPoolExecutor(1) as executor:
        call = executor.submit(loop.run, waiting(), flag)
        assert waiting.runs.wait(10)
        flag.set()
        assert isinstance(call.exception(10), CancelledError)
    assert waiting.ended.wait(10)


def test_close_cancels_what_runs_and_ends_the_thread(loop: Loop) -> None:
    waiting = Waiting()
    with ThreadPoolExecutor(1) as executor:
        call = executor.submit(loop.run, waiting())
        assert waiting.runs.wait(10)
        loop.close()
        assert isinstance(call.exception(10), CancelledError)
    assert waiting.ended.is_set()
    assert loop.ended.is_set()
    assert not loop._thread.is_alive()


def test_after_close_it_refuses(loop: Loop) -> None:
    loop.close()
    loop.close()
    with pytest.raises(Closed):
        loop.run(answer(1))


def test_it_can_be_closed_from_its_own_thread(loop: Loop) -> None:
    async def close() -> None:
        loop.close()

    with pytest.raises(CancelledError):
        loop.run(close_and_wait(close))
    loop._thread.join(10)
    assert loop.ended.is_set()


async def close_and_wait(close: object) -> None:
    await close()  # type: ignore[operator]
    await asyncio.Event().wait()


def test_it_ends_when_nobody_refers_to_it() -> None:
    loop = Loop()
    ended, thread = loop.ended, loop._thread
    del loop
    gc.collect()
    assert ended.wait(10)
    thread.join(10)
    assert not thread.is_alive()
