"""``genpool worker --restart``, the real command."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import PATIENCE_S, Fleet, until
from noted import began, environment
from process import children, is_alive

from genpool import ProcessLLM


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(tmp_path) as fleet:
        fleet.start_broker()
        yield fleet


@pytest.fixture
def llm(fleet: Fleet) -> Iterator[ProcessLLM]:
    llm = ProcessLLM.connect("noted", broker=fleet.address)
    yield llm
    llm.teardown()


def start(fleet: Fleet) -> subprocess.Popen[bytes]:
    return fleet.start_worker("noted", "--load", "noted:load", "--restart", environment=environment(fleet.folder))


def serving(fleet: Fleet) -> list[int]:
    """The process ids of the workers that are ready."""
    return [
        worker["pid"]
        for llm in fleet.report()["llms"]
        for worker in llm["workers"]
        if worker["state"] == "ready" and is_alive(worker["pid"])
    ]


def wait_until_one_serves(fleet: Fleet) -> int:
    until(lambda: len(serving(fleet)) == 1, "a worker that is ready")
    return serving(fleet)[0]


def test_a_worker_that_is_killed_comes_back_and_serves(fleet: Fleet, llm: ProcessLLM) -> None:
    supervisor = start(fleet)
    first = wait_until_one_serves(fleet)
    assert list(children(supervisor.pid)) == [first]
    os.kill(first, signal.SIGKILL)
    until(lambda: set(serving(fleet)) - {first}, "another worker")
    assert llm.generate([{"input": "sleep:0 row"}], timeout=PATIENCE_S).result()
    assert supervisor.poll() is None


def test_it_passes_a_signal_on_and_ends_with_the_worker_that_has_drained(fleet: Fleet, llm: ProcessLLM) -> None:
    supervisor = start(fleet)
    wait_until_one_serves(fleet)
    future = llm.generate([{"input": "wait row"}], timeout=PATIENCE_S)
    until(lambda: began(fleet.folder), "the start of the row")
    supervisor.terminate()
    fleet.wait_for(lambda report: report["llms"][0]["workers"][0]["state"] == "draining")
    (fleet.folder / "row.go").touch()
    assert future.result()
    assert supervisor.wait(PATIENCE_S) == 0


def test_an_order_that_reaches_the_worker_twice_is_one(fleet: Fleet, llm: ProcessLLM) -> None:
    """Slurm and systemd signal every process of a job."""
    supervisor = start(fleet)
    pid = wait_until_one_serves(fleet)
    future = llm.generate([{"input": "wait row"}], timeout=PATIENCE_S)
    until(lambda: began(fleet.folder), "the start of the row")
    os.kill(pid, signal.SIGTERM)
    supervisor.terminate()
    fleet.wait_for(lambda report: report["llms"][0]["workers"][0]["state"] == "draining")
    (fleet.folder / "row.go").touch()
    assert future.result()
    assert supervisor.wait(PATIENCE_S) == 0


def test_a_second_signal_ends_both_at_once(fleet: Fleet, llm: ProcessLLM) -> None:
    supervisor = start(fleet)
    pid = wait_until_one_serves(fleet)
    llm.generate([{"input": "wait row"}])
    until(lambda: began(fleet.folder), "the start of the row")
    supervisor.terminate()
    fleet.wait_for(lambda report: report["llms"][0]["workers"][0]["state"] == "draining")
    supervisor.send_signal(signal.SIGINT)
    assert supervisor.wait(PATIENCE_S) == 128 + signal.SIGINT
    assert not is_alive(pid)


def test_the_worker_does_not_outlive_it(fleet: Fleet) -> None:
    supervisor = start(fleet)
    pid = wait_until_one_serves(fleet)
    supervisor.kill()
    until(lambda: not is_alive(pid), "the worker's end")


def test_what_another_start_would_not_mend_ends_it(fleet: Fleet) -> None:
    wrong = fleet.start_worker("noted", "--load", "noted:absent", "--restart", environment=environment(fleet.folder))
    assert wrong.wait(PATIENCE_S) == 2


def test_a_signal_in_the_pause_ends_it(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "dies.py").write_text("def load():\n    raise SystemError('no')\n")
    path = {"PYTHONPATH": str(tmp_path)}
    supervisor = fleet.start_worker("noted", "--load", "dies:load", "--restart", environment=path)
    log = next(tmp_path.glob("1-worker.log"))
    until(lambda: log.read_text().count("it is started again in") > 2, "some pauses")
    until(lambda: log.read_text().splitlines()[-1].count("it is started again in"), "a pause")
    supervisor.terminate()
    assert supervisor.wait(PATIENCE_S) == 0
