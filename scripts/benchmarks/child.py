"""A function of a benchmark in a process of its own, with a pipe to it. It ends with the benchmark at the latest."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from commands import START_LIMIT_S, ScriptError


@dataclass(frozen=True)
class Child:
    """A running one, seen from the benchmark."""

    pid: int
    pipe: Connection

    def answer(self, what: str) -> Any:
        """What it says next. Raises ScriptError, which names ``what`` was waited for, when nothing comes."""
        if not self.pipe.poll(START_LIMIT_S):
            raise ScriptError(f"{what} did not come within {START_LIMIT_S:g} s")
        return self.pipe.recv()


@contextmanager
def running_child(function: Callable[..., None], *arguments: Any) -> Generator[Child]:
    """Run ``function(parent, *arguments)``, where ``parent`` is its end of the pipe, until the block ends."""
    spawn = multiprocessing.get_context("spawn")
    ends: Any = spawn.Pipe()
    ours, theirs = ends
    process = spawn.Process(target=function, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    assert process.pid is not None
    try:
        yield Child(process.pid, ours)
    finally:
        process.kill()
        process.join()
        ours.close()
