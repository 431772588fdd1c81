"""Links over which a message takes longer than a silence may last."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fleet import Fleet
from forwarder import Forwarder
from noted import ended, environment

from genpool import ProcessLLM
from genpool.protocol.session import SessionSettings

SLOW_BYTES_PER_S = 150_000

COUNTING = """
from genpool import LLM, TextGenerationTask

class Counting(LLM):
    def __init__(self):
        super().__init__(TextGenerationTask())
        self.calls = 0

    model_name = "counting"

    def _generate(self, inputs, num_generations=1):
        self.calls += 1
        output = {"raw_output": f"call {self.calls}, {len(inputs)} rows"}
        return [[output] * num_generations for _ in inputs]
"""


@pytest.fixture
def link(fleet: Fleet) -> Iterator[Forwarder]:
    forwarder = Forwarder(fleet.address, SLOW_BYTES_PER_S)
    yield forwarder
    forwarder.close()


def outputs_of(llm: ProcessLLM, words: list[str], generations: int) -> list[list[Any]]:
    try:
        rows = llm.generate([{"input": word} for word in words], generations, timeout=50).result()
    finally:
        llm.teardown()
    return [[output["raw_output"] for output in row] for row in rows]


def test_a_worker_gets_a_batch_that_takes_long_in_one_call(fleet: Fleet, link: Forwarder, tmp_path: Path) -> None:
    rows, heartbeat_s = 16, 6.0
    words = ["word " * 10_000] * rows
    # It hears nothing else for longer than it would wait.
    assert sum(map(len, words)) / SLOW_BYTES_PER_S > 0.7 * heartbeat_s
    (tmp_path / "counting.py").write_text(COUNTING)
    arguments = ("--load", "counting:Counting", "--batch-size", str(rows), "--heartbeat-timeout", str(heartbeat_s))
    fleet.start_worker("counting", *arguments, broker=link.address, environment={"PYTHONPATH": str(tmp_path)})
    fleet.wait_for(lambda report: [llm["capacity"] for llm in report["llms"]] == [rows])

    answers = outputs_of(ProcessLLM.connect("counting", broker=fleet.address), words, 1)

    assert answers == [["call 1, 16 rows"]] * rows
    assert link.connections == 1


def test_a_client_gets_an_answer_that_takes_long(fleet: Fleet, link: Forwarder, tmp_path: Path) -> None:
    generations = 32
    word = "quick far " + "word " * 8_000
    assert generations * len(word) / SLOW_BYTES_PER_S > SessionSettings().silence_s
    fleet.start_worker("noted", "--load", "noted:load", environment=environment(tmp_path, concurrency=1))

    answers = outputs_of(ProcessLLM.connect("noted", broker=link.address), [word], generations)

    assert answers == [[word.upper()] * generations]
    assert ended(tmp_path) == {"far": 1}
    assert link.connections == 1
