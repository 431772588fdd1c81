from __future__ import annotations

import math
from typing import Any

import pytest

from genpool.worker.engines.completion import Completion, Sampling, Vocabulary, stop_position, stop_window

GIVEN: dict[str, Any] = {
    "max_new_tokens": 8,
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 5,
    "repetition_penalty": 1.1,
    "stop": None,
}

END, PADDING = 2, 0

# A letter for each token: 3 is "a".
letters = Vocabulary(
    lambda tokens: "".join(chr(ord("a") + token - 3) for token in tokens if token > END), {END}, PADDING
)


def test_sampling_is_read() -> None:
    assert Sampling.read(GIVEN) == Sampling(8, 0.5, 0.9, 5, 1.1, ())
    assert Sampling.read({**GIVEN, "stop": "."}).stop == (".",)
    assert Sampling.read({**GIVEN, "stop": ["a", "b"]}).stop == ("a", "b")
    assert not Sampling.read(GIVEN).is_greedy
    assert Sampling.read({**GIVEN, "temperature": 0}).is_greedy


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("max_new_tokens", 0, "max_new_tokens must be a whole number of at least 1, got 0"),
        ("max_new_tokens", 1.5, "max_new_tokens must be a whole number"),
        ("max_new_tokens", True, "max_new_tokens must be a whole number"),
        ("temperature", -0.1, "temperature must be a number of at least 0, got -0.1"),
        ("temperature", "hot", "temperature must be a number of at least 0, got 'hot'"),
        ("temperature", math.nan, "temperature must be a number"),
        ("temperature", math.inf, "temperature must be a number"),
        ("top_p", 0, "top_p must be a number above 0 and up to 1, got 0"),
        ("top_p", 1.01, "top_p must be a number above 0 and up to 1"),
        ("top_k", -1, "top_k must be a whole number of at least 0"),
        ("repetition_penalty", 0, "repetition_penalty must be a number above 0"),
        ("stop", [""], "stop must be a list of texts that are not empty"),
        ("stop", 7, "stop must be a list of texts"),
        ("stop", ["a", 1], "stop must be a list of texts"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(name: str, value: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Sampling.read({**GIVEN, name: value})


@pytest.mark.parametrize(
    ("tokens", "stop", "completion"),
    [
        ([3, 4], [], Completion("ab", 2, "length")),
        ([3, 4, END], [], Completion("ab", 3, "stop")),
        ([3, END, PADDING, PADDING], [], Completion("a", 2, "stop")),
        ([3, 4, PADDING, PADDING], [], Completion("ab", 2, "length")),
        ([3, 4, 5, PADDING], ["c"], Completion("ab", 3, "stop")),
        ([3, 4, 5, END], ["bc", "b"], Completion("a", 4, "stop")),
        ([END], [], Completion("", 1, "stop")),
        ([], [], Completion("", 0, "length")),
    ],
)
def test_a_completion_ends_where_it_ended(tokens: list[int], stop: list[str], completion: Completion) -> None:
    assert letters.completion(letters.without_padding(tokens), stop) == completion


def test_padding_that_is_an_end_as_well_is_an_end() -> None:
    both = Vocabulary(letters.decode, {END}, END)
    assert both.completion(both.without_padding([3, END, END]), []) == Completion("a", 2, "stop")


def test_a_token_for_padding_that_the_model_made_counts() -> None:
    assert letters.completion([3, 4, PADDING], []).num_tokens == 3


def test_the_first_stop_text_counts() -> None:
    assert stop_position("one, two", ["two", ","]) == 3
    assert stop_position("one", ["two"]) is None
    assert stop_position("one", []) is None


def test_a_stop_text_may_be_spread_over_a_token_for_each_byte() -> None:
    assert stop_window(["é!", "a"]) == 4
    assert stop_window([]) == 1
