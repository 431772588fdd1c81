from __future__ import annotations

import pickle
import random
from collections import Counter
from typing import Any

import pytest

from genpool.tasks.prompt import Prompt
from genpool.tasks.text_generation import DEFAULT_PRINCIPLES, TextGenerationTask

PRINCIPLES = {"kind": ["Be kind.", "Be warm."], "short": ["Be short."]}


def drawn(task: TextGenerationTask, times: int) -> list[str]:
    return [task.generate_prompt(input="Q").system_prompt.removeprefix("S ") for _ in range(times)]


def test_names_and_prompt() -> None:
    task = TextGenerationTask("Be brief.")
    assert (task.input_args_names, task.output_args_names) == (["input"], ["generations"])
    assert task.generate_prompt(input="Why?") == Prompt("Be brief.", "Why?")
    assert task.generate_prompt("Why?", more="ignored") == Prompt("Be brief.", "Why?")


def test_parse_output() -> None:
    assert TextGenerationTask().parse_output("text") == {"generations": "text"}


def test_the_default_has_a_system_prompt_and_draws_nothing() -> None:
    task = TextGenerationTask()
    assert task.system_prompt
    assert task.generate_prompt(input="Q").system_prompt == task.system_prompt


def test_balanced_draws_each_group_alike() -> None:
    task = TextGenerationTask("S", PRINCIPLES, "balanced", random.Random(1))
    counts = Counter(drawn(task, 3000))
    assert set(counts) == {"Be kind.", "Be warm.", "Be short."}
    assert 1400 < counts["Be short."] < 1600
    assert 650 < counts["Be kind."] < 850


def test_balanced_has_principles_of_its_own() -> None:
    task = TextGenerationTask("S", principles_distribution="balanced", rng=random.Random(1))
    known = {text for texts in DEFAULT_PRINCIPLES.values() for text in texts}
    assert set(drawn(task, 500)) == known


def test_weights_need_not_be_in_the_order_of_the_principles() -> None:
    task = TextGenerationTask("S", PRINCIPLES, {"short": 0.9, "kind": 0.1}, random.Random(1))
    assert 850 < Counter(drawn(task, 1000))["Be short."] < 950


def test_a_weight_of_zero_is_never_drawn() -> None:
    task = TextGenerationTask("S", PRINCIPLES, {"kind": 0, "short": 1})
    assert set(drawn(task, 100)) == {"Be short."}


def test_weights_that_miss_one_by_rounding_are_fine() -> None:
    groups = {str(k): [str(k)] for k in range(10)}
    assert TextGenerationTask("S", groups, dict.fromkeys(groups, 0.1)).principles_distribution


def test_the_same_seed_draws_the_same() -> None:
    def draws(seed: int) -> list[str]:
        return drawn(TextGenerationTask("S", principles_distribution="balanced", rng=random.Random(seed)), 20)

    assert draws(7) == draws(7)
    assert draws(7) != draws(8)


def test_without_rng_the_random_module_draws() -> None:
    task = TextGenerationTask("S", PRINCIPLES, "balanced")
    state = random.getstate()
    try:
        random.seed(3)
        once = drawn(task, 20)
        random.seed(3)
        again = drawn(task, 20)
    finally:
        random.setstate(state)
    assert once == again


def test_an_empty_system_prompt_leaves_the_principle_alone() -> None:
    task = TextGenerationTask("", {"short": ["Be short."]}, "balanced")
    assert task.generate_prompt(input="Q").system_prompt == "Be short."


@pytest.mark.parametrize(
    ("principles", "distribution", "sentence"),
    [
        (PRINCIPLES, {"kind": 1.0}, "gives no weight for 'short' of `principles`"),
        (PRINCIPLES, {"kind": 0.5, "short": 0.25, "long": 0.25}, "names 'long', which `principles` does not have"),
        (PRINCIPLES, {"kind": 0.5, "short": 0.4}, "sum to 0.9: they must sum to 1"),
        (PRINCIPLES, {"kind": 1.5, "short": -0.5}, "gives 'short' the weight -0.5: use 0 or more"),
        (PRINCIPLES, {"kind": float("nan"), "short": 1.0}, "gives 'kind' the weight nan"),
        (PRINCIPLES, {"kind": float("inf"), "short": 0.0}, "sum to inf"),
        (PRINCIPLES, "uniform", "is 'uniform': use 'balanced', a dict of weights or None"),
        ({}, "balanced", "needs `principles` to draw from, and there are none"),
        ({"kind": []}, "balanced", r"at least one text for 'kind', not \[\]"),
        ({"kind": "Be kind."}, {"kind": 1}, "at least one text for 'kind', not 'Be kind.'"),
    ],
)
def test_a_distribution_that_cannot_be_used(principles: Any, distribution: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        TextGenerationTask("S", principles, distribution)


def test_a_system_prompt_must_be_text() -> None:
    with pytest.raises(TypeError, match="`system_prompt` must be a text, not NoneType"):
        TextGenerationTask(None)  # type: ignore[arg-type]


def test_an_input_must_be_text() -> None:
    with pytest.raises(TypeError, match="`input` must be a text, not int"):
        TextGenerationTask().generate_prompt(input=3)  # type: ignore[arg-type]


def test_it_pickles_with_its_draws() -> None:
    task = TextGenerationTask("S", PRINCIPLES, "balanced", random.Random(5))
    twin = pickle.loads(pickle.dumps(task))
    assert twin == task
    assert drawn(twin, 20) == drawn(task, 20)
