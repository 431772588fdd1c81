"""Rating several answers: what the judge is shown, and whose rating is whose."""

from __future__ import annotations

import pickle
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genpool import PreferenceTask
from genpool.tasks.base import is_labelling
from genpool.tasks.output import parsed_output

ROW: dict[str, Any] = {"input": "Name a colour.", "generations": ["Red.", "Maybe a car?", "Blue, and green."]}


def shown(prompt: str) -> list[str]:
    """The texts in the order in which a judge sees them."""
    return [text for _, text in re.findall(r"<output (\d+)>\n(.*?)\n</output \1>", prompt, re.DOTALL)]


def judged(prompt: str, ratings: dict[str, int]) -> str:
    """What a judge answers that gives each text the rating that it has in ``ratings``."""
    return "\n\n".join(
        f"Output {number}:\nRating: {ratings[text]}\nRationale: about {text}"
        for number, text in enumerate(shown(prompt), 1)
    )


def test_names() -> None:
    task = PreferenceTask()
    assert (task.input_args_names, task.output_args_names) == (["input", "generations"], ["rating", "rationale"])
    assert is_labelling(task)


def test_the_prompt_has_the_input_each_text_and_a_form_for_each() -> None:
    prompt = PreferenceTask(shuffle=False).generate_prompt(**ROW, more="ignored")
    assert prompt.system_prompt
    assert shown(prompt.formatted_prompt) == ROW["generations"]
    assert "Name a colour." in prompt.formatted_prompt
    assert "from 1 (worst) to 5 (best)" in prompt.formatted_prompt
    assert prompt.formatted_prompt.count("Rating: (a number from 1 to 5)") == 3


def test_aspects_and_another_scale() -> None:
    task = PreferenceTask("Judge.", aspects=["Is it true?", "Is it short?"], lowest=0, highest=10)
    prompt = task.generate_prompt(**ROW)
    assert prompt.system_prompt == "Judge."
    assert "The rating is about:\n- Is it true?\n- Is it short?\n" in prompt.formatted_prompt
    assert "from 0 (worst) to 10 (best)" in prompt.formatted_prompt
    assert task.parse_output_of(ROW, "Output 1: 7\nOutput 2: 7/10\nOutput 3: 7")["rating"] == [7, 7, 7]


def test_ratings_come_back_in_the_order_of_the_generations() -> None:
    task = PreferenceTask()
    answer = judged(task.generate_prompt(**ROW).formatted_prompt, {"Red.": 5, "Maybe a car?": 1, "Blue, and green.": 3})
    assert task.parse_output_of(ROW, answer) == {
        "rating": [5.0, 1.0, 3.0],
        "rationale": ["about Red.", "about Maybe a car?", "about Blue, and green."],
    }


def test_what_cannot_be_read_is_none() -> None:
    assert PreferenceTask().parse_output_of(ROW, "They are fine.") == {"rating": [None] * 3, "rationale": [None] * 3}


def test_every_text_is_shown_in_every_place_and_a_row_always_in_the_same_order() -> None:
    task = PreferenceTask()
    rows: list[dict[str, Any]] = [
        {"input": f"question {number}", "generations": ["a", "b", "c"]} for number in range(60)
    ]
    orders = [shown(task.generate_prompt(**row).formatted_prompt) for row in rows]
    assert {tuple(order) for order in orders} == {
        (a, b, c) for a in "abc" for b in "abc" for c in "abc" if len({a, b, c}) == 3
    }
    again = pickle.loads(pickle.dumps(PreferenceTask()))
    assert [shown(again.generate_prompt(**row).formatted_prompt) for row in rows] == orders


@given(st.text(), st.lists(st.text(), min_size=2, max_size=5), st.text(), st.booleans())
@settings(deadline=None)
def test_it_never_raises_over_what_a_judge_writes(
    input: str, generations: list[str], answer: str, shuffle: bool
) -> None:
    task = PreferenceTask(shuffle=shuffle)
    row: dict[str, Any] = {"input": input, "generations": generations}
    task.generate_prompt(**row)
    labels = task.parse_output_of(row, answer)
    assert len(labels["rating"]) == len(labels["rationale"]) == len(generations)


TEXTS = st.text(alphabet="abc xyz.", min_size=1, max_size=8).map(lambda text: f"it {text}")


@given(TEXTS, st.dictionaries(TEXTS, st.integers(1, 5), min_size=2, max_size=5), st.booleans(), st.data())
@settings(deadline=None)
def test_no_rating_is_ever_another_texts(
    input: str, ratings: dict[str, int], shuffle: bool, data: st.DataObject
) -> None:
    task = PreferenceTask(shuffle=shuffle)
    row: dict[str, Any] = {"input": input, "generations": list(ratings)}
    whole = judged(task.generate_prompt(**row).formatted_prompt, ratings)
    assert task.parse_output_of(row, whole)["rating"] == list(ratings.values())
    cut = task.parse_output_of(row, whole[: data.draw(st.integers(0, len(whole)))])["rating"]
    assert all(found in (None, true) for found, true in zip(cut, ratings.values(), strict=True))


def test_lone_surrogates_do_not_matter() -> None:
    row: dict[str, Any] = {"input": "half \ud800", "generations": ["\udfff", "b"]}
    assert PreferenceTask().generate_prompt(**row)
    assert PreferenceTask().parse_output_of(row, "Output 1: 3\nOutput 2: 3")["rating"] == [3, 3]


def test_without_its_row_a_completion_is_read_only_where_nothing_was_shuffled(caplog: pytest.LogCaptureFixture) -> None:
    text = "Output 1: 4\nOutput 2: 2"
    assert PreferenceTask(shuffle=False).parse_output(text) == {"rating": [4, 2], "rationale": [None, None]}
    with pytest.raises(ValueError, match=r"call parse_output_of\(input, output\), or make it with shuffle=False"):
        PreferenceTask().parse_output(text)
    row: dict[str, Any] = {"input": "?", "generations": ["a", "b"]}
    assert parsed_output(PreferenceTask(), text, row)["rating"] in ([4, 2], [2, 4])
    assert parsed_output(PreferenceTask(), text) is None


@pytest.mark.parametrize(
    ("row", "error", "sentence"),
    [
        ({"input": 1, "generations": ["a", "b"]}, TypeError, "`input` must be a text, not int"),
        ({"input": "?", "generations": "ab"}, TypeError, "`generations` must be a list of texts, not str"),
        ({"input": "?", "generations": None}, TypeError, "`generations` must be a list of texts, not NoneType"),
        ({"input": "?", "generations": ["a", None]}, TypeError, "the one at 1 is NoneType"),
        ({"input": "?", "generations": ["a"]}, ValueError, "must be at least two to be compared, and there are 1"),
    ],
)
def test_rows_that_cannot_be_judged(row: dict[str, Any], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        PreferenceTask().generate_prompt(**row)


@pytest.mark.parametrize(
    ("said", "error", "sentence"),
    [
        ({"system_prompt": None}, TypeError, "`system_prompt` must be a text, not NoneType"),
        ({"aspects": "truth"}, TypeError, "`aspects` must be a list of texts"),
        ({"lowest": 5}, ValueError, "`lowest` must be below `highest`, and 5 is not below 5"),
    ],
)
def test_arguments_that_cannot_be_used(said: dict[str, Any], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        PreferenceTask(**said)
