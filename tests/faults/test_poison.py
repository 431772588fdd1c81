"""Rows that kill every worker they touch, and hosts that are lost, with workers started again as by a supervisor."""

from __future__ import annotations

import itertools
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from fleet import PATIENCE_S, Fleet, until
from noted import began, ended, environment, noted

from genpool import LLMOutput, ProcessLLM
from genpool.protocol.errors import GenerationError, WorkerLost

MAX_ATTEMPTS = 3

# How long a supervisor waits before it starts a worker again.
_RESTART_S = 0.2


class Supervised:
    """One worker, started again whenever it ends; ``deaths`` counts how often it did.

    ``is_bad`` is one on a host where a worker is killed as soon as it has begun a row.
    """

    def __init__(self, fleet: Fleet, llm: str, concurrency: int, *, is_bad: bool = False) -> None:
        self._fleet, self._llm, self._is_bad = fleet, llm, is_bad
        self._environment = environment(fleet.folder, concurrency=concurrency)
        self._over = threading.Event()
        self.deaths = 0
        self.process = self._start()
        self._thread = threading.Thread(target=self._watch, name="supervisor")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _start(self) -> subprocess.Popen[bytes]:
        return self._fleet.start_worker(self._llm, "--load", "noted:load", environment=self._environment)

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            if self._is_bad and begun_by(self._fleet.folder, self.process.pid):
                self.process.kill()
            if self.process.poll() is not None:
                self.deaths += 1
                self._over.wait(_RESTART_S)
                self.process = self._start()


class Stream:
    """A client that asks for one short row after the other until told to stop; ``failed`` are the rows that did."""

    def __init__(self, llm: ProcessLLM, name: str) -> None:
        self._llm, self._name = llm, name
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"stream-{name}")
        self.failed: list[Any] = []
        self.answered = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        inputs = ({"input": f"sleep:0.02 {self._name}-{number}"} for number in itertools.count())
        for row in self._llm.stream(itertools.takewhile(lambda _: not self._over.is_set(), inputs)):
            self.answered += row.error is None
            if row.error is not None:
                self.failed.append(row)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(tmp_path) as fleet:
        fleet.start_broker("--heartbeat-timeout", "2")
        yield fleet


def connect(fleet: Fleet, name: str = "noted") -> ProcessLLM:
    return ProcessLLM.connect(name, broker=fleet.address)


def wait_for_workers(fleet: Fleet, count: int) -> None:
    def ready(report: dict[str, Any]) -> bool:
        states = [worker["state"] for llm in report["llms"] for worker in llm["workers"]]
        return states.count("ready") >= count

    fleet.wait_for(ready)


def texts(outputs: list[list[LLMOutput]]) -> list[str]:
    """The names of the rows that these are the outputs of, in capitals."""
    return [str(row[0]["raw_output"]).split()[1] for row in outputs]


def let_go(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / f"{name}.go").touch()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("beside", [1, 64])
def test_a_row_that_kills_its_workers_fails_alone_after_three_deaths_while_the_others_work_on(
    fleet: Fleet, tmp_path: Path, beside: int
) -> None:
    names = [f"row{number}" for number in range(beside)]
    noted_llm, other_llm = connect(fleet), connect(fleet, "other")
    with Supervised(fleet, "noted", beside + 1) as first:
        wait_for_workers(fleet, 1)
        innocent = noted_llm.generate([{"input": f"wait {name}"} for name in names])
        until(lambda: len(began(tmp_path)) == beside, "the start of all rows")
        with (
            Supervised(fleet, "noted", 4) as second,
            Supervised(fleet, "noted", 4) as third,
            Supervised(fleet, "other", 1) as other,
        ):
            wait_for_workers(fleet, 4)
            former = first.process.pid
            poison = noted_llm.generate([{"input": "kill poison"}])
            # Until then the others fill the rest of its worker, so that no row of the stream is beside it.
            until(lambda: began(tmp_path)["poison"], "the start of the poison")
            let_go(tmp_path, names)
            with Stream(noted_llm, "same") as same, Stream(other_llm, "else") as elsewhere:
                error = poison.exception(90)
                answers = innocent.result(60)
                # Well again: all of them work on.
                target = same.answered + elsewhere.answered + 40
                until(lambda: same.answered + elsewhere.answered > target, "more rows of the others")
            deaths = first.deaths + second.deaths + third.deaths, other.deaths
    noted_llm.teardown()
    other_llm.teardown()

    assert isinstance(error, GenerationError)
    assert isinstance(error, WorkerLost)
    assert "ended 3 worker processes of 'noted', the last one" in str(error)
    assert error.failures[0].attempts == MAX_ATTEMPTS
    assert deaths == (MAX_ATTEMPTS, 0)

    assert texts(answers) == [name.upper() for name in names]
    assert (same.failed, elsewhere.failed) == ([], [])

    starts = noted(tmp_path, "began")
    at = [place for place, (name, _) in enumerate(starts) if name == "poison"]
    assert len(at) == MAX_ATTEMPTS
    assert starts[at[0]][1] == former, "the test wants it to begin beside the others"
    # Meanwhile the rest of the fleet worked, and nothing of its was hurt.
    between = Counter(name.split("-")[0] for name, _ in starts[at[0] : at[-1]])
    assert between["same"] > 0
    assert between["else"] > 0
    counts = began(tmp_path)
    assert {counts[name] for name in counts if "-" in name} == {1}
    assert max(counts[name] for name in names) <= MAX_ATTEMPTS
    assert set(ended(tmp_path)) >= set(names)


