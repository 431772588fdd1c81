"""The spans of engine calls, where traces are asked for: see telemetry.py.

They are named as OpenTelemetry's conventions for generative AI say, and have no text of prompts or completions, nor of
errors, which may repeat it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any, cast

from ..protocol.messages import RowKind
from ..protocol.telemetry import context_of, tracer
from ..tasks.output import LLMOutput, token_count
from .llm import LLM
from .machine import StartCall

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

# What comes of each row: its outputs, or the error that is its own.
Answers = Sequence[list[LLMOutput] | Exception]

# Sampling options that the conventions know, all of them numbers.
_OPTIONS = ("temperature", "top_p", "top_k", "max_tokens", "frequency_penalty", "presence_penalty")

_TOKENS = {"prompt_tokens": "gen_ai.usage.input_tokens", "completion_tokens": "gen_ai.usage.output_tokens"}


def call_spans(llm: LLM, name: str, batch_size: int) -> CallSpans | None:
    """Makes the spans of the calls of ``llm``, served as ``name``; None where there are no traces."""
    found = tracer()
    return None if found is None else CallSpans(found, llm, name, batch_size)


class CallSpans:
    """Makes a span of each engine call. Used by all engine threads."""

    def __init__(self, tracer: Tracer, llm: LLM, name: str, batch_size: int) -> None:
        self._tracer = tracer
        self._model_name = llm.model_name
        # What a call is, is known by its outputs. Those of one LLM are mostly alike.
        self._operation = "chat"
        self._fixed: dict[str, Any] = {
            "gen_ai.provider.name": llm.provider_name or type(llm).__name__,
            "gen_ai.request.model": llm.model_name,
            "genpool.llm": name,
            "genpool.batch_size": batch_size,
        }

    def run(
        self, call: StartCall, contents: Sequence[Any], options: Mapping[str, Any], generate: Callable[[], Answers]
    ) -> Any:
        """``generate()``, in a span below the call's of the client. Raises what it raises."""
        from opentelemetry.trace import SpanKind

        operation = self._operation
        if call.kind == RowKind.PROMPT:
            operation = "text_completion" if isinstance(contents[0], str) else "chat"
        with self._tracer.start_as_current_span(
            self._name_of(operation),
            context_of(call.trace),
            SpanKind.CLIENT,
            {**self._fixed, **_asked_for(call, len(contents), options), "gen_ai.operation.name": operation},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                answers = generate()
            except BaseException as error:
                _note_rows(span, [error] * len(contents))
                raise
            if span.is_recording():
                self._note_answers(span, answers)
            return answers

    def _name_of(self, operation: str) -> str:
        return f"{operation} {self._model_name}"

    def _note_answers(self, span: Span, answers: Answers) -> None:
        outputs = [output for answer in answers if not isinstance(answer, Exception) for output in answer]
        _note_rows(span, answers)
        _note_tokens(span, outputs)
        made = [output for output in outputs if output.get("prompt_used") is not None]
        if made:
            self._operation = "text_completion" if isinstance(made[0]["prompt_used"], str) else "chat"
            span.update_name(self._name_of(self._operation))
            span.set_attribute("gen_ai.operation.name", self._operation)
        names = [name for output in outputs if isinstance(name := cast(Any, output).get("model_name"), str)]
        if names:
            span.set_attribute("gen_ai.response.model", names[0])
        reasons = [reason for output in outputs if isinstance(reason := cast(Any, output).get("finish_reason"), str)]
        if reasons:
            span.set_attribute("gen_ai.response.finish_reasons", reasons)


def _asked_for(call: StartCall, rows: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes that are known before the call."""
    asked: dict[str, Any] = {"genpool.rows": rows, "genpool.num_generations": call.num_generations}
    if call.num_generations != 1:
        asked["gen_ai.request.choice.count"] = call.num_generations
    for name in _OPTIONS:
        if type(value := options.get(name)) in (int, float):
            asked[f"gen_ai.request.{name}"] = value
    return asked


def _note_rows(span: Span, answers: Sequence[object]) -> None:
    """How many rows ended in which way; a failed one makes it an error."""
    from opentelemetry.trace import StatusCode

    returned = sum(isinstance(answer, CancelledError) for answer in answers)
    errors = [answer for answer in answers if isinstance(answer, BaseException)]
    failed = [error for error in errors if not isinstance(error, CancelledError)]
    span.set_attributes(
        {
            "genpool.rows.done": len(answers) - len(errors),
            "genpool.rows.failed": len(failed),
            "genpool.rows.returned": returned,
        }
    )
    if failed:
        span.set_attribute("error.type", type(failed[0]).__name__)
        span.set_status(StatusCode.ERROR, f"{len(failed)} of {len(answers)} rows failed")


def _note_tokens(span: Span, outputs: Iterable[LLMOutput]) -> None:
    """How many tokens the outputs say that they took."""
    counts: dict[str, int] = {}
    for output in outputs:
        usage: Any = output.get("usage")
        for name, attribute in _TOKENS.items() if isinstance(usage, dict) else ():
            count = token_count(cast(dict[str, Any], usage).get(name))
            if count is not None:
                counts[attribute] = counts.get(attribute, 0) + count
    span.set_attributes(counts)
