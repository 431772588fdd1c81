"""What is not needed is not imported: it is most of the time that a start takes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import genpool", ["click", "logging", "msgpack", "rich", "zmq", "genpool.client"]),
        ("from genpool import LLMPool", ["asyncio", "click", "rich", "ssl"]),
        ("import genpool.cli", ["asyncio", "msgpack", "rich", "zmq"]),
        ("import genpool.broker.command", ["asyncio", "rich", "ssl", "genpool.client", "genpool.tasks"]),
        ("import genpool.worker.command", ["asyncio", "rich", "ssl", "genpool.client"]),
        ("import genpool.launcher.command", ["asyncio", "rich", "ssl", "zmq", "genpool.client", "genpool.worker"]),
        ("import genpool.client.status", ["asyncio", "ssl", "genpool.client.dataset"]),
    ],
)
def test_an_import_brings_no_more_than_it_needs(code: str, absent: list[str]) -> None:
    command = [sys.executable, "-c", f"{code}; import sys; print(*sys.modules)"]
    imported = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert code.split()[1] in imported
    assert [name for name in absent if name in imported] == []


@pytest.mark.parametrize("variable", ["OTEL_SERVICE_NAME=x", "OTEL_TRACES_EXPORTER=none", "OTEL_TRACES_EXPORTER=otlp"])
def test_opentelemetry_is_imported_only_where_traces_are_asked_for(variable: str) -> None:
    code = "import sys; from genpool import LLMPool; import genpool.worker.command; from genpool.client.span import *"
    code += "; print(*sys.modules); call_span(['a'], 1); print('opentelemetry' in sys.modules)"
    name, _, value = variable.partition("=")
    others = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**others, name: value})
    before, after = done.stdout.splitlines()
    assert "opentelemetry" not in before.split()
    assert after == str(value == "otlp")
