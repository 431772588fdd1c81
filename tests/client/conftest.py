"""A fleet of two scripted LLMs for the commands, and the commands themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from fleet import PATIENCE_S, Fleet, until

# Answers in capitals. "fail" is refused, "surrogate" answered with half a character, and "hold" is answered once
# somebody has opened the gate, a named pipe.
ECHO = """
import os
from genpool import LLM, TextGenerationTask
from genpool.protocol.errors import RowError

class Echo(LLM):
    @property
    def model_name(self):
        return os.environ["MODEL"]

    def _generate(self, inputs, num_generations=1):
        return [[self.answer(row) for _ in range(num_generations)] for row in inputs]

    def answer(self, row):
        prompt = row.get("input", row.get("prompt"))
        text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        if text == "fail":
            raise RowError("this row is bad")
        if text == "hold":
            with open(os.environ["GATE"]) as gate:
                gate.read()
        raw = "half \\ud800" if text == "surrogate" else text.upper()
        parsed = self.task.parse_output(raw)
        return {"model_name": self.model_name, "prompt_used": prompt, "raw_output": raw, "parsed_output": parsed}

def load():
    return Echo(TextGenerationTask())
"""


@dataclass(frozen=True)
class Gate:
    """Lets go of the rows that say "hold"."""

    path: Path

    def open(self) -> None:
        until(self._opened, "a row held at the gate")

    def _opened(self) -> bool:
        try:
            os.close(os.open(self.path, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            return False  # nobody reads it yet
        return True


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


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "genpool.cli", *arguments]


Genpool = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def genpool(echo_fleet: Fleet) -> Genpool:
    """Runs ``genpool ARGUMENTS`` on the fleet, to its end."""

    def run(*arguments: str, stdin: str = "", environment: Sequence[tuple[str, str]] = ()) -> subprocess.CompletedProcess[str]:
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


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(echo_fleet: Fleet) -> Iterator[Start]:
    """Starts ``genpool ARGUMENTS`` on the fleet, with pipes; what is left is killed at the end."""
    processes: list[subprocess.Popen[str]] = []

    def popen(*arguments: str, broker: str | None = None) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        environment = {**os.environ, "GENPOOL_BROKER": broker or echo_fleet.address}
        process = subprocess.Popen(command(*arguments), stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)
        processes.append(process)
        return process

    yield popen
    for process in processes:
        process.kill()
        process.communicate()
