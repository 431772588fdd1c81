"""The ``genpool`` commands that a script starts. None of them outlives it, however it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

START_LIMIT_S = 60.0


class ScriptError(Exception):
    """Raised when something that the script started did not do its part."""


def until(condition: Callable[[], object], what: str, limit_s: float = START_LIMIT_S) -> None:
    """Wait until ``condition()`` is true.

    Raises:
        ScriptError: when it is not within ``limit_s``.
    """
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise ScriptError(f"{what} did not come within {limit_s:g} s")
        time.sleep(0.002)


class Commands:
    """Starts commands, with their logs in ``folder``, and kills those that are left at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []
        # A child that reads this pipe to its end knows that the script is gone, were it by kill -9.
        self._lifeline, self._held = os.pipe()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()
        os.close(self._lifeline)
        os.close(self._held)

    def start(
        self, name: str, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start ``genpool ARGUMENTS``; what it says goes to the end of ``NAME.log``."""
        self.processes = [process for process in self.processes if process.poll() is None]
        # In a session of its own Ctrl-C reaches the script alone, which then ends its commands.
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "genpool.cli", *arguments, "--lifeline", str(self._lifeline)],
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=[self._lifeline],
            )
        self.processes.append(process)
        return process

    def start_broker(self, bind: str, file: Path, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a broker, which writes its connection file as soon as it listens."""
        file.unlink(missing_ok=True)
        return self.start("broker", "broker", "--bind", bind, "--connection-file", str(file), *arguments)

    def start_worker(
        self, name: str, llm: str, broker: str, *arguments: str, environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        """Start a worker that serves ``llm``."""
        return self.start(name, "worker", "--llm", llm, "--broker", broker, *arguments, environment=environment)
