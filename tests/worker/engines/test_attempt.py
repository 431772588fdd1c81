from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

pytest.importorskip("openai")

import openai

from genpool.worker.engines.attempt import Attempts
from genpool.worker.engines.limiter import Limiter

# The client library's own HTTP client, whichever it is built on.
httpx: Any = __import__(type(openai.DEFAULT_CONNECTION_LIMITS).__module__.partition(".")[0])


class Noted(Limiter):
    """A limiter that lets each request wait for ``delay_s``, and notes what it is told."""

    def __init__(self, delay_s: float = 0.0) -> None:
        super().__init__()
        self.delay_s = delay_s
        self.waited: list[float] = []
        self.corrected: list[float] = []

    async def wait(self, tokens: float) -> None:
        self.waited.append(tokens)
        await asyncio.sleep(self.delay_s)

    def correct(self, by: float) -> None:
        self.corrected.append(by)


def refused(status: int, retry_after_ms: int = 1) -> openai.APIStatusError:
    response = httpx.Response(
        status, headers={"retry-after-ms": str(retry_after_ms)}, request=httpx.Request("POST", "http://127.0.0.1:9")
    )
    return openai.APIStatusError(f"no: {status}", response=response, body=None)


class Asked:
    """What is asked for: it comes to ``outcomes``, one after the other."""

    def __init__(self, *outcomes: Any) -> None:
        self.outcomes = list(outcomes)

    async def __call__(self) -> Any:
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        if outcome == "never":
            await asyncio.Event().wait()
        return outcome


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 20))


def test_each_try_waits_for_its_turn_and_what_is_refused_used_no_tokens() -> None:
    limiter = Noted()
    asked = Asked(refused(429), refused(503), "at last")
    assert run(Attempts(30.0, 2, limiter).until_answered(asked, 7)) == "at last"
    assert (limiter.waited, limiter.corrected) == ([7, 7, 7], [-7, -7])


def test_the_last_try_raises() -> None:
    asked = Asked(refused(503), refused(503), refused(502), "not asked for")
    with pytest.raises(openai.APIStatusError, match="no: 502"):
        run(Attempts(30.0, 2, Limiter()).until_answered(asked, 0))


def test_waiting_for_its_turn_does_not_count_as_the_servers_time() -> None:
    asked = Asked(refused(503), "in time")
    assert run(Attempts(0.5, 1, Noted(delay_s=0.6)).until_answered(asked, 0)) == "in time"


def test_tries_and_pauses_together_are_bounded() -> None:
    with pytest.raises(TimeoutError, match=r"no answer within 1 s"):
        run(Attempts(1.0, 9, Limiter()).until_answered(Asked(refused(503), "never"), 0))
    with pytest.raises(openai.APIStatusError, match="no: 503"):
        run(Attempts(0.3, 9, Limiter()).until_answered(Asked(refused(503, retry_after_ms=500)), 0))
