"""Real commands under a service manager: what they tell it, in which order, and what they do not pass on."""

from __future__ import annotations

import importlib
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import PATIENCE_S, Fleet, until

from genpool import LLM, ProcessLLM, TextGenerationTask
from genpool.protocol.notify import VARIABLES

# Loads when a file is there, and answers with what its environment and that of its child know of the manager.
LOADER = """
import os, subprocess, sys, time
from genpool import LLM, TextGenerationTask

class Told(LLM):
    @property
    def model_name(self):
        return "told"

    def _generate(self, inputs, num_generations=1):
        code = "import os; print([n for n in os.environ if n.startswith(('NOTIFY', 'WATCHDOG'))])"
        raw = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()
        return [[{"model_name": "told", "prompt_used": None, "raw_output": raw, "parsed_output": None}] for _ in inputs]

def load():
    while not os.path.exists(os.environ["GO"]):
        time.sleep(0.01)
    return Told(TextGenerationTask())
"""


class Manager:
    """Hears what its services say, each at a socket of its own."""

    def __init__(self, path: Path, watchdog_s: float = 2.0) -> None:
        self.environment = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": str(int(watchdog_s * 1e6))}
        self.news: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while (heard := self._socket.recv(4096)) != b"END":
            self.news += heard.decode().split("\n")

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.sendto(b"END", self.environment["NOTIFY_SOCKET"])
        self._thread.join(PATIENCE_S)
        self._socket.close()

    def wait_for(self, news: str) -> None:
        until(lambda: any(one.startswith(news) for one in self.news), f"the news {news!r}")

    def where(self, news: str) -> int:
        return next(at for at, one in enumerate(self.news) if one.startswith(news))


@pytest.fixture
def managers(tmp_path: Path) -> Iterator[list[Manager]]:
    managers = [Manager(tmp_path / name) for name in ("first", "second")]
    yield managers
    for manager in managers:
        manager.close()


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    (tmp_path / "told_llm.py").write_text(LOADER)
    with Fleet(tmp_path) as fleet:
        yield fleet


def start_worker(fleet: Fleet, manager: Manager, broker: str | None = None) -> subprocess.Popen[bytes]:
    given = {**manager.environment, "GO": str(fleet.folder / "go"), "PYTHONPATH": str(fleet.folder)}
    return fleet.start_worker("told", "--load", "told_llm:load", broker=broker, environment=given)


def test_a_worker_is_ready_when_it_has_loaded_and_is_welcomed(fleet: Fleet, managers: list[Manager]) -> None:
    manager = managers[0]
    fleet.start_broker()
    worker = start_worker(fleet, manager)
    manager.wait_for("EXTEND_TIMEOUT_USEC=")
    manager.wait_for("STATUS='told' is loading, 0 rows running")
    fleet.wait_for(lambda report: [one["state"] for llm in report["llms"] for one in llm["workers"]] == ["loading"])
    assert "READY=1" not in manager.news
    (fleet.folder / "go").touch()
    manager.wait_for("READY=1")
    manager.wait_for("STATUS='told' is ready, 0 rows running")
    worker.terminate()
    assert worker.wait(PATIENCE_S) == 0
    manager.wait_for("STOPPING=1")
    order = [manager.where(news) for news in ("STATUS='told' is loading", "READY=1", "STOPPING=1")]
    assert order == sorted(order)
    assert [manager.news.count(news) for news in ("READY=1", "STOPPING=1")] == [1, 1]


def test_a_worker_without_a_broker_is_not_ready(fleet: Fleet, managers: list[Manager]) -> None:
    manager = managers[0]
    (fleet.folder / "go").touch()
    start_worker(fleet, manager, broker=f"ipc://{fleet.folder}/none")
    manager.wait_for("STATUS='told' is ready, 0 rows running, waiting for the broker: ")
    assert "READY=1" not in manager.news


def test_a_worker_that_is_drained_through_the_broker_says_so(fleet: Fleet, managers: list[Manager]) -> None:
    manager = managers[0]
    (fleet.folder / "go").touch()
    fleet.start_broker()
    worker = start_worker(fleet, manager)
    manager.wait_for("READY=1")
    assert fleet.start("drain", str(worker.pid), "--broker", fleet.address).wait(PATIENCE_S) == 0
    assert worker.wait(PATIENCE_S) == 0
    manager.wait_for("STOPPING=1")


def test_no_child_of_a_worker_finds_the_manager(fleet: Fleet, managers: list[Manager]) -> None:
    (fleet.folder / "go").touch()
    fleet.start_broker()
    start_worker(fleet, managers[0])
    llm = ProcessLLM.connect("told", broker=fleet.address)
    ((output,),) = llm.generate([{"input": "x"}]).result(PATIENCE_S)
    assert output["raw_output"] == "[]"
    llm.teardown()


def test_the_broker_is_ready_when_it_listens_and_tells_who_is_there(fleet: Fleet, managers: list[Manager]) -> None:
    manager, other = managers
    (fleet.folder / "go").touch()
    broker = start_broker(fleet, manager)
    manager.wait_for("READY=1")
    assert fleet.connection_file.exists()
    manager.wait_for("STATUS=0 clients, 0 workers, 0 rows")
    start_worker(fleet, other, broker=str(fleet.connection_file))
    manager.wait_for("STATUS=0 clients, 1 workers, 0 rows")
    broker.terminate()
    assert broker.wait(PATIENCE_S) == 0
    manager.wait_for("STOPPING=1")
    assert manager.news[0] == "READY=1"


def start_broker(fleet: Fleet, manager: Manager) -> subprocess.Popen[bytes]:
    where = ("--bind", "tcp://127.0.0.1:*", "--connection-file", str(fleet.connection_file))
    return fleet.start("broker", *where, environment=manager.environment)


def test_a_process_that_stands_still_gives_no_sign_of_life(fleet: Fleet, managers: list[Manager]) -> None:
    first, second = managers
    (fleet.folder / "go").touch()
    start_broker(fleet, first)
    first.wait_for("READY=1")
    start_worker(fleet, second, broker=str(fleet.connection_file))
    second.wait_for("READY=1")
    for process, manager, other in zip(fleet.processes, managers, reversed(managers), strict=True):
        process.send_signal(signal.SIGSTOP)
        until(lambda process=process: is_stopped(process.pid), "the process's stop")
        manager.news.clear()
        other.news.clear()
        # As long as the other goes on to give signs, this one could have.
        until(lambda other=other: other.news.count("WATCHDOG=1") >= 3, "signs of the other")
        assert "WATCHDOG=1" not in manager.news
        process.send_signal(signal.SIGCONT)
        manager.wait_for("WATCHDOG=1")


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def load_told(_: object) -> LLM:
    return importlib.import_module("told_llm").load()


def test_local_workers_and_their_broker_do_not_speak_for_their_client(
    managers: list[Manager], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    manager = managers[0]
    for name, value in manager.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GO", os.devnull)
    (tmp_path / "told_llm.py").write_text(LOADER)
    monkeypatch.syspath_prepend(str(tmp_path))
    llm = ProcessLLM(TextGenerationTask(), load_told)
    try:
        ((output,),) = llm.generate([{"input": "x"}]).result(PATIENCE_S)
    finally:
        llm.teardown()
    assert output["raw_output"] == "[]"
    assert manager.news == []
    assert set(VARIABLES[:2]) <= os.environ.keys()
