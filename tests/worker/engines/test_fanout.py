from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from genpool.protocol.errors import EngineUnwell, RowError
from genpool.worker.engines.fanout import FanOut

Request = tuple[int, int | None]


class Server:
    """Answers with a list of texts, as ``sizes`` says for the number that is asked for; 0 is a refusal."""

    def __init__(self, sizes: Callable[[int], int]) -> None:
        self.sizes = sizes
        self.requests: list[Request] = []

    async def ask(self, count: int, seed: int | None) -> list[str]:
        self.requests.append((count, seed))
        if not self.sizes(count):
            raise RowError("n is too large")
        return [f"{seed}/{position}" for position in range(self.sizes(count))]


def texts(fan_out: FanOut[list[str]], server: Server, count: int, seed: int | None = 5) -> list[str]:
    return [text for answer in asyncio.run(fan_out.answers(count, seed, server.ask)) for text in answer]


def test_all_come_from_one_request_where_the_server_takes_n() -> None:
    server = Server(lambda count: count)
    assert texts(FanOut(len), server, 3) == ["5/0", "5/1", "5/2"]
    assert server.requests == [(3, 5)]


def test_the_rest_is_asked_for_with_other_seeds_where_it_ignores_n() -> None:
    fan_out, server = FanOut[list[str]](len), Server(lambda count: 1)
    assert texts(fan_out, server, 3) == ["5/0", "6/0", "7/0"]
    assert texts(fan_out, server, 2) == ["5/0", "6/0"]
    assert server.requests == [(3, 5), (1, 6), (1, 7), (1, 5), (1, 6)], "the second row asks for no n"


def test_a_refusal_is_tried_without_n() -> None:
    fan_out, server = FanOut[list[str]](len), Server(lambda count: int(count == 1))
    assert texts(fan_out, server, 2, None) == ["None/0"] * 2
    assert texts(fan_out, server, 2, None) == ["None/0"] * 2
    assert [count for count, _ in server.requests] == [2, 1, 1, 1, 1]


def test_a_row_that_is_refused_alone_too_says_nothing_of_n() -> None:
    fan_out, server = FanOut[list[str]](len), Server(lambda count: 0)
    with pytest.raises(RowError, match="n is too large"):
        texts(fan_out, server, 3)
    assert [count for count, _ in server.requests] == [3, 1]
    server.sizes = lambda count: count
    texts(fan_out, server, 3)
    assert server.requests[2:] == [(3, 5)]


def test_one_by_one_from_the_beginning() -> None:
    server = Server(lambda count: count)
    assert texts(FanOut(len, one_by_one=True), server, 2) == ["5/0", "6/0"]


def test_the_first_failure_ends_the_other_requests() -> None:
    ended: list[int | None] = []

    async def ask(count: int, seed: int | None) -> list[str]:
        try:
            if seed == 6:
                raise EngineUnwell("no more")
            await asyncio.Event().wait()
        finally:
            ended.append(seed)
        return []

    with pytest.raises(EngineUnwell, match="no more"):
        asyncio.run(FanOut[list[str]](len, one_by_one=True).answers(3, 5, ask))
    assert sorted(seed or 0 for seed in ended) == [5, 6, 7]
