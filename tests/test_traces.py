"""Spans of real processes: a client's, and those of the workers that it asks, in one trace."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from echo import ECHO
from fleet import PATIENCE_S, Fleet, until
from opentelemetry import trace
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.sdk.trace import ReadableSpan
from spans import Collector, Spans, attributes

from genpool import LLMPool, ProcessLLM
from genpool.protocol import telemetry
from genpool.protocol.errors import GenerationError


@pytest.fixture(scope="module")
def provided() -> Spans:
    """The provider of this process, which can be set but once."""
    spans = Spans()
    trace.set_tracer_provider(spans.provider)
    assert trace.get_tracer_provider() is spans.provider
    return spans


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    telemetry.is_on.cache_clear()
    yield
    telemetry.is_on.cache_clear()


@pytest.fixture
def spans(provided: Spans, monkeypatch: pytest.MonkeyPatch) -> Spans:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    provided.clear()
    return provided


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Fleet]:
    """A broker and the LLMs "a" and "b", whose workers export to the collector."""
    folder = tmp_path_factory.mktemp("traced")
    (folder / "echo_llm.py").write_text(ECHO)
    with Fleet(folder) as fleet:
        fleet.start_broker()
        for name in "ab":
            environment = {"MODEL": f"model-{name}", "PYTHONPATH": str(folder), **collector.environment}
            fleet.start_worker(name, "--load", "echo_llm:load", environment=environment)
        fleet.wait_for(lambda report: sum(llm["capacity"] for llm in report["llms"]) == 2)
        yield fleet


@pytest.fixture
def exported(collector: Collector) -> list[tuple[dict[str, Any], Span]]:
    """What comes to the collector from now on."""
    collector.spans.clear()
    return collector.spans


def assert_below(span: Span, client: ReadableSpan) -> None:
    assert client.context is not None
    assert int.from_bytes(span.trace_id, "big") == client.context.trace_id
    assert int.from_bytes(span.parent_span_id, "big") == client.context.span_id


def test_the_spans_of_two_llms_are_below_that_of_the_call(
    spans: Spans, fleet: Fleet, exported: list[tuple[dict[str, Any], Span]]
) -> None:
    with LLMPool.connect(["a", "b"], fleet.address) as pool:
        pool.generate([{"input": "hello"}], 2)
    until(lambda: len(exported) == 2, "the workers' spans")
    client = spans.only()
    for _, span in exported:
        assert_below(span, client)
    assert {span.name for _, span in exported} == {"text_completion model-a", "text_completion model-b"}
    assert {attributes(span)["genpool.llm"] for _, span in exported} == {"a", "b"}
    assert {resource["service.name"] for resource, _ in exported} == {"genpool-worker"}


def test_a_row_that_fails_is_an_error_at_both_ends(
    spans: Spans, fleet: Fleet, exported: list[tuple[dict[str, Any], Span]]
) -> None:
    llm = ProcessLLM.connect("a", fleet.address)
    with pytest.raises(GenerationError):
        llm.generate([{"input": "fail"}]).result(PATIENCE_S)
    llm.teardown()
    until(lambda: exported, "the worker's span")
    ((_, span),) = exported
    client = spans.only()
    assert_below(span, client)
    assert span.status.code == Status.STATUS_CODE_ERROR
    assert client.status.status_code is trace.StatusCode.ERROR
    assert attributes(span)["error.type"] == "RowError"
    assert "this row is bad" not in f"{span}{client.to_json()}"


def test_a_client_without_traces_has_none_and_the_workers_spans_are_roots(
    provided: Spans, fleet: Fleet, exported: list[tuple[dict[str, Any], Span]], monkeypatch: pytest.MonkeyPatch
) -> None:
    provided.clear()
    monkeypatch.delenv("OTEL_TRACES_EXPORTER", raising=False)
    llm = ProcessLLM.connect("a", fleet.address)
    llm.generate([{"input": "hello"}]).result(PATIENCE_S)
    llm.teardown()
    until(lambda: exported, "the worker's span")
    assert [span.parent_span_id for _, span in exported] == [b""]
    assert not provided.ended


def test_a_command_exports_its_span_before_it_ends(
    fleet: Fleet, collector: Collector, exported: list[tuple[dict[str, Any], Span]], tmp_path: Path
) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"input": f"row {number}"}) + "\n" for number in range(3)))
    # Its end, and not the clock, has the span exported.
    environment = {**collector.environment, "OTEL_BSP_SCHEDULE_DELAY": "600000", "OTEL_SERVICE_NAME": "nightly"}
    options = ("--broker", fleet.address, "-i", str(source), "-o", str(target), "--llm", "a")
    assert fleet.start("generate", *options, environment=environment).wait(PATIENCE_S) == 0
    (span,) = collector.of("nightly")
    assert (span.name, attributes(span)["genpool.inputs"]) == ("genpool.generate", 3)
    until(lambda: len(collector.of("genpool-worker")) == 3, "the worker's spans")
    assert {one.parent_span_id for one in collector.of("genpool-worker")} == {span.span_id}


def test_a_worker_that_drains_exports_what_it_has(fleet: Fleet, collector: Collector) -> None:
    environment = {"MODEL": "c", "PYTHONPATH": str(fleet.folder), **collector.environment}
    environment["OTEL_BSP_SCHEDULE_DELAY"] = "600000"
    worker = fleet.start_worker("c", "--load", "echo_llm:load", environment=environment)
    llm = ProcessLLM.connect("c", fleet.address)
    llm.generate([{"input": "hello"}]).result(PATIENCE_S)
    llm.teardown()
    worker.terminate()
    assert worker.wait(PATIENCE_S) == 0
    assert [span.name for span in collector.of("genpool-worker") if attributes(span)["genpool.llm"] == "c"] == [
        "text_completion c"
    ]
