"""Tasks of distilabel 0.6, given to genpool as they are. Run by tests/test_distilabel.py in an environment of its own.

Prints what each gave as JSON: with a local LLM, and with a pool of the LLMs "a" and "b" at the address given.
"""

# Only that environment has distilabel.
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import json
import pickle
import sys
from typing import Any

import canned
from distilabel.tasks import EvolInstructTask, SelfInstructTask, TextGenerationTask, UltraFeedbackTask

from genpool import LLMPool, ProcessLLM

QUESTIONS = [{"input": "name a colour"}, {"input": "name a town"}]

text = TextGenerationTask(system_prompt="Be brief.", principles_distribution="balanced")
ultrafeedback = UltraFeedbackTask.for_overall_quality()
self_instruct = SelfInstructTask(num_instructions=2)
evol_instruct = EvolInstructTask()

GIVEN: dict[str, tuple[Any, list[dict[str, Any]]]] = {
    "text": (text, QUESTIONS),
    "ultrafeedback": (ultrafeedback, [{"input": "name a colour", "generations": ["red", "blue"]}]),
    "self_instruct": (self_instruct, QUESTIONS),
    "evol_instruct": (evol_instruct, QUESTIONS),
}


def local(task: Any, inputs: list[dict[str, Any]]) -> Any:
    llm = ProcessLLM(task, canned.load)
    try:
        return llm.generate(inputs, 1).result(60)
    finally:
        llm.teardown()


def pooled(task: Any, inputs: list[dict[str, Any]], address: str) -> Any:
    with LLMPool.connect(["a", "b"], address, task) as pool:
        with pickle.loads(pickle.dumps(pool)) as copied:
            assert type(copied.task) is type(task)
        return pool.submit(inputs, 2).result(60)


def main(address: str) -> None:
    results = {
        name: {"local": local(task, inputs), "pooled": pooled(task, inputs, address)}
        for name, (task, inputs) in GIVEN.items()
    }
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
