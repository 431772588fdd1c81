"""How long it takes until rows flow again after a worker or the broker has gone, at the default settings.

Each measurement has a fleet of its own: a broker, two workers of one LLM, and a client in this process.

- A worker is killed, or frozen, while it runs a row and the other worker is idle: until the row begins there.
- The broker is killed while both workers run rows, and a new one is started, soon or when workers and client have been
  without one so long that they try seldom: until the client has an answer.
- Of three brokers, the one in use is killed while both workers run rows: until the next one has brought an answer.
"""

from __future__ import annotations

import logging
import os
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from commands import Commands, until
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scripted_llm import Notebook, environment
from target import Target, write_json

from genpool import ProcessLLM
from genpool.broker.settings import BrokerSettings
from genpool.protocol.address import read_connection_file
from genpool.protocol.session import SessionSettings

_CONCURRENCY = 4
# Longer than a frozen worker is waited for, so that no row ends by itself meanwhile.
_LONG_S = 60
# The workers' rows end while the broker is away, and these answers are the first that the new one passes on.
_SHORT_S = 0.2
_SOON_S = 0.2
# By then the delays between attempts have grown to the longest.
_LATE_S = 3.0

out = Console()
err = Console(stderr=True)


class _Fleet:
    """A broker or several, two workers of "scripted", and a client. ``broker`` is the first, which is in use."""

    def __init__(self, folder: Path, commands: Commands, brokers: int) -> None:
        self._commands = commands
        self._file = folder / "0.json"
        self.notebook = Notebook(folder / "notes")
        files = [folder / f"{number}.json" for number in range(brokers)]
        self.broker, *_ = [commands.start_broker("tcp://127.0.0.1:*", file) for file in files]
        for file in files:
            until(file.exists, "the broker's connection file")
        self.address = ",".join(read_connection_file(file).address for file in files)
        self.llm = ProcessLLM.connect("scripted", broker=self.address)
        self.workers = [self._start_worker(name) for name in ("first", "second")]

    def _start_worker(self, name: str) -> subprocess.Popen[bytes]:
        arguments = (name, "scripted", self.address, "--load", "scripted_llm:load")
        return self._commands.start_worker(*arguments, environment=environment(self.notebook.path, _CONCURRENCY))

    def restart_broker(self) -> Path:
        """Start a broker where the former one was. Returns the file that it writes as soon as it listens."""
        self.broker = self._commands.start_broker(self.address, self._file)
        return self._file

    def wait_for_workers(self) -> None:
        """Until both are ready, and the client knows it."""
        link = self.llm.link()
        until(lambda: link.fleet and "scripted" in link.fleet and link.fleet["scripted"].ready == 2, "two workers")


@contextmanager
def _fleet(folder: Path, brokers: int = 1) -> Generator[_Fleet]:
    with Commands(folder) as commands:
        fleet = _Fleet(folder, commands, brokers)
        try:
            fleet.wait_for_workers()
            yield fleet
        finally:
            fleet.llm.teardown()


def _rows(count: int, seconds: float) -> list[dict[str, str]]:
    return [{"input": f"r{number} {seconds}"} for number in range(count)]


def _until_elsewhere(folder: Path, number: signal.Signals) -> float:
    """Seconds from ``number``, sent to the one busy worker, until a row of its begins at the other one."""
    with _fleet(folder) as fleet:
        future = fleet.llm.generate(_rows(1, _LONG_S))
        busy, idle = _busy_and_idle(fleet)
        sent_at = time.monotonic()
        os.kill(busy.pid, number)
        began_at = 0.0

        def has_begun() -> bool:
            nonlocal began_at
            began = [note.at for note in fleet.notebook.news() if note.pid == idle.pid and note.event == "began"]
            began_at = min(began, default=began_at)
            return bool(began)

        until(has_begun, "a row at the other worker")
        future.cancel()
        return began_at - sent_at


def _busy_and_idle(fleet: _Fleet) -> tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]:
    """The worker that runs the row, and the other one."""
    pids: list[int] = []

    def has_begun() -> bool:
        pids.extend(note.pid for note in fleet.notebook.news())
        return bool(pids)

    until(has_begun, "the row's beginning")
    first, second = fleet.workers
    return (first, second) if pids[0] == first.pid else (second, first)


def _from_restart(folder: Path, away_s: float) -> tuple[float, float]:
    """Seconds from the start of a new broker's process, and from when it listens, to the first answer."""
    answered: list[float] = []

    def note(advance: int) -> None:
        answered.extend([time.monotonic()] * advance)

    with _fleet(folder) as fleet:
        future = fleet.llm.submit(_rows(2000, _SHORT_S), 1, note)
        until(lambda: answered, "the first answer")
        fleet.broker.kill()
        fleet.broker.wait()
        time.sleep(away_s)
        answered.clear()
        started_at = time.monotonic()
        file = fleet.restart_broker()
        until(file.exists, "the new broker's connection file")
        listens_at = time.monotonic()
        until(lambda: answered, "the first answer of the new broker")
        future.cancel()
        return answered[0] - started_at, answered[0] - listens_at


