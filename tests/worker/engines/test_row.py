from __future__ import annotations

import threading
from typing import Any

import pytest

from genpool.protocol.errors import ConfigurationError, RowError
from genpool.tasks.output import LLMOutput
from genpool.tasks.text_generation import TextGenerationTask
from genpool.worker.engines.row import RowEngine, check_json, check_positive, sampling, seed_at
from genpool.worker.llm import RowCall


class Scripted(RowEngine):
    """Answers with the input; fails on "bad"; waits for its cancel flag on "wait"."""

    _rows_at_once = 3

    def __init__(self) -> None:
        super().__init__(TextGenerationTask())
        self.waiting = threading.Event()
        self.cancelled: list[str] = []

    @property
    def model_name(self) -> str:
        return "scripted"

    def generate_row(self, call: RowCall) -> list[LLMOutput]:
        assert isinstance(call.content, dict)
        text = call.content["input"]
        if text == "bad":
            assert self.waiting.wait(10)
            raise RowError("bad")
        if text == "wait":
            self.waiting.set()
            assert call.cancelled.wait(10)
            self.cancelled.append(text)
        return [self._output(call, text, text, None, None) for _ in range(call.num_generations)]


def test_generate_is_made_of_rows() -> None:
    result: Any = Scripted().generate([{"input": str(k)} for k in range(10)], 2)
    assert [[output["raw_output"] for output in outputs] for outputs in result] == [[str(k)] * 2 for k in range(10)]


def test_no_inputs_are_no_work() -> None:
    assert Scripted().generate([]) == []


def test_one_failing_row_stops_the_others() -> None:
    llm = Scripted()
    with pytest.raises(RowError, match="bad"):
        llm.generate([{"input": "bad"}, {"input": "wait"}, {"input": "later"}])
    assert llm.cancelled == ["wait"]


def test_an_output_says_what_the_engine_told() -> None:
    output = Scripted()._output(RowCall({"input": "a"}), "a", "b", "stop", {"prompt_tokens": 1, "total_tokens": 3})
    assert output == {
        "model_name": "scripted",
        "prompt_used": "a",
        "raw_output": "b",
        "parsed_output": {"generations": "b"},
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 1},
    }


def test_options_go_before_settings_and_none_is_left_out() -> None:
    names = {"max_new_tokens": "max_tokens", "top_p": "top_p", "seed": "seed", "stop": "stop"}
    settings = {"max_new_tokens": 8, "top_p": 0.5, "stop": None}
    assert sampling(names, settings, {"max_new_tokens": 2, "top_p": None}) == {"max_tokens": 2}


@pytest.mark.parametrize(
    ("seed", "position", "expected"), [(None, 3, None), (5, 3, 8), (2**31 - 1, 1, 0), (-1, 0, 2**31 - 1)]
)
def test_seeds_stay_within_31_bits(seed: int | None, position: int, expected: int | None) -> None:
    assert seed_at(seed, position) == expected


@pytest.mark.parametrize(
    ("value", "sentence"), [("a b \udc80", "surrogate, .* after .*a b "), (float("inf"), "JSON"), (object(), "JSON")]
)
def test_what_no_server_could_read_is_found(value: object, sentence: str) -> None:
    with pytest.raises(RowError, match=sentence):
        check_json({"value": value})


def test_any_text_without_surrogates_can_be_sent() -> None:
    check_json({"value": "naïve \U0001f600 \x00"})


@pytest.mark.parametrize("value", [0, -1.5])
def test_only_given_numbers_must_be_positive(value: float) -> None:
    check_positive({"a": None, "b": 1, "c": value}, ["a", "b"])
    with pytest.raises(ConfigurationError, match="c must be above 0"):
        check_positive({"c": value}, ["c"])
