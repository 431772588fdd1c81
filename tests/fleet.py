"""Real commands on this machine for a test: a broker on a random port and workers, all stopped at the end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from genpool.client.link import leave, link_to
from genpool.protocol.address import read_connection_file

# How long a condition may take to come true, on a machine where much else runs.
PATIENCE_S = 30.0


def until(condition: Callable[[], object], what: str = "the condition", patience_s: float = PATIENCE_S) -> None:
    """Wait until ``condition()`` is true; fails after ``patience_s``."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true within {patience_s:g} s"
        time.sleep(0.01)


class Fleet:
    """The processes of one test, in ``folder``, with their logs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.connection_file = folder / "broker.json"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.address = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()
        # pytest shows it where the test has failed. A fixture that holds the fleet does not know whether it has.
        for log in sorted(self.folder.glob("*.log")):
            sys.stderr.write(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}\n")

    def start(
        self, *arguments: str, environment: Mapping[str, str] | None = None, host: Sequence[str] = ()
    ) -> subprocess.Popen[bytes]:
        """Start ``genpool ARGUMENTS``. ``PYTHONPATH`` in ``environment`` goes before the one that is there.

        ``host`` is a command that runs what follows it on another host (see hosts.py).
        """
        extra = dict(environment or {})
        path = [extra.get("PYTHONPATH", ""), os.environ.get("PYTHONPATH", "")]
        extra["PYTHONPATH"] = os.pathsep.join(filter(None, path))
        log = self.folder / f"{len(self.processes)}-{arguments[0]}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [*host, sys.executable, "-m", "genpool.cli", *arguments],
                env={**os.environ, **extra},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
            )
        self.processes.append(process)
        return process

    def start_broker(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a broker; afterwards ``address`` is its own."""
        bind = self.address or "tcp://127.0.0.1:*"
        self.connection_file.unlink(missing_ok=True)
        process = self.start("broker", "--bind", bind, "--connection-file", str(self.connection_file), *arguments)
        until(lambda: self.connection_file.exists() or process.poll() is not None, "the broker's start")
        self.address = read_connection_file(self.connection_file).address
        return process

    def start_worker(
        self,
        llm: str,
        *arguments: str,
        broker: str | None = None,
        environment: Mapping[str, str] | None = None,
        host: Sequence[str] = (),
    ) -> subprocess.Popen[bytes]:
        """Start a worker that serves ``llm``."""
        command = ["worker", "--llm", llm, "--broker", broker or self.address, *arguments]
        return self.start(*command, environment=environment, host=host)

    def report(self) -> dict[str, Any]:
        """The broker's report."""
        link = link_to(self.address)
        try:
            return link.status(PATIENCE_S)
        finally:
            leave(link)

    def wait_for(self, condition: Callable[[dict[str, Any]], object]) -> None:
        """Wait until ``condition(report)`` is true of the broker's report."""
        until(lambda: condition(self.report()), "what the broker reports")