def test_a_host_that_kills_whatever_it_begins_fails_no_row_beside_a_sound_one(fleet: Fleet, tmp_path: Path) -> None:
    names = [f"row{number}" for number in range(4)]
    llm = connect(fleet)
    with Supervised(fleet, "noted", 1) as sound:
        wait_for_workers(fleet, 1)
        # While the sound one is busy, the bad one is the only one that is idle, after each start.
        long = llm.generate([{"input": "wait long"}])
        until(lambda: began(tmp_path)["long"] == 1, "the start of the long row")
        with Supervised(fleet, "noted", 1, is_bad=True) as bad:
            future = llm.generate([{"input": f"wait {name}"} for name in names])
            until(lambda: bad.deaths > MAX_ATTEMPTS or future.done(), "more deaths than would fail a row")
            let_go(tmp_path, [*names, "long"])
            answers = future.result(PATIENCE_S) + long.result(PATIENCE_S)
        assert sound.deaths == 0
    llm.teardown()
    assert texts(answers) == [name.upper() for name in [*names, "long"]]
    assert max(began(tmp_path).values()) <= MAX_ATTEMPTS


def test_rows_that_met_three_lost_hosts_are_all_answered(fleet: Fleet, tmp_path: Path) -> None:
    """Two processes are killed with many rows in them, and the host of the third falls silent with one row alone."""
    names = [f"row{number}" for number in range(64)]
    llm = connect(fleet)
    future = llm.generate([{"input": f"wait {name}"} for name in names])
    met = set(names)
    for company, fault in ((64, signal.SIGKILL), (8, signal.SIGKILL), (1, signal.SIGSTOP)):
        let_go(tmp_path, [name for name in names if name not in met])
        met = lose_a_worker_with(fleet, met, company, fault)
    start_worker(fleet, concurrency=64)
    let_go(tmp_path, names)
    answers = future.result(PATIENCE_S)
    llm.teardown()
    assert texts(answers) == [name.upper() for name in names]
    assert [began(tmp_path)[name] for name in met] == [4]


def lose_a_worker_with(fleet: Fleet, met: set[str], company: int, fault: signal.Signals) -> set[str]:
    """Start a worker and lose it when it has begun so many rows of those that met every fault. Returns which."""
    worker = start_worker(fleet, concurrency=64)
    until(lambda: len(met & begun_by(fleet.folder, worker.pid)) == company, "the start of rows")
    worker.send_signal(fault)
    return met & begun_by(fleet.folder, worker.pid)


def start_worker(fleet: Fleet, *, concurrency: int) -> subprocess.Popen[bytes]:
    given = environment(fleet.folder, concurrency=concurrency)
    return fleet.start_worker("noted", "--load", "noted:load", environment=given)


def begun_by(folder: Path, pid: int) -> set[str]:
    """The names of the rows that this process has begun."""
    return {name for name, one in noted(folder, "began") if one == pid}
