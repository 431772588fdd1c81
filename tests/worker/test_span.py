"""What the spans of engine calls tell of them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode
from spans import Spans, said

from genpool.protocol.content import pack, pack_row
from genpool.protocol.errors import EngineDead, EngineUnwell, RowError
from genpool.tasks.output import LLMOutput
from genpool.tasks.text_generation import TextGenerationTask
from genpool.worker.call import Caller
from genpool.worker.llm import LLM, RowCall
from genpool.worker.machine import StartCall
from genpool.worker.span import CallSpans

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
CHAT = [{"role": "user", "content": "secret prompt"}]


def output(prompt: Any = CHAT, **more: Any) -> LLMOutput:
    made: dict[str, Any] = {"model_name": "model-0613", "raw_output": "secret completion", "parsed_output": None}
    return LLMOutput(**made, prompt_used=prompt, **more)


class Batch(LLM):
    """Does with each row what its text names in ``answers``."""

    option_names = frozenset({"temperature", "max_tokens", "stop"})

    def __init__(self, **answers: Any) -> None:
        super().__init__(TextGenerationTask())
        self.answers = answers

    @property
    def model_name(self) -> str:
        return "model"

    def _generate(self, inputs: list[dict[str, Any]], num_generations: int = 1) -> Any:
        raise NotImplementedError

    def generate_batch(self, calls: Sequence[RowCall]) -> list[list[LLMOutput] | Exception]:
        return [self.answer(call) for call in calls]

    def answer(self, call: RowCall) -> Any:
        content: Any = call.content
        answer = self.answers.get(content["input"] if isinstance(content, dict) else "", output())
        if isinstance(answer, type):
            raise answer("secret of a message")
        return answer if isinstance(answer, Exception) else [answer] * call.num_generations


class Bench:
    def __init__(self, llm: LLM) -> None:
        self.spans = Spans()
        spans = CallSpans(self.spans.tracer, llm, "mine", 8)
        self.caller = Caller(llm, "4711", "gpu1", lambda _: None, spans=spans)

    def run(self, *contents: Any, kind: str = "input", n: int = 1, trace: str = TRACE, **options: Any) -> ReadableSpan:
        """Make one call, and return the span that began first."""
        packed = [pack_row({"input": one} if kind == "input" else one, None) for one in contents]
        call = StartCall(0, kind, n, pack(options) if options else b"", list(range(len(packed))), packed, trace)
        self.caller.run(call, [threading.Event() for _ in packed], lambda _: None)
        for span in self.spans.ended:
            assert "secret" not in span.to_json()
            assert not span.events
        return self.spans.ended[0]


def outcomes(span: ReadableSpan) -> tuple[Any, ...]:
    return tuple(said(span)[f"genpool.rows{part}"] for part in ("", ".done", ".failed", ".returned"))


def test_a_call_is_named_by_the_conventions_and_below_the_clients_span() -> None:
    span = Bench(Batch()).run("a", "b", n=2, temperature=0.5, max_tokens=7, stop=["secret"])
    assert (span.name, span.kind) == ("chat model", SpanKind.CLIENT)
    assert span.context is not None
    assert span.parent is not None
    assert f"{span.context.trace_id:032x}" == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert f"{span.parent.span_id:016x}" == "00f067aa0ba902b7"
    assert said(span) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "Batch",
        "gen_ai.request.model": "model",
        "gen_ai.request.choice.count": 2,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.max_tokens": 7,
        "gen_ai.response.model": "model-0613",
        "genpool.llm": "mine",
        "genpool.batch_size": 8,
        "genpool.num_generations": 2,
        "genpool.rows": 2,
        "genpool.rows.done": 2,
        "genpool.rows.failed": 0,
        "genpool.rows.returned": 0,
    }
    assert span.status.status_code is StatusCode.UNSET


def test_tokens_and_finish_reasons_are_told_where_the_outputs_have_them() -> None:
    one = output(usage={"prompt_tokens": 5, "completion_tokens": 7, "cost": 0.1}, finish_reason="stop")
    other = output(usage={"prompt_tokens": "many", "completion_tokens": 1}, finish_reason="length")
    told = said(Bench(Batch(a=one, b=other, c=output(usage="secret"))).run("a", "b", "c"))
    assert (told["gen_ai.usage.input_tokens"], told["gen_ai.usage.output_tokens"]) == (5, 8)
    assert told["gen_ai.response.finish_reasons"] == ("stop", "length")


def test_a_text_that_the_model_got_is_a_text_completion() -> None:
    bench = Bench(Batch(a=output("secret text")))
    span = bench.run("a")
    assert (span.name, said(span)["gen_ai.operation.name"]) == ("text_completion model", "text_completion")


@pytest.mark.parametrize(("content", "operation"), [("secret", "text_completion"), (CHAT, "chat")])
def test_a_rendered_prompt_says_it_before_there_are_outputs(content: Any, operation: str) -> None:
    class Failing(Batch):
        def answer(self, call: RowCall) -> Any:
            raise RowError("secret")

    assert Bench(Failing()).run(content, kind="prompt").name == f"{operation} model"


def test_without_a_trace_it_is_the_root_of_its_own() -> None:
    assert Bench(Batch()).run("a", trace="").parent is None


def test_a_failed_row_is_an_error() -> None:
    bench = Bench(Batch(b=RowError("secret"), c=CancelledError()))
    span = bench.run("a", "b", "c")
    assert outcomes(span) == (3, 1, 1, 1)
    assert said(span)["error.type"] == "RowError"
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "1 of 3 rows failed")


def test_rows_that_nobody_wants_any_more_are_no_error() -> None:
    span = Bench(Batch(a=CancelledError())).run("a")
    assert outcomes(span) == (1, 0, 0, 1)
    assert span.status.status_code is StatusCode.UNSET


def test_a_batch_that_raises_and_each_row_that_is_tried_alone_have_a_span() -> None:
    bench = Bench(Batch(b=MemoryError))
    bench.run("a", "b")
    batch, first, second = bench.spans.ended
    assert [outcomes(span) for span in (batch, first, second)] == [(2, 0, 2, 0), (1, 1, 0, 0), (1, 0, 1, 0)]
    assert [said(span).get("error.type") for span in (batch, first, second)] == ["MemoryError", None, "MemoryError"]


def test_an_engine_that_is_unwell_is_an_error() -> None:
    span = Bench(Batch(a=EngineUnwell)).run("a")
    assert (said(span)["error.type"], span.status.status_code) == ("EngineUnwell", StatusCode.ERROR)


def test_an_engine_that_dies_leaves_a_span() -> None:
    bench = Bench(Batch(a=EngineDead))
    with pytest.raises(EngineDead):
        bench.run("a")
    assert said(bench.spans.only())["error.type"] == "EngineDead"
