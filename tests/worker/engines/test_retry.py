from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

pytest.importorskip("openai")

import openai

from genpool.worker.engines.retry import pause_s, retry_after_s

# The client library's own HTTP client, whichever it is built on.
httpx: Any = __import__(type(openai.DEFAULT_CONNECTION_LIMITS).__module__.partition(".")[0])


def refused(status: int, headers: Mapping[str, str] | None = None, **body: Any) -> openai.APIStatusError:
    request = httpx.Request("POST", "http://127.0.0.1:9/v1/chat/completions")
    response = httpx.Response(status, headers=headers, request=request)
    return openai.APIStatusError("no", response=response, body=body or None)


def lost() -> openai.APIConnectionError:
    return openai.APIConnectionError(request=httpx.Request("POST", "http://127.0.0.1:9"))


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529])
def test_what_may_pass_is_tried_again(status: int) -> None:
    assert pause_s(refused(status), 0, 0.0) == 0.5


def test_a_lost_connection_is_tried_again() -> None:
    assert pause_s(lost(), 0, 0.0) == 0.5


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 413, 422])
def test_what_stays_is_not_tried_again(status: int) -> None:
    assert pause_s(refused(status, {"retry-after": "1"}), 0, 0.0) is None


def test_an_answer_that_cannot_be_read_is_not_tried_again() -> None:
    assert pause_s(openai.OpenAIError("what?"), 0, 0.0) is None


def test_pauses_grow_up_to_a_limit_and_are_drawn_a_little_shorter() -> None:
    assert [pause_s(lost(), tries, 0.0) for tries in (0, 1, 2, 3, 4, 5, 1000)] == [0.5, 1, 2, 4, 8, 8, 8]
    assert [pause_s(lost(), tries, 1.0) for tries in (0, 4)] == [0.375, 6]


@pytest.mark.parametrize("body", [{"code": "insufficient_quota"}, {"type": "insufficient_quota", "code": None}])
def test_a_used_up_quota_is_not_tried_again(body: dict[str, Any]) -> None:
    assert pause_s(refused(429, {"retry-after": "1"}, **body), 0, 0.0) is None


def test_a_request_that_is_too_large_by_itself_is_not_tried_again() -> None:
    said = "Request too large for m on tokens per min (TPM): Limit 30000, Requested 30601."
    assert pause_s(refused(429, {"retry-after": "1"}, message=said, code="rate_limit_exceeded"), 0, 0.0) is None
    assert pause_s(refused(503, message=said), 0, 0.0) == 0.5


@pytest.mark.parametrize("body", [{"code": 7}, {"code": {"a": 1}}, {"type": ["x"]}, {"type": {}}])
def test_a_body_of_another_shape_is_no_matter(body: dict[str, Any]) -> None:
    assert pause_s(refused(429, **body), 0, 0.0) == 0.5


def test_a_server_that_says_no_more_tries_is_obeyed() -> None:
    assert pause_s(refused(503, {"x-should-retry": "false"}), 0, 0.0) is None


def test_retry_after_goes_before_the_pauses_and_is_never_cut_short() -> None:
    assert pause_s(refused(429, {"retry-after": "20"}), 0, 0.0) == 20
    assert pause_s(refused(503, {"retry-after": "20"}), 3, 1.0) == 25


def test_a_server_that_wants_to_be_left_alone_for_long_is_not_waited_for() -> None:
    assert pause_s(refused(429, {"retry-after": "61"}), 0, 0.0) is None
    assert pause_s(refused(429, {"retry-after": "inf"}), 0, 0.0) is None


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-3"}, 0),
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
        ({"retry-after-ms": "soon", "retry-after": "2"}, 2),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT", "date": "Wed, 21 Oct 2015 07:27:30 GMT"}, 30),
        ({"retry-after": "Wed, 21 Oct 2015 07:27:00 GMT", "date": "Wed, 21 Oct 2015 07:27:30 GMT"}, 0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT", "date": "Wed, 21 Oct 2015 07:27:30 -0000"}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, None),
    ],
    ids=str,
)
def test_what_an_answer_asks_for(headers: dict[str, str], expected: float | None) -> None:
    assert retry_after_s(headers) == expected
