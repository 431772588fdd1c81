from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

import pytest

from genpool.tasks.output import empty_output, parsed_output, token_count, tokens_told
from genpool.tasks.text_generation import TextGenerationTask


class JSONTask(TextGenerationTask):
    def parse_output(self, output: str) -> Any:
        return json.loads(output)


def test_empty_output_has_the_four_keys() -> None:
    assert empty_output("m") == {"model_name": "m", "prompt_used": None, "raw_output": None, "parsed_output": None}


def test_what_a_task_reads() -> None:
    assert parsed_output(JSONTask(), '{"a": 1}') == {"a": 1}


@pytest.mark.parametrize("raw", ["{", None])
def test_a_parse_error_is_logged_and_gives_none(raw: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "genpool.tasks"):
        assert parsed_output(JSONTask(), raw) is None
    (line,) = caplog.messages
    assert line.startswith("JSONTask.parse_output raised ")


class InputReader(TextGenerationTask):
    def parse_output_of(self, input: Mapping[str, Any], output: str) -> Any:
        return f"{output} to {input['input']}"


def test_a_task_may_read_a_completion_by_its_input() -> None:
    assert parsed_output(InputReader(), "yes", {"input": "why"}) == "yes to why"
    assert parsed_output(InputReader(), "yes") == {"generations": "yes"}
    assert parsed_output(JSONTask(), "1", {"input": "why"}) == 1


def test_what_is_raised_by_the_input_is_logged_too(caplog: pytest.LogCaptureFixture) -> None:
    assert parsed_output(InputReader(), "yes", {}) is None
    assert "KeyError" in caplog.text


@pytest.mark.parametrize("told", [0, 1, 10**9], ids=str)
def test_a_count_of_tokens_is_what_was_told(told: int) -> None:
    assert token_count(told) == told


@pytest.mark.parametrize("told", [None, "3", 3.0, True, [], -1, 2**63, 2**64 - 1, 2**70], ids=str)
def test_what_nobody_can_have_counted_is_no_count_of_tokens(told: object) -> None:
    assert token_count(told) is None


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [({"n": 5}, 5), ({"n": float("nan")}, 0), ({}, 0), (None, 0), ([5], 0)],
    ids=repr,
)
def test_of_a_usage_that_tells_no_tokens_none_are_counted(usage: object, tokens: int) -> None:
    assert tokens_told(usage, "n") == tokens