def _by_the_next(folder: Path) -> float:
    """Seconds from the end of the broker in use, one of three, to the first answer after it."""
    answered: list[float] = []

    def note(advance: int) -> None:
        answered.extend([time.monotonic()] * advance)

    with _fleet(folder, brokers=3) as fleet:
        future = fleet.llm.submit(_rows(2000, _SHORT_S), 1, note)
        until(lambda: answered, "the first answer")
        time.sleep(BrokerSettings().settle_s)  # a broker that has just started keeps back what is submitted again
        fleet.broker.kill()
        fleet.broker.wait()
        answered.clear()
        killed_at = time.monotonic()
        until(lambda: answered, "the first answer by the next broker")
        future.cancel()
        return answered[0] - killed_at


def _measure(repeat: int) -> dict[str, list[float]]:
    """All times by their names."""
    times: dict[str, list[float]] = {name: [] for name in _names()}
    for _ in track(range(repeat), "Measuring", console=err, transient=True):
        for name, number in (("killed", signal.SIGKILL), ("frozen", signal.SIGSTOP)):
            with tempfile.TemporaryDirectory(prefix="genpool-bench-") as folder:
                times[name].append(_until_elsewhere(Path(folder), number))
        for name, away_s in (("soon", _SOON_S), ("late", _LATE_S)):
            with tempfile.TemporaryDirectory(prefix="genpool-bench-") as folder:
                restarted_s, listened_s = _from_restart(Path(folder), away_s)
            times[name].append(restarted_s)
            times[f"{name}_bound"].append(listened_s)
        with tempfile.TemporaryDirectory(prefix="genpool-bench-") as folder:
            times["next"].append(_by_the_next(Path(folder)))
    return times


def _settings() -> dict[str, float]:
    """What decides the times."""
    broker, session = BrokerSettings(), SessionSettings()
    return {
        "worker_grace_s": broker.worker_grace_s,
        "heartbeat_timeout_s": broker.heartbeat_timeout_s,
        "ping_interval_s": broker.ping_interval_s,
        "settle_s": broker.settle_s,
        "first_delay_s": session.first_delay_s,
        "longest_delay_s": session.longest_delay_s,
    }


def _names() -> dict[str, tuple[str, float | None, str]]:
    """For each time what it is, its aim, and the settings that decide it."""
    heartbeat_s = BrokerSettings().heartbeat_timeout_s
    return {
        "killed": ("worker killed: row elsewhere", 0.5, "worker_grace_s"),
        "frozen": ("worker frozen: row elsewhere", heartbeat_s + 0.5, "heartbeat_timeout_s"),
        "soon": (f"broker away {_SOON_S:g} s: answer", 1.0, "start, first_delay_s"),
        "soon_bound": ("  from when it listens", None, "first_delay_s"),
        "late": (f"broker away {_LATE_S:g} s: answer", 1.0, "start, longest_delay_s"),
        "late_bound": ("  from when it listens", None, "longest_delay_s"),
        "next": ("one of 3 brokers killed: answer", 3.0, "first_delay_s"),
    }


def _summary(times: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "median_s": round(statistics.median(times[name]), 3),
            "min_s": round(min(times[name]), 3),
            "max_s": round(max(times[name]), 3),
            "aim_s": aim_s,
        }
        for name, (_, aim_s, _) in _names().items()
    }


def _table(summary: dict[str, dict[str, Any]], repeat: int) -> Table:
    table = Table("", title=f"Recovery in seconds, {repeat} times each")
    for heading in ("median", "min", "max", "aim"):
        table.add_column(heading, justify="right")
    table.add_column("decided by")
    for name, (said, aim_s, decided_by) in _names().items():
        numbers = [f"{summary[name][key]:.2f}" for key in ("median_s", "min_s", "max_s")]
        table.add_row(said, *numbers, "-" if aim_s is None else f"{aim_s:g}", decided_by)
    table.caption = ", ".join(f"{name}={value:g}" for name, value in _settings().items())
    return table


@click.command()
@click.option("--repeat", default=10, show_default=True, type=click.IntRange(1), help="How often each is measured.")
@click.option("--json", "file", type=Target(), help="Write the figures here, too.")
def recovery(repeat: int, file: Path | None) -> None:
    """Measure the time until rows flow again after a worker or the broker has gone."""
    logging.getLogger("genpool").setLevel(logging.ERROR)  # a lost broker is what is wanted here
    times = _measure(repeat)
    summary = _summary(times)
    out.print(_table(summary, repeat))
    if file is not None:
        write_json(file, {"repeat": repeat, "settings": _settings(), "times": summary, "each_s": times})
