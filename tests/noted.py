"""An LLM for fault tests: each row says what shall happen, and the LLM notes in files what it began and ended.

A row's input is ``WORD NAME``; what follows is not read, so that rows can be made long. Words:

- ``quick``: answer at once; ``sleep:S``: after S seconds, unless nobody wants it any more;
- ``wait``: when there is a file ``NAME.go``, unless nobody wants it any more;
- ``hang``: never, wanted or not, with the interpreter's lock free; ``gil:S``: after S seconds with the lock held;
- ``raise``: RuntimeError (it may work elsewhere); ``refuse``: ValueError (it never will);
- ``kill``: the process is killed; ``dead``: the engine says that it cannot go on; ``eat``: memory until there is none.

Served with ``--load noted:load`` and what ``environment`` says.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path
from typing import TYPE_CHECKING

from genpool import LLM, LLMOutput, TextGenerationTask
from genpool.protocol.errors import EngineDead
from genpool.worker.llm import RowCall

if TYPE_CHECKING:
    from fleet import Fleet

_LOOK_S = 0.01


class Noted(LLM):
    """See the module."""

    def __init__(self, folder: Path) -> None:
        super().__init__(TextGenerationTask())
        self._folder = folder

    @property
    def model_name(self) -> str:
        return "noted"

    @property
    def concurrency(self) -> int:
        return int(os.environ.get("CONCURRENCY", "1"))

    def _generate(self, inputs: list[dict[str, str]], num_generations: int = 1) -> list[list[LLMOutput]]:
        return [self.generate_row(RowCall(given, num_generations=num_generations)) for given in inputs]

    def generate_row(self, call: RowCall) -> list[LLMOutput]:
        text = call.content["input"] if isinstance(call.content, dict) else str(call.content)
        word, name = text.split()[:2]
        self._note("began", name)
        self._do(word, name, call.cancelled)
        self._note("ended", name)
        output = LLMOutput(model_name="noted", prompt_used=None, raw_output=text.upper(), parsed_output=None)
        return [output.copy() for _ in range(call.num_generations)]

    def _note(self, file: str, name: str) -> None:
        # One write of a short line to a file opened for appending: lines of several processes never mix.
        with (self._folder / file).open("ab", buffering=0) as stream:
            stream.write(f"{name} {os.getpid()}\n".encode())

    def _do(self, word: str, name: str, cancelled: threading.Event) -> None:
        word, _, seconds = word.partition(":")
        match word:
            case "quick":
                return
            case "sleep":
                if cancelled.wait(float(seconds)):
                    raise CancelledError(name)
            case "wait":
                while not (self._folder / f"{name}.go").exists():
                    if cancelled.wait(_LOOK_S):
                        raise CancelledError(name)
            case _:
                _FAULTS[word](f"{name} {seconds}".strip())


def _hang(_: str) -> None:
    while True:
        time.sleep(_LOOK_S)


def _hold_the_lock(said: str) -> None:
    # PyDLL, unlike CDLL, keeps the interpreter's lock over the call.
    ctypes.PyDLL(None).usleep(int(float(said.split()[1]) * 1e6))


def _raise(said: str) -> None:
    raise RuntimeError(f"{said} raises")


def _refuse(said: str) -> None:
    raise ValueError(f"{said} is refused")


def _kill(_: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die(said: str) -> None:
    raise EngineDead(f"{said} was too much")


def _eat(_: str) -> None:
    eaten: list[bytearray] = []
    size = 1 << 20
    while True:
        try:
            eaten.append(bytearray(size))
        except MemoryError:
            if size == 64:
                raise
            size >>= 2


_FAULTS: dict[str, Callable[[str], None]] = {
    "hang": _hang,
    "gil": _hold_the_lock,
    "raise": _raise,
    "refuse": _refuse,
    "kill": _kill,
    "dead": _die,
    "eat": _eat,
}


def load() -> LLM:
    return Noted(Path(os.environ["NOTED"]))


def start_workers(fleet: Fleet, count: int, concurrency: int) -> None:
    """Have so many workers serve it, each with ``concurrency`` rows at once, and wait until they are ready."""
    for _ in range(count):
        given = environment(fleet.folder, concurrency=concurrency)
        fleet.start_worker("noted", "--load", "noted:load", environment=given)
    fleet.wait_for(lambda report: sum(llm["capacity"] for llm in report["llms"]) == count * concurrency)


def environment(folder: Path, *, concurrency: int = 1) -> dict[str, str]:
    """For ``Fleet.start_worker``."""
    return {"NOTED": str(folder), "CONCURRENCY": str(concurrency), "PYTHONPATH": str(Path(__file__).parent)}


def noted(folder: Path, file: str) -> list[tuple[str, int]]:
    """What was noted in ``file`` ("began" or "ended") by now, in order: names and process ids."""
    path = folder / file
    lines = path.read_text().splitlines() if path.exists() else []
    return [(name, int(pid)) for name, pid in (line.split() for line in lines)]


def began(folder: Path) -> Counter[str]:
    """How often each name was begun."""
    return Counter(name for name, _ in noted(folder, "began"))


def ended(folder: Path) -> Counter[str]:
    """How often each name was computed to its end."""
    return Counter(name for name, _ in noted(folder, "ended"))
