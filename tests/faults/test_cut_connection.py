"""Connections cut in mid-stream by a TCP forwarder, both ends alive, while thousands of rows pass."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import Fleet
from forwarder import Direction, Forwarder

from genpool import ProcessLLM

ROWS = 4000

# How many bytes all rows are, on their way to the worker and back.
INPUTS = ROWS * 180
ANSWERS = ROWS * 850

# Answers with 600 characters, and notes each row that it computes.
COUNTING = """
import os
from genpool import LLM, TextGenerationTask

class Counting(LLM):
    @property
    def model_name(self):
        return "counting"

    def _generate(self, inputs, num_generations=1):
        with open(os.environ["COMPUTED"], "a") as file:
            file.write("".join(row["input"].split()[0] + "\\n" for row in inputs))
        answer = lambda row: {"model_name": "counting", "prompt_used": None, "raw_output": row["input"].upper(),
                              "parsed_output": "x" * 600}
        return [[answer(row)] * num_generations for row in inputs]

def load():
    return Counting(TextGenerationTask())
"""


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(tmp_path) as fleet:
        fleet.start_broker("--worker-grace", "5")
        yield fleet


@pytest.fixture
def forwarder(fleet: Fleet) -> Iterator[Forwarder]:
    forwarder = Forwarder(fleet.address)
    yield forwarder
    forwarder.close()


def start_worker(fleet: Fleet, tmp_path: Path, broker: str) -> None:
    (tmp_path / "counting.py").write_text(COUNTING)
    environment = {"COMPUTED": str(tmp_path / "computed"), "PYTHONPATH": str(tmp_path)}
    fleet.start_worker(
        "counting", "--load", "counting:load", "--batch-size", "8", broker=broker, environment=environment
    )


def plan_cuts(forwarder: Forwarder, direction: Direction, count: int, *, carried: int) -> None:
    """``count`` cuts, at random places so far apart that all of them happen while ``carried`` bytes pass."""
    chance = random.Random(count)
    for _ in range(count):
        forwarder.cut_after(chance.randrange(2_000, carried // 50 - 2_000), direction)


def run_and_check(fleet: Fleet, tmp_path: Path, client_broker: str) -> None:
    inputs = [{"input": f"{number} " + "word " * 30} for number in range(ROWS)]
    llm = ProcessLLM.connect("counting", broker=client_broker)
    try:
        outputs = llm.generate(inputs, timeout=50).result()
    finally:
        llm.teardown()
    assert [row[0]["raw_output"] for row in outputs] == [given["input"].upper() for given in inputs]
    computed = Counter((tmp_path / "computed").read_text().split())
    assert len(computed) == ROWS
    assert set(computed.values()) == {1}, "a cut must not repeat what was finished"
    # Nothing is left: no row waits, and the worker's credit is whole.
    fleet.wait_for(lambda report: report["rows"] == 0 and report["llms"][0]["workers"][0]["unsettled"] == 0)
    (worker,) = fleet.report()["llms"][0]["workers"]
    assert (worker["running"], worker["credit"]) == (0, 1)


@pytest.mark.parametrize("count", [1, 50])
@pytest.mark.parametrize("direction", ["up", "down"])
def test_the_workers_connection(
    fleet: Fleet, forwarder: Forwarder, tmp_path: Path, direction: Direction, count: int
) -> None:
    plan_cuts(forwarder, direction, count, carried=ANSWERS if direction == "up" else INPUTS)
    start_worker(fleet, tmp_path, forwarder.address)
    run_and_check(fleet, tmp_path, fleet.address)
    assert forwarder.cuts_made == count


@pytest.mark.parametrize("count", [1, 50])
@pytest.mark.parametrize("direction", ["up", "down"])
def test_the_clients_connection(
    fleet: Fleet, forwarder: Forwarder, tmp_path: Path, direction: Direction, count: int
) -> None:
    plan_cuts(forwarder, direction, count, carried=ANSWERS if direction == "down" else INPUTS)
    start_worker(fleet, tmp_path, fleet.address)
    run_and_check(fleet, tmp_path, forwarder.address)
    assert forwarder.cuts_made == count
