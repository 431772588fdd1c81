"""A list that is longer than its LLM needs at once: most of it waits, packed, while the fleet or its caller breaks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from fleet import PATIENCE_S, Fleet, until
from noted import began, ended, start_workers

from genpool import ProcessLLM
from genpool.protocol.errors import Closed, GenerationError

CONCURRENCY = 8
ROWS = 2000


@pytest.fixture(autouse=True)
def workers(fleet: Fleet) -> None:
    start_workers(fleet, 2, CONCURRENCY)


def words(word: str = "quick") -> list[str]:
    return [f"{word} row{number}" for number in range(ROWS)]


def inputs(given: list[str]) -> list[dict[str, str]]:
    return [{"input": one} for one in given]


@pytest.mark.timeout(90)
def test_every_row_is_answered_once_and_in_order_though_the_broker_is_killed(
    fleet: Fleet, llm: ProcessLLM, tmp_path: Path
) -> None:
    future = llm.generate(inputs(words("sleep:0.005")), timeout=80)
    until(lambda: len(ended(tmp_path)) > 100, "the end of some rows")
    fleet.processes[0].kill()
    fleet.processes[0].wait()
    fleet.start_broker()
    assert [row[0]["raw_output"] for row in future.result()] == [word.upper() for word in words("sleep:0.005")]
    assert set(began(tmp_path).values()) == {1}


def test_all_that_is_left_fails_when_its_llm_is_torn_down(fleet: Fleet, llm: ProcessLLM, tmp_path: Path) -> None:
    future = llm.generate(inputs(words("sleep:0.01")))
    until(lambda: len(ended(tmp_path)) > 100, "the end of some rows")
    llm.teardown()
    with pytest.raises(GenerationError) as raised:
        future.result(PATIENCE_S)
    assert isinstance(raised.value, Closed)
    finished = sum(bool(outputs) for outputs in raised.value.partial)
    assert 0 < finished < ROWS
    assert Counter(one.kind for one in raised.value.failures.values()) == {Closed: ROWS - finished}


def test_a_cancelled_list_begins_nothing_more(fleet: Fleet, llm: ProcessLLM, tmp_path: Path) -> None:
    future = llm.generate(inputs(words("sleep:0.01")))
    until(lambda: len(ended(tmp_path)) > 100, "the end of some rows")
    assert future.cancel()
    fleet.wait_for(lambda report: report["rows"] == 0)
    at_the_end = len(began(tmp_path))
    assert at_the_end < ROWS
    assert [row[0]["raw_output"] for row in llm.generate(inputs(["quick next"])).result(PATIENCE_S)] == ["QUICK NEXT"]
    assert len(began(tmp_path)) == at_the_end + 1
