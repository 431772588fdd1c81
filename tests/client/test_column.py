"""The columns of a generated dataset."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

from genpool import TextGenerationTask
from genpool.client.column import Columns, encoded, output_row, replaced
from genpool.client.link import Link
from genpool.protocol.messages import LLMInfo
from genpool.tasks.output import LLMOutput, empty_output


def output(parsed: Any, raw: str = "raw", model: str = "m") -> LLMOutput:
    return LLMOutput(model_name=model, prompt_used="p", raw_output=raw, parsed_output=parsed)


def test_a_row_has_the_inputs_columns_and_a_list_entry_for_each_generation() -> None:
    outputs = [output({"generations": "one"}, "one", "x"), output({"generations": "two"}, "two", "y")]
    assert output_row({"input": "i", "id": 7}, outputs, ["generations"]) == {
        "input": "i",
        "id": 7,
        "generations": ["one", "two"],
        "generation_model": ["x", "y"],
        "generation_prompt": ["p", "p"],
        "raw_generation_responses": ["one", "two"],
    }


def test_what_is_not_there_is_none_and_keeps_its_place() -> None:
    outputs = [empty_output("x"), output({"generations": "two"}), output(None, "unreadable")]
    row = output_row({}, outputs, ["generations"], "it failed")
    assert row["generations"] == [None, "two", None]
    assert row["raw_generation_responses"] == [None, "raw", "unreadable"]
    assert row["error"] == "it failed"


def test_another_tasks_results_have_columns_of_their_names() -> None:
    outputs = [output({"score": 1}), output({"score": 2, "why": "so"})]
    row = output_row({}, outputs, ["score", "rank"])
    assert (row["score"], row["why"], row["rank"]) == ([1, 2], [None, "so"], [None, None])
    assert "generations" not in row


def test_a_parsed_output_that_is_no_dict_goes_to_generations() -> None:
    assert output_row({}, [output("text"), output(["a"])], ["generations"])["generations"] == ["text", ["a"]]


def test_what_is_generated_takes_the_place_of_an_earlier_runs_columns() -> None:
    earlier = {"input": "i", "generations": ["old"], "generation_model": ["old"], "error": "it had failed"}
    row = output_row(earlier, [output({"generations": "new"})], ["generations"])
    assert row["generations"] == ["new"]
    assert row["generation_model"] == ["m"]
    assert "error" not in row
    assert replaced(earlier, ["generations"]) == ["generations", "generation_model", "error"]


def test_a_column_that_json_cannot_hold_costs_no_other() -> None:
    row = output_row({"input": "i"}, [output({"generations": {(1, 2): 3}}, "kept")], ["generations"], "first")
    line, problem = encoded(row)
    written = json.loads(line)
    assert written["generations"] == [None]
    assert written["raw_generation_responses"] == ["kept"]
    assert problem.startswith("the column 'generations' cannot be written as JSON")
    assert written["error"] == f"first; {problem}"


def told(**tasks: dict[str, list[str]]) -> dict[str, LLMInfo]:
    return {name: LLMInfo(name, [""], task, [], 1, 0, 0, 1) for name, task in tasks.items()}


def test_the_columns_of_a_given_task_are_known_at_once() -> None:
    columns = Columns(TextGenerationTask(), cast(Link, SimpleNamespace(fleet=None)), ["a"])
    assert columns.are_known
    assert (columns.needed(), columns.made()) == (["input"], ["generations"])


def test_without_a_task_they_are_what_the_llms_have_told_by_now() -> None:
    link = SimpleNamespace(fleet=None)
    columns = Columns(None, cast(Link, link), ["a", "b"])
    assert not columns.are_known
    assert (columns.needed(), columns.made()) == ([], ["generations"])
    link.fleet = told(a={"input_args_names": ["input"], "output_args_names": ["score"]}, b={})
    assert not columns.are_known
    assert (columns.needed(), columns.made()) == (["input"], ["score"])
    link.fleet = told(a={"input_args_names": ["x", "y"], "output_args_names": []}, b={"input_args_names": ["y"]})
    assert columns.are_known
    assert columns.needed() == ["x", "y"]
    link.fleet = {}
    assert columns.needed() == ["x", "y"]
