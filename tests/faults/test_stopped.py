"""Processes that are stopped (SIGSTOP: Ctrl-Z, a laptop asleep, a frozen host) and continued."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from away import (
    ARGUMENTS,
    answers,
    is_idle,
    its_rows_go_elsewhere_and_it_is_stopped_when_it_is_back,
)
from fleet import Fleet, until
from noted import began, ended, environment
from process import Program

from genpool import ProcessLLM

SHORT = ("--heartbeat-timeout", "1")

# A client in a process of its own: its log, its rows' inputs as they are answered, and then how it ended.
CLIENT = """
import logging, sys
from genpool import ProcessLLM

logging.basicConfig(stream=sys.stdout, format="%(message)s")
rows = {rows!r}
llm = ProcessLLM.connect("noted", broker={broker!r})
outputs = llm.generate([{{"input": row}} for row in rows], timeout={timeout}).result()
llm.teardown()
assert [row[0]["raw_output"] for row in outputs] == [row.upper() for row in rows], outputs
print("all are answered")
"""


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(tmp_path) as fleet:
        yield fleet


def stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGSTOP)
    # The signal reaches one thread after the other.
    until(lambda: _states(process.pid) == {"T"}, "the stop of every thread")


def resume(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGCONT)


def _states(pid: int) -> set[str]:
    stats = [task.joinpath("stat").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    return {stat.rpartition(")")[2].split()[0] for stat in stats}


class Stopped:
    """A worker that is stopped and continued."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def start(self, environment: Mapping[str, str]) -> None:
        self._worker = self._fleet.start_worker("noted", "--load", "noted:load", *SHORT, environment=environment)

    def lose(self) -> None:
        stop(self._worker)

    def find(self) -> None:
        resume(self._worker)


def test_the_rows_of_a_worker_go_elsewhere_uncharged_and_it_is_stopped_when_it_is_back(fleet: Fleet) -> None:
    fleet.start_broker(*SHORT, *ARGUMENTS)
    far = Stopped(fleet)
    its_rows_go_elsewhere_and_it_is_stopped_when_it_is_back(fleet, far.start, far.lose, far.find)


def test_the_only_worker_goes_on_with_its_row_when_it_is_back(fleet: Fleet) -> None:
    fleet.start_broker(*SHORT, *ARGUMENTS)
    worker = fleet.start_worker("noted", "--load", "noted:load", *SHORT, environment=environment(fleet.folder))
    llm = ProcessLLM.connect("noted", broker=fleet.address)
    future = llm.generate([{"input": "wait held"}, {"input": "quick next"}], timeout=50)
    until(lambda: began(fleet.folder)["held"], "the row's start")
    stop(worker)
    fleet.wait_for(lambda report: report["llms"][0]["workers"] == [] and report["llms"][0]["queued"] == 2)
    resume(worker)
    fleet.wait_for(lambda report: report["llms"][0]["running"] == 1)
    (fleet.folder / "held.go").touch()
    assert answers(future) == ["WAIT HELD", "QUICK NEXT"]
    llm.teardown()
    until(lambda: is_idle(fleet, 1), "the end of all rows")
    assert began(fleet.folder) == ended(fleet.folder) == {"held": 1, "next": 1}


def own(report: dict[str, Any], program: Program) -> dict[str, Any] | None:
    """What the broker says of a client."""
    return next((client for client in report["clients"] if client["pid"] == program.process.pid), None)


def is_away(report: dict[str, Any], program: Program) -> bool:
    client = own(report, program)
    return client is not None and client["away_s"] is not None


