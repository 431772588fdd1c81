from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from genpool.worker.engines.limiter import Limiter

# So many tokens that what follows waits for hours.
ENDLESS = 1e6


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 20))


async def settle() -> None:
    """Let every task go on until it waits for something."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_without_limits_nothing_waits() -> None:
    async def scene() -> None:
        limiter = Limiter()
        for _ in range(100):
            await limiter.wait(ENDLESS)

    run(scene())


def test_requests_go_in_the_order_in_which_they_came() -> None:
    async def scene() -> None:
        limiter, order = Limiter(rpm=6000), list[int]()

        async def go(number: int) -> None:
            await limiter.wait(0)
            order.append(number)

        await limiter.wait(0)
        began = asyncio.get_running_loop().time()
        await asyncio.gather(*(go(number) for number in range(120)))
        assert order == list(range(120))
        # 121 were asked for, a second's worth (100) was there, and 20 intervals of 0.01 s were waited for.
        assert asyncio.get_running_loop().time() - began >= 0.19

    run(scene())


def test_tokens_that_were_not_used_let_the_next_one_go() -> None:
    async def scene() -> None:
        limiter = Limiter(tpm=60)
        await limiter.wait(ENDLESS)
        waiting = asyncio.create_task(limiter.wait(1))
        await settle()
        assert not waiting.done()
        limiter.correct(-ENDLESS)
        await waiting

    run(scene())


def test_who_is_cancelled_leaves_the_line_and_takes_nothing() -> None:
    async def scene() -> None:
        limiter = Limiter(tpm=60)
        await limiter.wait(ENDLESS)
        first, second = asyncio.create_task(limiter.wait(ENDLESS)), asyncio.create_task(limiter.wait(1))
        await settle()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert not second.done()
        limiter.correct(-ENDLESS)
        await second

    run(scene())
