"""SIGTERM to a worker and to the broker: what runs is finished, nothing is computed twice; a second one is the end."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from fleet import PATIENCE_S, Fleet, until
from noted import began, ended, environment, noted

from genpool import LLMOutput, ProcessLLM

CONCURRENCY = 2
RUNNING = ["one", "two"]
QUEUED = [f"queued{number}" for number in range(10)]
ONCE = dict.fromkeys(RUNNING + QUEUED, 1)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(tmp_path) as fleet:
        # A row that is charged once fails at once: so none is.
        fleet.start_broker("--max-attempts", "1")
        yield fleet


def start_worker(fleet: Fleet) -> subprocess.Popen[bytes]:
    given = environment(fleet.folder, concurrency=CONCURRENCY)
    return fleet.start_worker("noted", "--load", "noted:load", environment=given)


def begin(fleet: Fleet, llm: ProcessLLM, *texts: str) -> Future[list[list[LLMOutput]]]:
    """Ask for rows, and wait until a worker is as busy as it can be."""
    future = llm.generate([{"input": text} for text in texts])
    until(lambda: len(began(fleet.folder)) == min(CONCURRENCY, len(texts)), "the start of the first rows")
    return future


def let_go(folder: Path) -> None:
    for name in RUNNING:
        (folder / f"{name}.go").touch()


def wait_for_states(fleet: Fleet, *states: str) -> None:
    def are_so(report: dict[str, Any]) -> bool:
        return sorted(one["state"] for llm in report["llms"] for one in llm["workers"]) == sorted(states)

    fleet.wait_for(are_so)


def names(future: Future[list[list[LLMOutput]]]) -> list[str]:
    return [str(row[0]["raw_output"]).split()[1].lower() for row in future.result(PATIENCE_S)]


WORDS = [*(f"wait {name}" for name in RUNNING), *(f"quick {name}" for name in QUEUED)]


def test_a_worker_finishes_what_it_runs_leaves_the_rest_to_others_and_says_goodbye(
    fleet: Fleet, llm: ProcessLLM, tmp_path: Path
) -> None:
    first = start_worker(fleet)
    future = begin(fleet, llm, *WORDS)
    first.terminate()
    wait_for_states(fleet, "draining")
    second = start_worker(fleet)
    # Those that it had not begun do not wait for it to end.
    until(lambda: ended(tmp_path).keys() == set(QUEUED), "the end of the other rows elsewhere")
    assert first.poll() is None
    let_go(tmp_path)
    assert first.wait(PATIENCE_S) == 0
    assert names(future) == RUNNING + QUEUED
    assert began(tmp_path) == ended(tmp_path) == ONCE
    places = dict(noted(tmp_path, "began"))
    assert places == {**dict.fromkeys(RUNNING, first.pid), **dict.fromkeys(QUEUED, second.pid)}
    assert f"{first.pid} of 'noted' is away: it was told to stop" in (tmp_path / "0-broker.log").read_text()
    wait_for_states(fleet, "ready")


def test_a_broker_that_is_stopped_ends_well_and_all_go_on_with_the_next(
    fleet: Fleet, llm: ProcessLLM, tmp_path: Path
) -> None:
    worker = start_worker(fleet)
    future = begin(fleet, llm, *WORDS)
    broker = fleet.processes[0]
    broker.terminate()
    assert broker.wait(PATIENCE_S) == 0
    # One row is finished while there is no broker, the other when there is one again.
    (tmp_path / "one.go").touch()
    until(lambda: ended(tmp_path)["one"], "the end of a row without a broker")
    fleet.start_broker("--max-attempts", "1")
    wait_for_states(fleet, "ready")
    let_go(tmp_path)
    assert names(future) == RUNNING + QUEUED
    assert began(tmp_path) == ended(tmp_path) == ONCE
    assert worker.poll() is None
    fleet.wait_for(lambda report: report["rows"] == 0)


def test_a_second_signal_ends_a_worker_at_once_even_while_its_engine_hangs(
    fleet: Fleet, llm: ProcessLLM, tmp_path: Path
) -> None:
    worker = start_worker(fleet)
    future = begin(fleet, llm, "hang one")
    worker.terminate()
    wait_for_states(fleet, "draining")
    assert worker.poll() is None, "it waits for its engine"
    worker.terminate()
    assert worker.wait(PATIENCE_S) == 128 + signal.SIGTERM
    fleet.wait_for(lambda report: (report["llms"][0]["queued"], report["llms"][0]["workers"]) == (1, []))
    assert future.cancel(), "the row is not charged for it, and waits for another worker"
    fleet.wait_for(lambda report: report["rows"] == 0)


def test_a_worker_that_is_killed_before_its_drain_is_over_charges_no_row(
    fleet: Fleet, llm: ProcessLLM, tmp_path: Path
) -> None:
    """As when a scheduler takes a host: SIGTERM, and a while later SIGKILL."""
    first = start_worker(fleet)
    future = begin(fleet, llm, "wait one")
    first.terminate()
    wait_for_states(fleet, "draining")
    first.kill()
    second = start_worker(fleet)
    until(lambda: began(tmp_path)["one"] == 2, "the row's second start")
    let_go(tmp_path)
    assert names(future) == ["one"]
    assert noted(tmp_path, "ended") == [("one", second.pid)]


def test_a_second_signal_ends_the_broker_at_once_and_all_go_on_with_the_next(
    fleet: Fleet, llm: ProcessLLM, tmp_path: Path
) -> None:
    start_worker(fleet)
    future = begin(fleet, llm, *WORDS)
    broker = fleet.processes[0]
    # Both signals are there when it looks, so that the second one comes before it is done with the first.
    broker.send_signal(signal.SIGSTOP)
    broker.send_signal(signal.SIGTERM)
    broker.send_signal(signal.SIGINT)
    broker.send_signal(signal.SIGCONT)
    assert broker.wait(PATIENCE_S) in (128 + signal.SIGTERM, 128 + signal.SIGINT)
    fleet.start_broker("--max-attempts", "1")
    let_go(tmp_path)
    assert names(future) == RUNNING + QUEUED
    assert began(tmp_path) == ended(tmp_path) == ONCE
