"""A broker and workers of the no-op LLM, each a real command, with a client in this process."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from commands import Commands, until

from genpool import ProcessLLM
from genpool.broker.keyring import new_keyring
from genpool.protocol.address import read_connection_file

from . import noop

NAME = "noop"


@dataclass(frozen=True)
class Fleet:
    """What runs."""

    address: str
    broker: subprocess.Popen[bytes]
    workers: Sequence[subprocess.Popen[bytes]]

    def connect(self, name: str = NAME) -> ProcessLLM:
        """A client of the LLM. Tear it down."""
        return ProcessLLM.connect(name, broker=self.address)


@contextmanager
def running_fleet(
    workers: int,
    *worker_arguments: str,
    output_bytes: int = noop.OUTPUT_BYTES,
    broker_arguments: Sequence[str] = (),
    keys: bool = False,
) -> Generator[Fleet]:
    """A broker, with ``keys`` or without, and ``workers`` worker processes that are ready."""
    with tempfile.TemporaryDirectory(prefix="genpool-bench-") as name, Commands(Path(name)) as commands:
        file, keyring = Path(name) / "broker.json", Path(name) / "keys"
        if keys:
            new_keyring(keyring)
            broker_arguments = (*broker_arguments, "--keys", str(keyring))
        broker = commands.start_broker("tcp://127.0.0.1:*", file, *broker_arguments)
        until(file.exists, "the broker's connection file")
        # The file hands the keys on; without keys the address itself does, as most people write it.
        address = str(file) if keys else read_connection_file(file).address
        arguments = ("--load", "benchmarks.noop:load", *worker_arguments)
        environment = noop.environment(output_bytes)
        started = [
            commands.start_worker(f"worker-{number}", NAME, address, *arguments, environment=environment)
            for number in range(workers)
        ]
        fleet = Fleet(address, broker, started)
        if workers:
            _wait_for(fleet, workers)
        yield fleet


def _wait_for(fleet: Fleet, workers: int) -> None:
    llm = fleet.connect()
    try:
        link = llm.link()
        until(lambda: link.fleet and NAME in link.fleet and link.fleet[NAME].ready == workers, f"{workers} workers")
    finally:
        llm.teardown()
