"""``--row-timeout``: rows that never end, in engines that can abort them, that cannot, and that hold the lock."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import PATIENCE_S, Fleet, until
from noted import began, ended, environment, noted

from genpool import ProcessLLM
from genpool.protocol.errors import GenerationError, WorkerLost


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(tmp_path) as fleet:
        yield fleet


def connect(fleet: Fleet, request: pytest.FixtureRequest) -> ProcessLLM:
    llm = ProcessLLM.connect("noted", broker=fleet.address)
    request.addfinalizer(llm.teardown)
    return llm


def start_worker(fleet: Fleet, row_timeout_s: int, *, concurrency: int = 1) -> subprocess.Popen[bytes]:
    arguments = ["--load", "noted:load", "--row-timeout", str(row_timeout_s)]
    return fleet.start_worker("noted", *arguments, environment=environment(fleet.folder, concurrency=concurrency))


def said(fleet: Fleet, worker: subprocess.Popen[bytes]) -> str:
    return (fleet.folder / f"{fleet.processes.index(worker)}-worker.log").read_text()


def test_a_row_that_the_engine_can_abort_fails_in_the_end_and_the_worker_goes_on(
    fleet: Fleet, request: pytest.FixtureRequest
) -> None:
    fleet.start_broker()
    llm = connect(fleet, request)
    worker = start_worker(fleet, 1, concurrency=2)
    late = llm.generate([{"input": "wait late"}])
    assert len(llm.generate([{"input": f"quick {number}"} for number in range(20)]).result(PATIENCE_S)) == 20
    with pytest.raises(TimeoutError, match=r"ran for longer than 1 s .* after 3 attempts") as caught:
        late.result(PATIENCE_S)
    assert isinstance(caught.value, GenerationError)
    assert began(fleet.folder)["late"] == 3
    assert llm.generate([{"input": "quick after"}]).result(PATIENCE_S)
    assert worker.poll() is None
    assert not re.search("QUICK|quick|late", said(fleet, worker)), "a log tells ids of rows and not their content"


@pytest.mark.timeout(120)
def test_a_row_that_never_ends_ends_its_worker_each_time_and_fails_in_the_end(
    fleet: Fleet, request: pytest.FixtureRequest
) -> None:
    fleet.start_broker()
    llm = connect(fleet, request)
    hung = llm.generate([{"input": "hang hung"}], timeout=100)
    for attempt in range(1, 4):
        worker = start_worker(fleet, 1, concurrency=2)
        assert worker.wait(PATIENCE_S) == 70
        assert began(fleet.folder) == {"hung": attempt}
        assert re.search(r"the engine did not end row [0-9a-f]{12} within 1 s nor within 3 s", said(fleet, worker))
        assert "hang" not in said(fleet, worker), "a log tells ids of rows and not their content"
    with pytest.raises(TimeoutError, match=r"ran for longer than 1 s .* after 3 attempts"):
        hung.result(PATIENCE_S)


@pytest.mark.timeout(120)
def test_neighbours_of_a_row_that_never_ends_are_handed_over_or_computed_elsewhere_uncharged(
    fleet: Fleet, request: pytest.FixtureRequest
) -> None:
    fleet.start_broker("--max-attempts", "1")  # whoever is charged fails
    llm = connect(fleet, request)
    first = start_worker(fleet, 6, concurrency=2)
    hung = llm.generate([{"input": "hang hung"}], timeout=100)
    until(lambda: began(fleet.folder)["hung"], "the start of the row that hangs")
    # The neighbour is begun so late that its own time is not up when the worker ends.
    assert llm.generate([{"input": "sleep:5 clock"}], timeout=100).result(PATIENCE_S)
    beside = llm.generate([{"input": "wait beside"}], timeout=100)
    assert first.wait(PATIENCE_S) == 70
    with pytest.raises(TimeoutError, match="ran for longer than 6 s"):
        hung.result(PATIENCE_S)
    assert began(fleet.folder) == {"hung": 1, "clock": 1, "beside": 1}
    (fleet.folder / "beside.go").touch()
    second = start_worker(fleet, 6)
    assert beside.result(PATIENCE_S)[0][0]["raw_output"] == "WAIT BESIDE"
    assert noted(fleet.folder, "ended") == [("clock", first.pid), ("beside", second.pid)]


def test_a_row_that_holds_the_interpreters_lock_ends_its_worker_from_outside_and_is_charged(
    fleet: Fleet, request: pytest.FixtureRequest
) -> None:
    fleet.start_broker("--max-attempts", "1")
    llm = connect(fleet, request)
    given = environment(fleet.folder) | {"GENPOOL_WORKER_ROW_TIMEOUT": "1"}
    worker = fleet.start_worker("noted", "--load", "noted:load", environment=given)
    held = llm.generate([{"input": "gil:600 held"}], timeout=100)
    assert worker.wait(PATIENCE_S) == 1
    with pytest.raises(WorkerLost, match="ended 1 worker processes"):
        held.result(PATIENCE_S)
    assert ended(fleet.folder) == {}
