"""What the span of a call tells of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from inputs import inputs
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode
from spans import Spans, said
from voices import Asked, FakeLink, FakeVoice, echo, failed

from genpool.client import span
from genpool.client.generator import Generator
from genpool.client.row import Ending
from genpool.protocol.errors import GenerationError


class Pool(Generator):
    """Two LLMs on one link."""

    def __init__(self, link: FakeLink | None = None) -> None:
        self.link = link or FakeLink()
        self.voices = [FakeVoice(name, self.link, arguments=["input"]) for name in "ab"]

    def _voices(self) -> list[FakeVoice]:
        return self.voices


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Spans:
    spans = Spans()
    monkeypatch.setattr(span, "tracer", lambda: spans.tracer)
    return spans


def refuse_secrets(asked: Asked) -> Ending:
    return failed(f"I will not say {asked.text}") if asked.text == "secret" else echo(asked)


def counts(span: ReadableSpan) -> tuple[Any, ...]:
    return tuple(said(span)[f"genpool.inputs{part}"] for part in ("", ".failed", ".unfinished"))


def traceparent(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-{span.context.trace_flags:02x}"


def through_submit(pool: Pool, given: list[dict[str, Any]]) -> None:
    pool.submit(given, 2).result()


def through_stream(pool: Pool, given: list[dict[str, Any]]) -> None:
    list(pool.stream(given, 2))


def through_astream(pool: Pool, given: list[dict[str, Any]]) -> None:
    async def read() -> None:
        async for _ in pool.astream(given, 2):
            pass

    asyncio.run(read())


@pytest.mark.parametrize("through", [through_submit, through_stream, through_astream])
def test_each_call_has_a_span_that_its_rows_carry(
    spans: Spans, through: Callable[[Pool, list[dict[str, Any]]], None]
) -> None:
    pool = Pool()
    through(pool, inputs("x", "y", "z"))
    span = spans.only()
    assert (span.name, span.kind, span.status.status_code) == ("genpool.generate", SpanKind.CLIENT, StatusCode.UNSET)
    assert said(span)["genpool.llms"] == ("a", "b")
    assert said(span)["genpool.num_generations"] == 2
    assert counts(span) == (3, 0, 0)
    assert {asked.row.spec.trace for asked in pool.link.rows} == {traceparent(span)}


def test_it_is_below_the_span_of_the_caller(spans: Spans) -> None:
    with spans.tracer.start_as_current_span("caller") as caller:
        Pool().submit(inputs("x")).result()
    call = spans.ended[0]
    assert call.parent == caller.get_span_context()


def test_it_has_ended_when_the_future_has(spans: Spans) -> None:
    link = FakeLink(lambda _: None)
    seen: list[int] = []
    future = Pool(link).submit(inputs("x"))
    future.add_done_callback(lambda _: seen.append(len(spans.ended)))
    assert not spans.ended
    link.end()
    assert seen == [1]


def test_failed_inputs_are_an_error_without_a_word_of_theirs(spans: Spans) -> None:
    with pytest.raises(GenerationError):
        Pool(FakeLink(refuse_secrets)).submit(inputs("x", "secret", "y"), 2).result()
    span = spans.only()
    assert counts(span) == (3, 1, 0)
    assert said(span)["error.type"] == "ValueError"
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "1 of 3 inputs failed")
    assert "secret" not in span.to_json()
    assert not span.events


def test_failures_that_are_filled_in_count(spans: Spans) -> None:
    Pool(FakeLink(refuse_secrets)).submit(inputs("x", "secret"), 2, on_error="fill").result()
    assert counts(spans.only()) == (2, 1, 0)


def test_a_cancelled_call_is_no_error(spans: Spans) -> None:
    link = FakeLink(lambda asked: echo(asked) if asked.text == "x" else None)
    assert Pool(link).submit(inputs("x", "y", "z")).cancel()
    span = spans.only()
    assert counts(span) == (3, 0, 2)
    assert span.status.status_code is StatusCode.UNSET


def test_a_stream_that_is_left_has_a_span(spans: Spans) -> None:
    rows = Pool().stream(inputs("x", "y", "z"))
    assert not spans.ended
    next(rows)
    rows.close()
    assert spans.only().status.status_code is StatusCode.UNSET


def test_inputs_that_cannot_be_read_are_an_error(spans: Spans) -> None:
    def source() -> Iterator[dict[str, Any]]:
        yield {"input": "x"}
        raise OSError("the disk with the secret is gone")

    with pytest.raises(OSError, match="disk"):
        list(Pool().stream(source()))
    span = spans.only()
    assert (span.status.status_code, said(span)["error.type"]) == (StatusCode.ERROR, "OSError")
    assert counts(span) == (1, 0, 0)
    assert "secret" not in span.to_json()


def test_a_call_without_inputs_has_a_span(spans: Spans) -> None:
    assert Pool().submit([]).result() == []
    assert counts(spans.only()) == (0, 0, 0)


def test_without_traces_rows_carry_none() -> None:
    pool = Pool()
    pool.submit(inputs("x")).result()
    assert [asked.row.spec.trace for asked in pool.link.rows] == [""]
