"""The LLM of the soak and the benchmarks: a row says how long it takes, and notes tell when it began and ended where.

A row's input is ``NAME SECONDS``, or ``NAME kill``: a row that ends every process which runs it. Served with
``--load scripted_llm:load`` and the environment of ``environment``.
"""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path

from genpool import LLM, LLMOutput, TextGenerationTask
from genpool.worker.llm import RowCall


@dataclass(frozen=True)
class Note:
    """A row ``began``, or ``ended``, in the process ``pid`` at ``at``, on the monotonic clock that processes share."""

    event: str
    name: str
    pid: int
    at: float


class Scripted(LLM):
    """See the module."""

    def __init__(self, notes: Path, concurrency: int) -> None:
        super().__init__(TextGenerationTask())
        self._concurrency = concurrency
        self._notes = notes.open("ab", buffering=0)

    @property
    def model_name(self) -> str:
        return "scripted"

    @property
    def concurrency(self) -> int:
        return self._concurrency

    def _generate(self, inputs: list[dict[str, str]], num_generations: int = 1) -> list[list[LLMOutput]]:
        return [self.generate_row(RowCall(given, num_generations=num_generations)) for given in inputs]

    def generate_row(self, call: RowCall) -> list[LLMOutput]:
        text = call.content["input"] if isinstance(call.content, dict) else str(call.content)
        name, duration = text.split()
        self._note("began", name)
        if duration == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if call.cancelled.wait(float(duration)):
            raise CancelledError(name)
        self._note("ended", name)
        output = LLMOutput(model_name="scripted", prompt_used=None, raw_output=text.upper(), parsed_output=None)
        return [output.copy() for _ in range(call.num_generations)]

    def _note(self, event: str, name: str) -> None:
        # One write of a short line to a file opened for appending: lines of several processes never mix.
        self._notes.write(f"{event} {name} {os.getpid()} {time.monotonic():.6f}\n".encode())


def load() -> LLM:
    return Scripted(Path(os.environ["SCRIPTED_NOTES"]), int(os.environ["SCRIPTED_CONCURRENCY"]))


def environment(notes: Path, concurrency: int) -> dict[str, str]:
    """For a worker that serves this LLM and notes in the file ``notes``."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    return {"SCRIPTED_NOTES": str(notes), "SCRIPTED_CONCURRENCY": str(concurrency), "PYTHONPATH": path}


class Notebook:
    """Reads the notes of one LLM's workers as they come."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read = 0

    def news(self) -> list[Note]:
        """What was noted since the last call."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._read)
            lines = file.read()
        lines = lines[: lines.rfind(b"\n") + 1]
        self._read += len(lines)
        return [_parsed(line) for line in lines.decode().splitlines()]


def _parsed(line: str) -> Note:
    event, name, pid, at = line.split()
    return Note(event, name, int(pid), float(at))
