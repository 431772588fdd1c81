"""The columns of a generated dataset."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

from genpool import TextGenerationTask
from genpool.client.column import Columns, encoded, output_row, replaced
from genpool.client.link import Link
from genpool.protocol.messages import LLMInfo
from genpool.tasks.base import describe
from genpool.tasks.output import LLMOutput, empty_output


def output(parsed: Any, raw: str = "raw", model: str = "m") -> LLMOutput:
    return LLMOutput(model_name=model, prompt_used="p", raw_output=raw, parsed_output=parsed)


def test_usage_has_a_column_where_it_was_counted() -> None:
    counted = output("x")
    counted["usage"] = {"prompt_tokens": 3, "completion_tokens": 5}
    row = output_row({}, [output("x"), counted], ["generations"])
    assert row["generation_usage"] == [None, {"prompt_tokens": 3, "completion_tokens": 5}]
    assert output_row({}, [counted], ["rating"], are_labels=True)["labelling_usage"] == counted["usage"]
    assert "generation_usage" not in output_row({}, [output("x")], ["generations"])
    assert replaced({"generation_usage": 1}, ["generations"]) == ["generation_usage"]


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


def test_what_a_task_reads_as_an_error_is_no_failure_of_the_row() -> None:
    outputs = [output({"error": None, "score": 1}), output({"error": "none found"})]
    row = output_row({}, outputs, ["parsed_error", "score"])
    assert row["parsed_error"] == [None, "none found"]
    assert "error" not in row
    assert output_row({}, [output(None)], ["parsed_error"], "it failed")["error"] == "it failed"
    task = SimpleNamespace(input_args_names=["input"], output_args_names=["error", "score"])
    assert Columns(cast(Any, task), cast(Link, None), []).made() == ["parsed_error", "score"]


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


def told(**tasks: dict[str, Any]) -> dict[str, LLMInfo]:
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


def test_the_columns_of_a_single_label_hold_it_itself() -> None:
    label = output({"rating": [4.0, 2.0], "rationale": ["good", None]}, "Output 1: …", "judge")
    given = {"input": "i", "generations": ["a", "b"], "generation_model": ["x", "y"]}
    assert output_row(given, [label], ["rating", "rationale"], are_labels=True) == {
        **given,
        "rating": [4.0, 2.0],
        "rationale": ["good", None],
        "labelling_model": "judge",
        "labelling_prompt": "p",
        "raw_labelling_response": "Output 1: …",
    }


def test_the_columns_of_several_labels_are_lists_of_them() -> None:
    row = output_row({}, [output({"rating": [4.0]}, "one", "x"), output(None, "two", "y")], ["rating"], are_labels=True)
    assert row["rating"] == [[4.0], None]
    assert (row["labelling_model"], row["raw_labelling_response"]) == (["x", "y"], ["one", "two"])


def test_a_label_that_is_not_there_is_none() -> None:
    row = output_row({"generations": ["a"]}, [empty_output("x")], ["rating"], "it failed", are_labels=True)
    assert (row["rating"], row["labelling_model"], row["generations"]) == (None, "x", ["a"])


def test_a_label_that_is_a_list_of_dicts_is_one_of_lists() -> None:
    parsed = [{"rating": 4.0, "rationale": "good"}, {"rating": 1.0}]
    row = output_row({}, [output(parsed)], ["rating", "rationale"], are_labels=True)
    assert (row["rating"], row["rationale"]) == ([4.0, 1.0], ["good", None])


def test_a_label_without_a_name_leaves_the_generations_alone() -> None:
    row = output_row({"generations": ["a"]}, [output(7)], ["label"], are_labels=True)
    assert (row["label"], row["generations"]) == (7, ["a"])


def test_what_labels_take_the_place_of() -> None:
    earlier = {"generations": ["a"], "generation_model": ["x"], "labelling_model": "old", "rating": [1.0]}
    assert replaced(earlier, ["rating"], are_labels=True) == ["rating", "labelling_model"]


class Judge(TextGenerationTask):
    __type__ = "labelling"


def test_whether_they_are_labels_is_told_by_the_task_given_or_the_llms() -> None:
    assert Columns(Judge(), cast(Link, SimpleNamespace(fleet=None)), ["a"]).are_labels
    assert not Columns(TextGenerationTask(), cast(Link, SimpleNamespace(fleet=None)), ["a"]).are_labels
    link = SimpleNamespace(fleet=None)
    columns = Columns(None, cast(Link, link), ["a"])
    assert not columns.are_labels
    link.fleet = told(a={**describe(Judge()), "output_args_names": []})
    assert columns.are_labels
    assert columns.made() == ["label"]
