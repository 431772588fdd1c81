"""OpenTelemetry, where the environment asks for it: the tracer, what is carried of a span, and the export of a command.

Nothing of OpenTelemetry is imported unless it is asked for. The log of messages at the level debug is another thing:
see trace.py.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
import sys
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from .. import __version__

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, Tracer

log = logging.getLogger("genpool")

_EXPORTER = "OTEL_TRACES_EXPORTER"
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")

# How long a command that is done waits for its last spans to be taken. A larger value holds up its end for longer
# where the collector is away.
_FLUSH_S = 5.0


def tracer() -> Tracer | None:
    """The tracer of this process, of whatever provider the program has; None where no traces are asked for."""
    if not is_on():
        return None
    from opentelemetry.trace import get_tracer

    return get_tracer("genpool", __version__)


def trace_of(span: Span) -> str:
    """What messages carry of ``span``: a W3C traceparent, "" for a span that belongs to no trace."""
    from opentelemetry.trace import set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier, set_span_in_context(span))
    return carrier.get("traceparent", "")


def context_of(trace: str) -> Context:
    """The parent of a span that belongs to what ``trace_of`` gave."""
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": trace}, Context())


@cache  # every call asks, and the environment is slow; and what is missing is said once
def is_on() -> bool:
    """Whether the environment asked for traces when this process first wanted to know, and they can be had."""
    return _is_asked_for() and _is_installed()


@contextmanager
def exporting(service: str) -> Generator[None]:
    """Have this process, a command of ours, export its spans as the environment says, and flush them at the end.

    ``service`` is its name where the environment gives none. Where a provider is set up already, it is left as it is.
    """
    if tracer() is not None:
        _set_up(service)
    try:
        yield
    finally:
        flush()


def flush() -> None:
    """Have the spans exported that wait for it, for as long as may be waited for that."""
    if "opentelemetry.sdk.trace" not in sys.modules:
        return
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import get_tracer_provider

    provider = get_tracer_provider()
    if isinstance(provider, TracerProvider):
        # The SDK knows no timeout here, and tries again for long where the collector is away.
        thread = threading.Thread(target=provider.force_flush, name="telemetry-flush", daemon=True)
        thread.start()
        thread.join(_FLUSH_S)


def _is_asked_for() -> bool:
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = os.environ.get(_EXPORTER, "").strip().lower()
    return exporter != "none" if exporter else _first_of(_ENDPOINTS) != ""


def _first_of(names: tuple[str, ...]) -> str:
    return next((value for name in names if (value := os.environ.get(name, "").strip())), "")


def _is_installed() -> bool:
    try:
        found = importlib.util.find_spec("opentelemetry.sdk")
    except ModuleNotFoundError:
        found = None
    if found is None:
        log.warning(
            "the environment asks for traces (OTEL_*), and there are none, for OpenTelemetry is not installed: "
            "pip install 'genpool[otel]', or set OTEL_SDK_DISABLED=true"
        )
    return found is not None


def _set_up(service: str) -> None:
    from opentelemetry import trace

    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return  # by opentelemetry-instrument, say
    try:
        provider = _provider(service)
    # Whatever is wrong with a variable or an exporter, rows are worth more than spans.
    except Exception as error:
        log.warning("there are no traces, for their export cannot begin: %s: %s", type(error).__name__, error)
    else:
        trace.set_tracer_provider(provider)


def _provider(service: str) -> TracerProvider:
    """One that exports as the environment says. Raises what the SDK and exporters raise about that."""
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    host = socket.gethostname()
    named = {"service.name": service, "service.instance.id": f"{host}:{os.getpid()}", "host.name": host}
    # What the environment says of the resource goes before this.
    resource = Resource.create(named).merge(OTELResourceDetector().detect())
    # At exit it would wait for longer than flush() does.
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    for exporter in _exporters():
        provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def _exporters() -> Iterator[SpanExporter]:
    """Those that the environment names."""
    from importlib.metadata import entry_points

    from opentelemetry.sdk.trace.export import ConsoleSpanExporter

    for name in (os.environ.get(_EXPORTER) or "otlp").split(","):
        name = name.strip()
        if name == "otlp":
            name = "otlp_proto_grpc" if _first_of(_PROTOCOLS) == "grpc" else "otlp_proto_http"
        found = [*entry_points(group="opentelemetry_traces_exporter", name=name)]
        if name == "console":
            yield ConsoleSpanExporter(out=sys.stderr)  # what a command writes to stdout is its rows
        elif found:
            yield found[0].load()()
        else:
            package = f"opentelemetry-exporter-{name.replace('_', '-')}"
            log.warning(
                "spans are not exported to %r (%s), which is not installed: pip install %s", name, _EXPORTER, package
            )
