"""The span of a call, where traces are asked for: see telemetry.py."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ..protocol.errors import RemoteError
from ..protocol.telemetry import trace_of, tracer
from .record import Record

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer


def call_span(llms: Sequence[str], num_generations: int) -> CallSpan | None:
    """The span of a call that begins now, below the caller's own; None where there are no traces."""
    found = tracer()
    return None if found is None else CallSpan(found, llms, num_generations)


class CallSpan:
    """What a call was asked for, and how many of its inputs have failed: no text of them, nor of errors, which may
    repeat it.

    ``trace`` is what its rows carry. It has no lock: its call's is held while failures are noted.
    """

    def __init__(self, tracer: Tracer, llms: Sequence[str], num_generations: int) -> None:
        from opentelemetry.trace import SpanKind

        self._span = tracer.start_span(
            "genpool.generate",
            kind=SpanKind.CLIENT,
            attributes={"genpool.llms": list(llms), "genpool.num_generations": num_generations},
        )
        self.trace = trace_of(self._span)
        self._failed = 0
        self._error_type = ""

    def note_failures(self, records: Iterable[Record]) -> None:
        """Count those of these finished inputs that have failed."""
        for record in records:
            if record.failure is not None:
                self._failed += 1
                self._error_type = self._error_type or record.failure.type_name

    def end(self, inputs: int, unfinished: int, error: BaseException | None) -> None:
        """The call is over: it had ``inputs``, some ``unfinished`` where it was cancelled, by an ``error`` perhaps."""
        from opentelemetry.trace import StatusCode

        span = self._span
        span.set_attributes(
            {"genpool.inputs": inputs, "genpool.inputs.failed": self._failed, "genpool.inputs.unfinished": unfinished}
        )
        if self._failed or error is not None:
            span.set_attribute("error.type", self._error_type or _type_of(error))
            text = f"{self._failed} of {inputs} inputs failed" if self._failed else "the call ended early"
            span.set_status(StatusCode.ERROR, text)
        span.end()


def _type_of(error: BaseException | None) -> str:
    return error.type_name if isinstance(error, RemoteError) else type(error).__name__
