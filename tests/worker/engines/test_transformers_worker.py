# ruff: noqa: E402 - without torch, what follows cannot be imported
"""The real commands with TransformersLLM: a broker, a worker with each kind of batching, and clients."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from extras import require

require("torch")
require("transformers")

import pytest
from fleet import PATIENCE_S, Fleet, until
from inputs import inputs
from tiny_model import CONTEXT

from genpool import LLMPool, ProcessLLM, TextGenerationTask
from genpool.protocol.errors import ConfigurationError, GenerationError

# torch and transformers take a while to import, and two processes do it.
START_S = 120.0
NAMES = ["static", "continuous"]
# A call that runs for as long as the context lets it, many times over.
LONG = {"max_new_tokens": CONTEXT}
CAPACITIES = {"static": 4, "continuous": 64}
WORKER = ["--engine", "transformers", "--set", "device=cpu", "--set", "n_threads=1", "--set", "max_new_tokens=12"]
TASK = TextGenerationTask(system_prompt="be brief")


@pytest.fixture(scope="module")
def fleet(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with Fleet(tmp_path_factory.mktemp("fleet")) as fleet:
        fleet.start_broker()
        model = ["--model", str(tiny_model)]
        fleet.start_worker("static", *WORKER, *model, "--batch-size", "4")
        continuous = ["--set", "batching=continuous", "--set", "cache_tokens=4000"]
        fleet.start_worker("continuous", *WORKER, *model, *continuous)
        until(lambda: capacities(fleet.report()) == CAPACITIES, "the start of both workers", START_S)
        yield fleet
        for name, process in zip(NAMES, fleet.processes[1:], strict=False):
            process.terminate()
            assert process.wait(PATIENCE_S) == 0, f"the drain of {name}"
        for log in fleet.folder.glob("*-worker.log"):
            assert not re.findall(r".*(?:it/s|Warning|Traceback).*", log.read_text())


@pytest.mark.timeout(180)
def test_both_kinds_make_the_same_greedy_outputs_with_the_calls_options(fleet: Fleet) -> None:
    with LLMPool.connect(NAMES, broker=fleet.address, task=TASK) as pool:
        texts = [f"name a town {'red ' * k}" for k in range(10)]
        options = {"temperature": 0, "max_new_tokens": 7}
        rows = pool.generate(inputs(*texts), num_generations=2, generation_kwargs=options, timeout=PATIENCE_S)
        for text, row in zip(texts, rows, strict=True):
            first, second = row
            assert first["raw_output"] == second["raw_output"]
            assert first["prompt_used"][1]["content"] == text
            assert [output.get("usage", {})["completion_tokens"] for output in row] == [7, 7]
            assert first["parsed_output"] == {"generations": first["raw_output"]}


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", NAMES)
def test_a_row_that_is_too_long_fails_and_the_rest_of_its_batch_does_not(fleet: Fleet, name: str) -> None:
    llm = ProcessLLM.connect(name, broker=fleet.address, task=TASK)
    try:
        with pytest.raises(GenerationError, match="leaves no room for an answer") as caught:
            llm.generate(inputs("a", "red " * CONTEXT, "b", "c")).result(PATIENCE_S)
        assert list(caught.value.failures) == [1]
        assert [len(outputs) for outputs in caught.value.partial] == [1, 0, 1, 1]
    finally:
        llm.teardown()


@pytest.mark.timeout(180)
def test_a_seed_reaches_the_rows_of_a_batch(fleet: Fleet) -> None:
    llm = ProcessLLM.connect("static", broker=fleet.address, task=TASK)
    try:
        calls = [llm.generate(inputs("a", "a", "a"), seed=seed).result(PATIENCE_S) for seed in (7, 7, 8)]
        texts = [[row[0]["raw_output"] for row in rows] for rows in calls]
        assert texts[0] == texts[1]
        assert texts[0] != texts[2]
        assert len(set(texts[0])) == 3
    finally:
        llm.teardown()


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", NAMES)
def test_a_cancelled_call_gives_its_places_back(fleet: Fleet, name: str) -> None:
    llm = ProcessLLM.connect(name, broker=fleet.address, task=TASK)
    try:
        future: Future[Any] = llm.generate(inputs("a", "b"), num_generations=200, generation_kwargs=LONG)
        fleet.wait_for(lambda report: running(report, name) == 2)
        assert future.cancel()
        fleet.wait_for(lambda report: (report["rows"], running(report, name)) == (0, 0))
        assert len(llm.generate(inputs("a")).result(PATIENCE_S)) == 1
    finally:
        llm.teardown()


def capacities(report: dict[str, Any]) -> dict[str, int]:
    return {llm["name"]: llm["capacity"] for llm in report["llms"]}


def running(report: dict[str, Any], name: str) -> int:
    return sum(worker["running"] for llm in report["llms"] if llm["name"] == name for worker in llm["workers"])


@pytest.mark.timeout(180)
def test_an_option_that_the_engine_does_not_heed_is_refused_before_anything_is_sent(fleet: Fleet) -> None:
    llm = ProcessLLM.connect("continuous", broker=fleet.address, task=TASK)
    try:
        assert llm.model_name == "tiny"
        with pytest.raises((ConfigurationError, GenerationError), match="repetition_penalty"):
            llm.generate(inputs("a"), generation_kwargs={"repetition_penalty": 1.1}).result(PATIENCE_S)
    finally:
        llm.teardown()


@pytest.mark.timeout(180)
def test_a_missing_model_ends_the_worker_with_a_sentence(fleet: Fleet, tmp_path: Path) -> None:
    process = fleet.start_worker("absent", *WORKER, "--model", str(tmp_path / "absent"))
    assert process.wait(START_S) == 2
    said = (fleet.folder / "3-worker.log").read_text()
    assert f"there is no model folder at {tmp_path / 'absent'}" in said
