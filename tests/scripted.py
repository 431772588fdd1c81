"""An LLM that does as each row says, for tests that need a worker process. Needs no package but genpool."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from genpool import LLM, LLMOutput, ProcessLLM, TextGenerationTask

_PATIENCE_S = 30.0

TASK = TextGenerationTask()

# What makes a local LLM of a loader, for a test that has the fixture `local`.
Local = Callable[[Callable[[Any], Any]], ProcessLLM]


def wait_for_file(path: Path) -> None:
    """Wait until ``path`` exists; its maker is the test."""
    deadline = time.monotonic() + _PATIENCE_S
    while not path.exists():
        assert time.monotonic() < deadline, f"nobody made {path}"
        time.sleep(0.01)


def note_pid(path: Path) -> None:
    """Write this process's id there, in one step."""
    draft = path.with_suffix(".draft")
    draft.write_text(str(os.getpid()))
    draft.rename(path)


class Scripted(LLM):
    """Takes the first word of a row's input for what to do, the second for a file in ``folder``; others are echoed.

    ``hold NAME`` notes the process in NAME and waits for ``go``; ``die NAME`` makes NAME and is killed, unless
    NAME was there already; ``kill``, ``exit`` and ``leave`` end the process; ``raise`` and ``memory`` raise;
    ``pid``, ``directory`` and ``session`` answer with these.
    """

    def __init__(self, task: Any, folder: Path, name: str = "scripted", num_threads: int | None = None) -> None:
        super().__init__(task, num_threads=num_threads)
        self._folder, self._name = folder, name

    @property
    def model_name(self) -> str:
        return self._name

    def _generate(self, inputs: list[dict[str, Any]], num_generations: int = 1) -> list[list[LLMOutput]]:
        return [[self._output(row["input"]) for _ in range(num_generations)] for row in inputs]

    def _output(self, text: str) -> LLMOutput:
        answer = self._answer(*text.split(" ", 1))
        return LLMOutput(model_name=self._name, prompt_used=text, raw_output=answer, parsed_output=answer)

    def _answer(self, word: str, rest: str = "") -> str:
        told = {
            "directory": lambda: str(Path.cwd()),
            "session": lambda: str(os.getsid(0)),
            "pid": lambda: str(os.getpid()),
        }
        if word in told:
            return told[word]()
        self._do(word, self._folder / rest)
        return f"{word} {rest}".strip()

    def _do(self, word: str, file: Path) -> None:
        match word:
            case "hold":
                note_pid(file)
                wait_for_file(self._folder / "go")
            case "die" if not file.exists():
                file.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exit":
                os._exit(137)
            case "leave":
                raise SystemExit("the engine wants to leave")
            case "raise":
                raise ValueError("the engine raises")
            case "memory":
                bytearray(1 << 62)
            case _:
                pass


class FutureFails(Scripted):
    """Its own ``generate`` returns a Future that has failed."""

    def generate(self, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_exception(ValueError("the future failed"))
        return future


class Parallel(Scripted):
    """An engine with a process of its own, whose id it answers with."""

    def __init__(self, task: Any, folder: Path, method: str) -> None:
        super().__init__(task, folder)
        self._processes = multiprocessing.get_context(method).Pool(1)

    def _answer(self, word: str, rest: str = "") -> str:
        return str(self._processes.apply(os.getpid)) if word == "engine" else super()._answer(word, rest)


def loader(folder: Path, name: str = "scripted", num_threads: int | None = None) -> Callable[[Any], LLM]:
    """What loads a Scripted."""
    return lambda task: Scripted(task, folder, name, num_threads)
