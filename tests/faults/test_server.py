"""The server behind an OpenAILLM goes away, has no quota left, or wants another key: never a row's fault."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chat import NO_MODEL, QUOTA, WRONG_KEY, ChatServer
from fleet import PATIENCE_S, Fleet, until
from inputs import inputs
from noted import environment
from written import written

pytest.importorskip("openai")

from genpool import LLMOutput, LLMPool, ProcessLLM

# Longer than any client waits for an LLM that nobody serves (60 s), so that it is seen that this is another case.
AWAY_S = 62.0

# An unwell LLM is tried every half minute in the end.
RECOVERY_S = 30.0 + PATIENCE_S


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer() as server:
        yield server


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(tmp_path) as fleet:
        # A row that is charged once fails at once: so none is.
        fleet.start_broker("--max-attempts", "1")
        yield fleet


@pytest.fixture
def llm(fleet: Fleet) -> Iterator[ProcessLLM]:
    llm = ProcessLLM.connect("served", broker=fleet.address)
    yield llm
    llm.teardown()


def start_worker(fleet: Fleet, server: ChatServer, *settings: str) -> None:
    pairs = [f"base_url={server.url}", "concurrency=4", *settings]
    arguments = [part for pair in pairs for part in ("--set", pair)]
    fleet.start_worker("served", "--engine", "openai", *arguments)


def answers(outputs: list[list[LLMOutput]]) -> list[str | None]:
    return [row[0]["raw_output"] for row in outputs]


def status(fleet: Fleet, *options: str) -> str:
    """What ``genpool status`` prints."""
    command = [sys.executable, "-m", "genpool.cli", "status", "--broker", fleet.address, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True).stdout


def worker_of(fleet: Fleet) -> dict[str, Any]:
    """What the broker says of the only worker."""
    fleet.wait_for(lambda report: report["llms"] and report["llms"][0]["workers"])
    (worker,) = [worker for llm in fleet.report()["llms"] for worker in llm["workers"]]
    return worker


def check_unwell(fleet: Fleet, reason: str) -> None:
    # Rows under way are tried for a while, each for itself, before they are handed back.
    until(lambda: (worker_of(fleet)["state"], worker_of(fleet)["running"]) == ("unwell", 0), "an unwell worker")
    worker = worker_of(fleet)
    assert reason in worker["reason"]
    assert (worker["credit"], worker["failed"]) == (0, 0)
    (told,) = json.loads(status(fleet, "--json"))["llms"]
    assert reason in told["workers"][0]["reason"]
    shown = status(fleet)
    assert "unwell" in shown
    assert reason in shown


def check_well(fleet: Fleet) -> None:
    until(lambda: worker_of(fleet)["state"] == "ready", "a worker that is ready")
    worker = worker_of(fleet)
    assert (worker["reason"], worker["failed"]) == ("", 0)


@pytest.mark.timeout(240)
def test_a_server_that_is_away_for_a_minute_fails_no_row_and_is_found_again(
    fleet: Fleet, server: ChatServer, llm: ProcessLLM
) -> None:
    start_worker(fleet, server)
    assert answers(llm.generate(inputs("before")).result(PATIENCE_S)) == ["BEFORE"]
    # Rows that the server has, and rows that wait for it.
    future = llm.generate(inputs(*(f"{'hold' if number < 4 else 'row'} {number}" for number in range(12))))
    until(lambda: len(server.held) == 4, "requests under way")
    server.go()
    gone = time.monotonic()
    check_unwell(fleet, "Connection error")
    time.sleep(gone + AWAY_S - time.monotonic())
    assert not future.done()
    check_unwell(fleet, "Connection error")
    server.holds = False
    server.come()
    expected = [f"{'HOLD' if number < 4 else 'ROW'} {number}" for number in range(12)]
    assert answers(future.result(RECOVERY_S)) == expected
    check_well(fleet)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (QUOTA, "429 You exceeded your current quota."),
        (WRONG_KEY, "401 Incorrect API key provided."),
        (NO_MODEL, "404 The model `m` does not exist."),
    ],
)
def test_a_server_that_refuses_everything_makes_the_worker_unwell_until_it_is_content(
    fleet: Fleet, server: ChatServer, llm: ProcessLLM, fault: tuple[int, dict[str, str]], reason: str
) -> None:
    start_worker(fleet, server)  # with its usual retries: none of these faults is worth one
    assert answers(llm.generate(inputs("before")).result(PATIENCE_S)) == ["BEFORE"]
    server.fault = fault
    future = llm.generate(inputs(*map(str, range(12))))
    check_unwell(fleet, reason)
    # One row at a time is tried while it is unwell, never all that the worker could run.
    tried = len(server.prompts)
    until(lambda: len(server.prompts) > tried, "a row that tries the server")
    assert len(server.prompts) == tried + 1
    assert not future.done()
    server.fault = None
    assert answers(future.result(PATIENCE_S)) == [str(number) for number in range(12)]
    check_well(fleet)


def test_an_llm_whose_server_stays_away_is_lost_for_a_call_that_says_so(
    fleet: Fleet, server: ChatServer, tmp_path: Path
) -> None:
    start_worker(fleet, server, "max_retries=0")
    fleet.start_worker("noted", "--load", "noted:load", environment=environment(tmp_path, concurrency=4))
    fleet.wait_for(lambda report: sum(one["capacity"] for one in report["llms"]) == 8)
    server.go()
    texts = [f"quick row{number}" for number in range(4)]
    with LLMPool.connect(["served", "noted"], broker=fleet.address) as pool:
        rows = pool.generate(inputs(*texts), 2, if_lost="redraw", lost_after_s=3, timeout=PATIENCE_S)
    assert [[one["model_name"] for one in row] for row in rows] == [["noted", "noted"]] * 4
    assert [[one["raw_output"] for one in row] for row in rows] == [[text.upper()] * 2 for text in texts]
    (states,) = [[one["state"] for one in llm["workers"]] for llm in fleet.report()["llms"] if llm["name"] == "served"]
    assert states == ["unwell"]


def test_a_key_that_is_wrong_at_the_start_may_be_corrected_in_its_file(
    fleet: Fleet, server: ChatServer, llm: ProcessLLM, tmp_path: Path
) -> None:
    server.key = "right"
    written(tmp_path / "key", "wrong")
    start_worker(fleet, server, f"api_key_file={tmp_path / 'key'}")
    future = llm.generate(inputs("row"))
    check_unwell(fleet, "401 Incorrect API key provided.")
    (tmp_path / "key").write_text("right")
    assert answers(future.result(PATIENCE_S)) == ["ROW"]
    check_well(fleet)


def test_a_key_that_is_exchanged_while_it_serves_is_read_again_from_its_file(
    fleet: Fleet, server: ChatServer, llm: ProcessLLM, tmp_path: Path
) -> None:
    server.key = "first"
    written(tmp_path / "key", "first")
    start_worker(fleet, server, f"api_key_file={tmp_path / 'key'}", "max_retries=0")
    assert answers(llm.generate(inputs("before")).result(PATIENCE_S)) == ["BEFORE"]
    server.key = "second"
    future = llm.generate(inputs("row"))
    check_unwell(fleet, "401 Incorrect API key provided.")
    (tmp_path / "key").write_text("second")
    assert answers(future.result(PATIENCE_S)) == ["ROW"]
    check_well(fleet)
