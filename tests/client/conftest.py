"""A fleet of two scripted LLMs for the commands, the commands themselves and their files, and local LLMs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from echo import ECHO, Gate, Genpool, Start, command
from fleet import PATIENCE_S, Fleet
from scripted import TASK, Local

from genpool import ProcessLLM


@pytest.fixture(scope="session")
def echo_gate(tmp_path_factory: pytest.TempPathFactory) -> Gate:
    path = tmp_path_factory.mktemp("gate") / "gate"
    os.mkfifo(path)
    return Gate(path)


@pytest.fixture(scope="session")
def echo_fleet(tmp_path_factory: pytest.TempPathFactory, echo_gate: Gate) -> Iterator[Fleet]:
    """A broker and the LLMs "a" and "b", whose models are "model-a" and "model-b"."""
    folder = tmp_path_factory.mktemp("fleet")
    (folder / "echo_llm.py").write_text(ECHO)
    with Fleet(folder) as fleet:
        fleet.start_broker()
        for name in ("a", "b"):
            environment = {"MODEL": f"model-{name}", "GATE": str(echo_gate.path), "PYTHONPATH": str(folder)}
            fleet.start_worker(name, "--load", "echo_llm:load", environment=environment)
        fleet.wait_for(lambda report: sum(llm["capacity"] for llm in report["llms"]) == 2)
        yield fleet


@pytest.fixture
def genpool(echo_fleet: Fleet) -> Genpool:
    """Runs a command to its end."""

    def run(
        *arguments: str, stdin: str = "", environment: Sequence[tuple[str, str]] = ()
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*arguments),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            env={**os.environ, "GENPOOL_BROKER": echo_fleet.address, **dict(environment)},
            check=False,
        )

    return run


@pytest.fixture
def start(echo_fleet: Fleet) -> Iterator[Start]:
    """Starts a command, with pipes; what is left is killed at the end."""
    processes: list[subprocess.Popen[str]] = []

    def popen(*arguments: str, broker: str | None = None) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        environment = {**os.environ, "GENPOOL_BROKER": broker or echo_fleet.address}
        process = subprocess.Popen(
            command(*arguments), stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment
        )
        processes.append(process)
        return process

    yield popen
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def local() -> Iterator[Local]:
    """Makes local LLMs and tears them down."""
    made: list[ProcessLLM] = []

    def make(load: Callable[[Any], Any]) -> ProcessLLM:
        made.append(ProcessLLM(TASK, load))
        return made[-1]

    yield make
    for llm in made:
        llm.teardown()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "in.jsonl"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"
