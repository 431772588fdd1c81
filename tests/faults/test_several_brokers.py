"""Clients and workers that know several brokers, of which some are killed: real commands."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import PATIENCE_S, Fleet, until
from noted import began, ended, environment

from genpool import ProcessLLM
from genpool.client.link import leave, link_to
from genpool.protocol.address import read_connection_file

CONCURRENCY = 2
WORKERS = 2


class Brokers(Fleet):
    """Three brokers, and workers of the LLM ``noted`` that are connected to all of them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.files = [folder / f"{name}.json" for name in "abc"]
        self.address = ",".join(map(str, self.files))

    def start_one(self, number: int) -> None:
        file = self.files[number]
        bind = read_connection_file(file).address if file.exists() else "tcp://127.0.0.1:*"
        file.unlink(missing_ok=True)
        self.brokers[number] = self.start("broker", "--bind", bind, "--connection-file", str(file))
        until(file.exists, "the broker's start")

    def start_all(self) -> None:
        self.brokers = {}
        for number in range(3):
            self.start_one(number)
        for _ in range(WORKERS):
            noted = environment(self.folder, concurrency=CONCURRENCY)
            self.start_worker("noted", "--load", "noted:load", environment=noted)
        for number in range(3):
            until(lambda number=number: self.workers_at(number) == WORKERS, "the workers' coming")

    def workers_at(self, number: int) -> int:
        """How many ready workers a broker knows."""
        link = link_to(str(self.files[number]))
        try:
            report = link.status(PATIENCE_S)
        finally:
            leave(link)
        return sum(worker["state"] == "ready" for llm in report["llms"] for worker in llm["workers"])


@pytest.fixture
def brokers(tmp_path: Path) -> Iterator[Brokers]:
    with Brokers(tmp_path) as brokers:
        brokers.start_all()
        yield brokers


@pytest.fixture
def llm(brokers: Brokers) -> Iterator[ProcessLLM]:
    llm = ProcessLLM.connect("noted", broker=brokers.address)
    yield llm
    llm.teardown()


def test_the_broker_in_use_is_killed_in_mid_call_and_the_next_one_goes_on(
    brokers: Brokers, llm: ProcessLLM, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "genpool.client")
    running = [f"running{number}" for number in range(WORKERS * CONCURRENCY)]
    queued = [f"queued{number}" for number in range(50)]
    words = [f"wait {name}" for name in running] + [f"quick {name}" for name in queued]
    future = llm.generate([{"input": word} for word in words], timeout=50)
    until(lambda: len(began(tmp_path)) == len(running), "the start of the first rows")

    brokers.brokers[0].kill()
    killed_at = time.monotonic()
    for name in running:
        (tmp_path / f"{name}.go").touch()
    until(lambda: "queued0" in began(tmp_path), "the start of a row at the next broker")
    assert time.monotonic() - killed_at < 3.0
    assert [row[0]["raw_output"] for row in future.result()] == [word.upper() for word in words]

    assert f"the broker at {brokers.files[1]} is there, after" in caplog.text
    counts = ended(tmp_path)
    assert {name: counts[name] for name in queued} == dict.fromkeys(queued, 1)
    # What ran for the broker that is gone is run for the next one, too.
    assert all(counts[name] <= 2 for name in running)


def test_one_after_the_other_is_killed_and_comes_back(brokers: Brokers, llm: ProcessLLM, tmp_path: Path) -> None:
    for number in (0, 1, 2):
        rows = [f"sleep:0.01 {number}-{row}" for row in range(100)]
        future = llm.generate([{"input": row} for row in rows], timeout=50)
        until(lambda number=number: f"{number}-0" in ended(tmp_path), "a row's end")
        brokers.brokers[number].kill()
        brokers.brokers[number].wait()
        assert [row[0]["raw_output"] for row in future.result()] == [row.upper() for row in rows]
        brokers.start_one(number)
    for number in range(3):
        until(lambda number=number: brokers.workers_at(number) == WORKERS, "the workers' return")


def test_the_places_of_the_workers_follow_where_rows_wait(brokers: Brokers, tmp_path: Path) -> None:
    """Clients of different brokers share the workers, whose engines never run more than they can."""
    llms = [ProcessLLM.connect("noted", broker=str(file)) for file in brokers.files]
    try:
        rows = [[f"quick {at}-{number}" for number in range(40)] for at in range(3)]
        futures = [
            llm.generate([{"input": row} for row in own], timeout=50) for llm, own in zip(llms, rows, strict=True)
        ]
        answers = [[row[0]["raw_output"] for row in future.result()] for future in futures]
        assert answers == [[row.upper() for row in own] for own in rows]
        assert set(ended(tmp_path).values()) == {1}
        # A single client of one broker has all the places.
        names = [f"all{number}" for number in range(WORKERS * CONCURRENCY)]
        last = llms[2].generate([{"input": f"wait {name}"} for name in names], timeout=50)
        until(lambda: set(names) <= began(tmp_path).keys(), "the start of as many rows as there are places")
        for name in names:
            (tmp_path / f"{name}.go").touch()
        assert len(last.result()) == len(names)
    finally:
        for llm in llms:
            llm.teardown()


def test_a_command_uses_the_first_that_answers(brokers: Brokers) -> None:
    brokers.brokers[0].kill()
    brokers.start("status", "--broker", brokers.address).wait(PATIENCE_S)
    log = (brokers.folder / f"{len(brokers.processes) - 1}-status.log").read_text()
    assert "noted" in log
