"""A broker that is killed (``kill -9``) in mid-call and started again on the same address."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from fleet import Fleet, until
from noted import began, ended, start_workers

from genpool import ProcessLLM

CONCURRENCY = 4


@pytest.fixture(autouse=True)
def workers(fleet: Fleet) -> None:
    start_workers(fleet, 2, CONCURRENCY)


def test_once_and_the_workers_compute_on_and_hand_over_what_they_hold(
    fleet: Fleet, llm: ProcessLLM, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "genpool.client")
    running = [f"running{number}" for number in range(2 * CONCURRENCY)]
    queued = [f"queued{number}" for number in range(20)]
    words = [f"wait {name}" for name in running] + [f"quick {name}" for name in queued]
    future = llm.generate([{"input": word} for word in words], timeout=50)
    until(lambda: len(began(tmp_path)) == len(running), "the start of the first rows")

    fleet.processes[0].kill()
    for name in running[::2]:
        (tmp_path / f"{name}.go").touch()
    until(lambda: ended(tmp_path).keys() == set(running[::2]), "the end of rows without a broker")
    until(lambda: f"waiting for the broker at {fleet.address}" in caplog.text, "the client's word that it waits")
    assert f"lost the broker at {fleet.address}" in caplog.text
    assert "is there, after" not in caplog.text

    fleet.start_broker()
    until(lambda: f"the broker at {fleet.address} is there, after" in caplog.text, "the client's word that it is back")
    for name in running:
        (tmp_path / f"{name}.go").touch()
    assert [row[0]["raw_output"] for row in future.result()] == [word.upper() for word in words]
    once = dict.fromkeys(running + queued, 1)
    assert began(tmp_path) == once
    assert ended(tmp_path) == once


@pytest.mark.timeout(120)
def test_five_times_in_a_row_and_every_row_is_computed_and_answered_once(
    fleet: Fleet, llm: ProcessLLM, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "genpool.client")
    words = [f"sleep:0.1 row{number}" for number in range(300)]
    told: list[int] = []
    future = llm.generate(
        [{"input": word} for word in words],
        timeout=100,
        progress_callback_func=lambda advance: told.append(advance),
    )
    broker = fleet.processes[0]
    for kill in range(5):
        until(lambda kill=kill: len(ended(tmp_path)) >= 50 * kill + 20, "the end of some rows")
        assert not future.done()
        broker.kill()
        broker.wait()
        broker = fleet.start_broker()

    assert [row[0]["raw_output"] for row in future.result()] == [word.upper() for word in words]
    assert sum(told) == len(words)
    once = {word.split()[1]: 1 for word in words}
    assert began(tmp_path) == once
    assert ended(tmp_path) == once
    assert caplog.text.count("lost the broker") == caplog.text.count("is there, after") == 5
