"""A client that is killed (``kill -9``), and one that ends with a goodbye."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from fleet import Fleet, until
from noted import began, ended, environment
from process import Program

from genpool import ProcessLLM

CONCURRENCY = 4
QUEUED = 20
SEEN_S = 2.0

# Has more rows than the worker runs at once.
CLIENT = """
import pathlib, time
from genpool import ProcessLLM
llm = ProcessLLM.connect("noted", broker={address!r})
future = llm.generate([{{"input": f"wait row{{number}}"}} for number in range({rows})])
while not pathlib.Path({end!r}).exists():
    time.sleep(0.01)
{then}
"""

ENDINGS = {
    "tears down": "llm.teardown(); time.sleep(1000)",
    "comes to its end": "",
    "raises": "raise SystemExit('enough')",
}


def start_fleet(fleet: Fleet, folder: Path, *, grace_s: float) -> None:
    fleet.start_broker("--client-grace", str(grace_s))
    fleet.start_worker("noted", "--load", "noted:load", environment=environment(folder, concurrency=CONCURRENCY))
    fleet.wait_for(lambda report: sum(llm["capacity"] for llm in report["llms"]) == CONCURRENCY)


def client(fleet: Fleet, then: str) -> Program:
    """Goes on with ``then`` when there is a file "end"."""
    rows, end = CONCURRENCY + QUEUED, str(fleet.folder / "end")
    return Program(CLIENT.format(address=fleet.address, rows=rows, end=end, then=then))


def work(report: dict[str, Any]) -> tuple[int, int]:
    """How many rows wait and run."""
    (llm,) = report["llms"]
    return llm["queued"], llm["running"]


def away_s(report: dict[str, Any], pid: int) -> list[float | None]:
    """How long the client with this process id is away, None where it is there; empty when it is forgotten."""
    return [one["away_s"] for one in report["clients"] if one["pid"] == pid]


def check_that_another_is_served(fleet: Fleet, folder: Path) -> None:
    llm = ProcessLLM.connect("noted", broker=fleet.address)
    try:
        llm.generate([{"input": f"quick later{number}"} for number in range(20)], timeout=30).result()
    finally:
        llm.teardown()
    later = {f"later{number}": 1 for number in range(20)}
    assert ended(folder) == later
    # What was queued for the client that is gone was never begun.
    assert (began(folder) - ended(folder)).total() == CONCURRENCY


def test_it_is_seen_within_two_seconds_and_its_rows_are_dropped_after_the_grace(tmp_path: Path) -> None:
    grace_s = 3.0
    with Fleet(tmp_path) as fleet:
        start_fleet(fleet, tmp_path, grace_s=grace_s)
        with client(fleet, "") as program:
            pid = program.process.pid
            fleet.wait_for(lambda report: work(report) == (QUEUED, CONCURRENCY))
            assert away_s(fleet.report(), pid) == [None]
            killed = time.monotonic()
            program.process.kill()
            until(lambda: away_s(fleet.report(), pid) != [None], "the client's loss", patience_s=SEEN_S)

            fleet.wait_for(lambda report: work(report) == (0, 0))
            # Had it come back before, its work would have gone on.
            assert time.monotonic() - killed >= grace_s
            assert away_s(fleet.report(), pid) == []
            log = (tmp_path / "0-broker.log").read_text()
            assert f":{pid} is away: its connection broke; its {CONCURRENCY + QUEUED} rows are kept for 3 s" in log
            assert f":{pid} did not come back: its {CONCURRENCY + QUEUED} rows are dropped" in log
        until(lambda: (began(tmp_path) - ended(tmp_path)).total() == CONCURRENCY)
        check_that_another_is_served(fleet, tmp_path)


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=[*ENDINGS])
def test_one_that_says_goodbye_is_forgotten_at_once(tmp_path: Path, ending: str) -> None:
    with Fleet(tmp_path) as fleet:
        start_fleet(fleet, tmp_path, grace_s=3600.0)
        with client(fleet, ending) as program:
            fleet.wait_for(lambda report: work(report) == (QUEUED, CONCURRENCY))
            # What is handed out may not have begun yet.
            until(lambda: began(tmp_path).total() == CONCURRENCY, "the start of rows")
            (tmp_path / "end").touch()
            fleet.wait_for(lambda report: work(report) == (0, 0))
            assert away_s(fleet.report(), program.process.pid) == []
        check_that_another_is_served(fleet, tmp_path)
