"""The ready-made tasks on LLMs that are loaded already: from Python, and by name on the command line."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from echo import command
from extras import require
from fleet import PATIENCE_S, Fleet

from genpool import ChatTask, LLMPool, PreferenceTask, ProcessLLM, StructuredTask

HERE = str(Path(__file__).parent)

# Nothing that a model would say by itself.
SCHEMA = {
    "type": "object",
    "properties": {"qz": {"enum": [17]}, "colour": {"enum": ["mauve", "puce"]}},
    "required": ["qz", "colour"],
    "additionalProperties": False,
}

LABELLED = {"input": "Say it.", "generations": ["one two three", "one", "one two"]}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Serves "a" and "b", which answer and judge, and "labeller", whose own task it is to judge."""
    with Fleet(tmp_path_factory.mktemp("fleet")) as fleet:
        fleet.start_broker()
        own_task = {"labeller": ["--task", "preference"]}
        for name in ("a", "b", "labeller"):
            environment = {"MODEL": f"model-{name}", "PYTHONPATH": HERE}
            fleet.start_worker(name, "--load", "judging:load", *own_task.get(name, []), environment=environment)
        fleet.wait_for(lambda report: sum(llm["capacity"] for llm in report["llms"]) == 3)
        yield fleet


def test_a_chat_goes_on_with_each_llm(fleet: Fleet) -> None:
    chat = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    pool = LLMPool.connect(["a", "b"], fleet.address, ChatTask("Be kind."))
    ((one, other),) = pool.submit([{"messages": [*chat, {"role": "user", "content": "Say it."}]}], 2).result(PATIENCE_S)
    pool.teardown()
    assert (one["model_name"], other["model_name"]) == ("model-a", "model-b")
    assert one["parsed_output"] == {"generations": {"role": "assistant", "content": "it."}}
    assert [message["role"] for message in one["prompt_used"]] == ["system", "user", "assistant", "user"]


@pytest.mark.parametrize("name", ["a", "labeller"])
def test_each_generation_gets_its_own_rating(fleet: Fleet, name: str) -> None:
    """Where the client has the task, and where the worker has it."""
    llm = ProcessLLM.connect(name, fleet.address, PreferenceTask() if name == "a" else None)
    rows = [{**LABELLED, "input": f"Say {number}."} for number in range(20)]
    outputs = llm.submit(rows).result(PATIENCE_S)
    llm.teardown()
    assert {tuple(output["parsed_output"]["rating"]) for (output,) in outputs} == {(3, 1, 2)}
    assert outputs[0][0]["parsed_output"]["rationale"] == ["It has 3.", "It has 1.", "It has 2."]
    assert len({output["raw_output"] for (output,) in outputs}) > 1, "the judge sees them in several orders"


def generate(fleet: Fleet, folder: Path, rows: list[dict[str, Any]], *arguments: str) -> list[dict[str, Any]]:
    """What ``genpool generate`` writes for ``rows``."""
    source, target = folder / "in.jsonl", folder / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = subprocess.run(
        command("generate", "-i", str(source), "-o", str(target), "--quiet", *arguments),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env={**os.environ, "GENPOOL_BROKER": fleet.address},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in target.read_text().splitlines()]


@pytest.mark.parametrize("arguments", [("--llm", "a", "--task", "preference"), ("--llm", "labeller")])
def test_a_labelling_run_writes_the_columns_of_labels(fleet: Fleet, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    given = {**LABELLED, "generation_model": ["x", "y", "z"]}
    (row,) = generate(fleet, tmp_path, [given], *arguments)
    assert {name: row[name] for name in given} == given
    assert row["rating"] == [3, 1, 2]
    assert row["rationale"] == ["It has 3.", "It has 1.", "It has 2."]
    assert row["labelling_model"] == f"model-{arguments[1]}"
    assert row["raw_labelling_response"].startswith("Output 1:")
    assert row["labelling_prompt"]
    assert "raw_generation_responses" not in row


def test_several_judges_give_lists_of_labels(fleet: Fleet, tmp_path: Path) -> None:
    (row,) = generate(fleet, tmp_path, [LABELLED], "--llm", "a", "--llm", "b", "-n", "2", "--task", "preference")
    assert row["labelling_model"] == ["model-a", "model-b"]
    assert row["rating"] == [[3, 1, 2]] * 2


def test_chats_by_name(fleet: Fleet, tmp_path: Path) -> None:
    given = {"messages": [{"role": "user", "content": "Say it."}]}
    (row,) = generate(fleet, tmp_path, [given], "--llm", "a", "--task", "chat", "--system-prompt", "Be kind.")
    assert row["generations"] == [{"role": "assistant", "content": "it."}]
    assert row["generation_prompt"][0][0] == {"role": "system", "content": "Be kind."}


def test_a_schema_is_enforced_by_a_real_engine_that_is_loaded_already(smollm2_path: Path, tmp_path: Path) -> None:
    """From the first row on, when the client does not know yet what the LLM can do."""
    require("jsonschema")
    engine = ("--engine", "llamacpp", "--model", str(smollm2_path), "--set", "n_ctx=1024", "--set", "n_threads=1")
    with Fleet(tmp_path) as fleet:
        fleet.start_broker()
        fleet.start_worker("real", *engine, "--set", "temperature=1.5")
        llm = ProcessLLM.connect("real", fleet.address, StructuredTask(SCHEMA))
        outputs = llm.submit([{"input": text} for text in ("Name a colour.", "Hello!")], 3).result(PATIENCE_S)
        llm.teardown()
    answers = [output["parsed_output"] for row in outputs for output in row]
    assert len(answers) == 6
    assert all(answer["generations"]["qz"] == 17 for answer in answers)
