"""Whether traces are asked for, and what a command does about it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from genpool.protocol import telemetry
from genpool.protocol.telemetry import context_of, trace_of, tracer

ENDPOINT = "http://127.0.0.1:4318"


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    telemetry.is_on.cache_clear()
    yield
    telemetry.is_on.cache_clear()


@pytest.mark.parametrize(
    ("environment", "is_on"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "mine"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ENDPOINT}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": ENDPOINT}, True),
        ({"OTEL_TRACES_EXPORTER": "console"}, True),
        ({"OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_TRACES_EXPORTER": " None ", "OTEL_EXPORTER_OTLP_ENDPOINT": ENDPOINT}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ENDPOINT, "OTEL_SDK_DISABLED": "True"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ENDPOINT, "OTEL_SDK_DISABLED": "false"}, True),
    ],
)
def test_traces_are_asked_for_by_the_environment(
    environment: dict[str, str], is_on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (tracer() is not None) == is_on


def test_where_they_are_and_the_sdk_is_not_installed_it_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", ENDPOINT)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk", None)
    assert tracer() is None
    assert tracer() is None
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "pip install 'genpool[otel]'" in record.message


def test_what_is_carried_of_a_span_is_its_context() -> None:
    from opentelemetry.trace import get_current_span

    carried = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"
    assert trace_of(get_current_span(context_of(carried))) == carried
    assert trace_of(get_current_span(context_of(""))) == ""


COMMAND = """
from genpool.protocol import telemetry
telemetry._FLUSH_S = FLUSH_S
with telemetry.exporting("genpool-test"):
    tracer = telemetry.tracer()
    if tracer is not None:
        tracer.start_span("the span").end()
"""


def command(flush_s: float = 30.0, before: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    code = before + COMMAND.replace("FLUSH_S\n", f"{flush_s}\n")
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, check=True
    )


def test_a_console_is_stderr_for_stdout_may_be_rows() -> None:
    done = command(OTEL_TRACES_EXPORTER="console", OTEL_RESOURCE_ATTRIBUTES="host.name=elsewhere,team=red")
    assert done.stdout == ""
    for text in ('"name": "the span"', '"service.name": "genpool-test"', '"host.name": "elsewhere"', '"team": "red"'):
        assert text in done.stderr


def test_an_exporter_that_is_not_installed_is_named() -> None:
    done = command(OTEL_TRACES_EXPORTER="zipkin_proto_http")
    assert "pip install opentelemetry-exporter-zipkin-proto-http" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_variable_that_cannot_be_used_costs_the_spans_and_nothing_else() -> None:
    done = command(OTEL_TRACES_EXPORTER="console", OTEL_BSP_MAX_QUEUE_SIZE="1", OTEL_BSP_MAX_EXPORT_BATCH_SIZE="2")
    assert "there are no traces, for their export cannot begin: ValueError: max_export_batch_size" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_provider_that_is_there_is_left_as_it_is() -> None:
    there = """
from opentelemetry import trace
from spans import Spans
spans = Spans()
trace.set_tracer_provider(spans.provider)
import atexit
atexit.register(lambda: print(spans.only().name))
"""
    path = os.pathsep.join(filter(None, ["tests", os.environ.get("PYTHONPATH", "")]))
    done = command(before=there, OTEL_TRACES_EXPORTER="console", PYTHONPATH=path)
    assert done.stdout == "the span\n"
    assert done.stderr == ""


def test_a_collector_that_does_not_answer_holds_up_no_end_for_long() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        # Longer than this test may take.
        command(flush_s=0.1, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, OTEL_EXPORTER_OTLP_TIMEOUT="600")