def test_a_client_that_is_back_within_the_grace_finds_its_work_done(fleet: Fleet) -> None:
    fleet.start_broker(*SHORT, "--client-grace", "60")
    fleet.start_worker("noted", "--load", "noted:load", *SHORT, environment=environment(fleet.folder))
    rows = ["quick first", "wait held", "quick last"]
    with Program(CLIENT.format(rows=rows, broker=fleet.address, timeout=50)) as client:
        until(lambda: began(fleet.folder)["held"], "the row's start")
        stop(client.process)
        fleet.wait_for(lambda report: is_away(report, client))
        (fleet.folder / "held.go").touch()
        until(lambda: ended(fleet.folder)["last"], "the last row's end")
        resume(client.process)
        client.wait_for("all are answered")
        assert "lost the broker" in client.said
    until(lambda: is_idle(fleet, 1), "the end of all rows")
    assert began(fleet.folder) == ended(fleet.folder) == {"first": 1, "held": 1, "last": 1}


def check_rows_that_come_again(fleet: Fleet, client: Program, stopped_s: float) -> None:
    """A client that is stopped for longer than the grace while its row ``held`` runs."""
    until(lambda: began(fleet.folder)["held"], "the row's start")
    start = time.monotonic()
    stop(client.process)
    fleet.wait_for(lambda report: own(report, client) is None)
    # What waited is dropped, and what ran is stopped.
    until(lambda: is_idle(fleet, 1), "the end of what nobody waits for")
    assert (began(fleet.folder), ended(fleet.folder)) == ({"first": 1, "held": 1}, {"first": 1})
    until(lambda: time.monotonic() - start >= stopped_s, "the end of the stop", stopped_s)
    resume(client.process)
    until(lambda: began(fleet.folder)["held"] == 2, "the row's second start")
    (fleet.folder / "held.go").touch()
    client.wait_for("all are answered")
    until(lambda: is_idle(fleet, 1), "the end of all rows")
    assert ended(fleet.folder) == {"first": 1, "held": 1, "last": 1}


ROWS = ["quick first", "wait held", "quick last"]


def test_the_rows_of_a_client_are_dropped_after_the_grace_and_come_again_when_it_is_back(fleet: Fleet) -> None:
    fleet.start_broker(*SHORT, "--client-grace", "1")
    fleet.start_worker("noted", "--load", "noted:load", *SHORT, environment=environment(fleet.folder))
    with Program(CLIENT.format(rows=ROWS, broker=fleet.address, timeout=50)) as client:
        check_rows_that_come_again(fleet, client, 0.0)


@pytest.mark.timeout(150)
def test_a_client_that_is_stopped_for_a_minute_with_the_defaults(fleet: Fleet) -> None:
    fleet.start_broker()
    fleet.start_worker("noted", "--load", "noted:load", environment=environment(fleet.folder))
    with Program(CLIENT.format(rows=ROWS, broker=fleet.address, timeout=140)) as client:
        check_rows_that_come_again(fleet, client, 60.0)


@pytest.mark.timeout(150)
def test_a_broker_that_is_stopped_for_half_a_minute_with_the_defaults(fleet: Fleet) -> None:
    broker = fleet.start_broker(*ARGUMENTS)
    fleet.start_worker("noted", "--load", "noted:load", environment=environment(fleet.folder, concurrency=2))
    worker_log = fleet.folder / "1-worker.log"
    rows = ["quick first", "wait held", "wait after", "quick last"]
    with Program(CLIENT.format(rows=rows, broker=fleet.address, timeout=140)) as client:
        until(lambda: began(fleet.folder)["after"], "the rows' start")
        start = time.monotonic()
        stop(broker)
        (fleet.folder / "held.go").touch()
        until(lambda: ended(fleet.folder)["held"], "the row's end")
        client.wait_for("lost the broker")
        until(lambda: "lost the broker" in worker_log.read_text(), "the worker's notice")
        until(lambda: time.monotonic() - start >= 30.0, "half a minute", 30.0)
        resume(broker)
        client.wait_for("is there, after")
        until(lambda: "is there, after" in worker_log.read_text(), "the worker's return")
        (fleet.folder / "after.go").touch()
        client.wait_for("all are answered")
    until(lambda: is_idle(fleet, 1, 2), "the end of all rows")
    assert "this broker stood still" in (fleet.folder / "0-broker.log").read_text()
    assert began(fleet.folder) == ended(fleet.folder) == {"first": 1, "held": 1, "after": 1, "last": 1}
