"""Ratings in what judges write, and nothing where it is not clear which output one is for."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genpool.tasks.rating import Judgement, Scale, read_judgements

SCALE = Scale(1, 5)

GOOD, BAD = Judgement(4.0, "Good."), Judgement(2.0, "Bad.")


def ratings(text: str, count: int | None = 2) -> list[float | None]:
    return [judgement.rating for judgement in read_judgements(text, SCALE, count)]


@pytest.mark.parametrize(
    "text",
    [
        "Output 1:\nRating: 4\nRationale: Good.\n\nOutput 2:\nRating: 2\nRationale: Bad.",
        "**Output 1:**\n**Rating**: 4\n**Rationale**: Good.\n\n**Output 2:**\n**Rating:** 2\n**Rationale:** Bad.",
        "### Output 1\n- Rating: 4/5\n- Rationale: Good.\n### Output 2\n- Rating: 2/5\n- Rationale: Bad.",
        "#### Output for Text 1\nRating: 4\nRationale: Good.\n#### Output for Text 2\nRating: 2\nRationale: Bad.",
        "<output 1>\nRating: 4\nRationale: Good.\n</output 1>\n<output 2>\nRating: 2\nRationale: Bad.\n</output 2>",
        "Output 2:\nRating: 2\nRationale: Bad.\n\nOutput 1:\nRating: 4\nRationale: Good.",
        "Response 1\nRationale: Good.\nScore: 4\nResponse 2\nRationale: Bad.\nScore: 2",
        "Rating for Output 1: 4\nRationale for Output 1: Good.\nRating for Output 2: 2\nRationale for Output 2: Bad.",
        "Rating 1: 4\nRationale 1: Good.\nRating 2: 2\nRationale 2: Bad.",
        "Output 1: 4 - Good.\nOutput 2: 2 - Bad.",
        "Output 1: 4/5. Good.\nOutput 2: 2 out of 5. Bad.",
        "Output 1 - Rating: 4 - Good.\nOutput 2 - Rating: 2 - Bad.",
        "Output 1 (Rating: 4) Good.\nOutput 2 (Rating: 2) Bad.",
        "1. Rating: 4\nRationale: Good.\n2. Rating: 2\nRationale: Bad.",
        "1. 4/5 - Good.\n2. 2/5 - Bad.",
        "Rating: 4\nRationale: Good.\n\nRating: 2\nRationale: Bad.",
        "Rationale: Good.\nRating: 4\nRationale: Bad.\nRating: 2",
        "Sure, here are my ratings.\n\nOutput 1:\nRating: 4 (Good.)\n\nOutput 2:\nRating: 2 (Bad.)",
        "Output 1:\nRating:\n4\nRationale: Good.\nOutput 2:\nRating:\n**2**\nRationale: Bad.",
        "| Output 1 | 4 | Good. |\n| Output 2 | 2 | Bad. |",
        '[{"rating": 4, "rationale": "Good."}, {"rating": 2, "rationale": "Bad."}]',
        '```json\n[{"rating": "4/5", "reason": "Good."}, {"rating": "2", "reason": "Bad."}]\n```',
        '{"ratings": [4, 2], "rationales": ["Good.", "Bad."]}',
        '{"Output 2": {"Rating": 2, "Rationale": "Bad."}, "Output 1": {"Rating": 4, "Rationale": "Good."}}',
        '{"outputs": [{"id": 2, "score": 2, "comment": "Bad."}, {"id": 1, "score": 4, "comment": "Good."}]}',
        '{"output": "Output 1", "rating": 4, "rationale": "Good."}\n{"output": 2, "rating": 2, "rationale": "Bad."}',
        "<think>\nOutput 1: Rating: 3? No.\n</think>\n\nRating: 4\nRationale: Good.\n\nRating: 2\nRationale: Bad.",
        "Rating: 3? No.\n</think>\n\nOutput 1:\nRating: 4\nRationale: Good.\nOutput 2:\nRating: 2\nRationale: Bad.",
    ],
)
def test_what_judges_write(text: str) -> None:
    assert read_judgements(text, SCALE, 2) == [GOOD, BAD] == read_judgements(text, SCALE)


@pytest.mark.parametrize(
    "text", ["4 2", "4, 2", "4\n2", "4/5\n2/5", "[4, 2]", "```\n[4, 2]\n```", "Output 1: 4, Output 2: 2", "1. 4\n2. 2"]
)
def test_ratings_without_a_word(text: str) -> None:
    assert ratings(text) == [4, 2]


@pytest.mark.parametrize(
    ("rating", "value"),
    [
        ("4.5", 4.5),
        ("4/5", 4),
        ("4 / 5", 4),
        ("**4**/5", 4),
        ("[4]", 4),
        ("'4'", 4),
        ("4 out of 5", 4),
        ("4 stars", 4),
        ("4 stars out of 5", 4),
        ("4 (out of 5)", 4),
        ("4.", 4),
        ("8/10", None),
        ("4/10", None),
        ("4 out of 10", None),
        ("4 out of ten", None),
        ("4 of 10", None),
        ("4 (out of 10)", None),
        ("4 [of 10]", None),
        ("4 stars out of 10", None),
        ("4 points of 10", None),
        ("4\u00a0/\u00a010", None),
        ("3 -> 4", None),
        ("3 \u2192 4", None),
        ("3 ~ 4", None),
        ("1 + 1 + 1 = 3", None),
        ("4 | 5", None),
        ("4 %", None),
        ("1-5", None),
        ("1 to 5", None),
        ("1 or 2", None),
        ("4,5", None),
        ("80%", None),
        ("0", None),
        ("6", None),
        ("-1", None),
        ("4th", None),
        ("four", None),
        ("N/A", None),
        ("(a number from 1 to 5)", None),
        ("", None),
        ("9" * 400, None),
    ],
)
def test_one_rating(rating: str, value: float | None) -> None:
    assert ratings(f"Output 1:\nRating: {rating}\nRationale: So.\n\nOutput 2:\nRating: 3") == [value, 3]
    assert ratings(f"Output 1: {rating}\nOutput 2: 3") == [value, 3]


@pytest.mark.parametrize("value", ["true", "null", '"four"', "[]", "{}", "6", "-1", "1e400", "9" * 400, '"4/10"'])
def test_one_rating_in_json(value: str) -> None:
    assert ratings(f'[{{"rating": {value}}}, {{"rating": 3}}]') == [None, 3]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Output 1:\nRating: 4\nOutput 3:\nRating: 2", [4, None, 2]),
        ("Output 2:\nRating: 4", [None, 4, None]),
        ("Output 1:\nRating: 4\nRationale: It was cut o", [4, None, None]),
        ('{"1": 4, "3": 2}', [4, None, 2]),
        ('{"output_2": {"rating": 4}}', [None, 4, None]),
        ("Output 1:\nRating: 4\nOutput 2:\nRating: 3\nRating: 2\nOutput 3:\nRating: 1", [4, None, 1]),
        ("Output 1: 4\nOutput 2: 3\nOutput 1: 5\nOutput 3: 1", [None, 3, 1]),
        ("Output 1: 4\nOutput 2: 3\nOutput 1: 4\nOutput 3: 1", [4, 3, 1]),
        ("Output 1:\nRating: 4\nRationale: Output 2 is worse than output 1.\nOutput 2:\nRating: 1", [4, 1, None]),
    ],
)
def test_what_is_missing_or_in_doubt_is_none_and_moves_nothing(text: str, found: list[float | None]) -> None:
    assert ratings(text, 3) == found


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I cannot rate these.",
        "Rating: 4\nRationale: Good.",
        "Rating: 4\nRating: 3\nRating: 2",
        "4",
        "4 3 2",
        "[4, 3, 2]",
        "On a scale of [1, 5], both are fine.",
        '[{"rating": 4}]',
        '[{"rating": 4, "id": 1}, {"rating": 2}]',
        '{"rating": 4}',
        # It counts from zero, or sees more outputs than there are.
        "Output 0:\nRating: 4\nOutput 1:\nRating: 2",
        '[{"id": 0, "rating": 4}, {"id": 1, "rating": 2}]',
        "Output 1:\nRating: 4\nOutput 2:\nRating: 2\nOutput 3:\nRating: 1",
        # The ratings stand before their headings.
        "Rating: 4\nOutput 1\nRating: 2\nOutput 2",
        # Which rationale belongs to which rating?
        "Rationale: Good.\nRating: 4\nRating: 2\nRationale: Bad.",
        '{"ratings": [4]}',
        # A thought that was cut off.
        "<think>Output 1:\nRating: 4\nOutput 2:\nRating: 2",
        # Cut off, so that it is no JSON: the numbers are lost, and the order is not ours.
        '[{"output": 2, "rating": 4}, {"output": 1, "rating": 2}, ',
        '[{"rating": 4}, {"rating": 2}] or rather [{"rating": 2}, {"rating": 4}]',
    ],
)
def test_nothing_is_read_where_it_is_not_clear_which_output_is_meant(text: str) -> None:
    assert ratings(text) == [None, None]


def test_a_list_in_a_rationale_is_no_list_of_outputs() -> None:
    assert ratings("Rating: 4\n1. It is right.\nRating: 3\n2. It is short.") == [4, 3]


def test_a_rationale_of_several_lines() -> None:
    text = "Output 1:\nRationale: It is right.\nThe comment: fine.\n\nAnd short.\nRating: 4\nOutput 2:\nRating: 2"
    assert read_judgements(text, SCALE, 2)[0].rationale == "It is right.\nThe comment: fine.\n\nAnd short."


@pytest.mark.parametrize(
    "text", ["Output 1: 4\nOutput 3: 2", "Output 2: 4", "Output 1000000: 4", '{"2": 4}', "Output 0: 4"]
)
def test_without_a_count_no_output_may_be_missing(text: str) -> None:
    assert ratings(text, None) == [None] * len(ratings(text, None))


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "text",
    [
        " ",
        "\n",
        "Output ",
        "Output 1",
        "Rating:\n",
        "Rating (",
        "1\t",
        "*",
        "[{",
        "```\n",
        "1/",
        "1) Rating: 9\n",
        "Output A\n",
        "4 for ",
        "\n" * 99_990 + "Rating: 9",
        "\n#" * 49_990 + "Rating: 9",
    ],
)
def test_a_completion_that_repeats_itself_is_read_soon(text: str) -> None:
    assert set(ratings(text * (100_000 // len(text)))) == {None}


def test_another_scale() -> None:
    (one, other) = read_judgements("Output 1: 8/10\nOutput 2: 0", Scale(0, 10), 2)
    assert (one.rating, other.rating) == (8, 0)


WORDS = ["Output", "Rating", "Rationale", "Text", ":", "\n", " ", "1", "2", "3", "4", "/5", "- ", "**", ".", "["]
MARKS = ["]", "{", "}", '"rating"', ",", "|", "out of", "is", "for", "#", "(", ")", "```", "0", "\ud800", "٣"]


@given(st.lists(st.sampled_from(WORDS + MARKS), max_size=60).map("".join) | st.text(max_size=200), st.integers(2, 5))
@settings(max_examples=300, deadline=None)
def test_it_never_raises_and_gives_one_judgement_for_each_output(text: str, count: int) -> None:
    found = read_judgements(text, SCALE, count)
    assert len(found) == count
    assert all(one.rating is None or 1 <= one.rating <= 5 for one in found)
    read_judgements(text, SCALE)


# How judges lay it out: the whole answer of (number, rating, rationale)s.
LAYOUTS: dict[str, Callable[[Sequence[tuple[int, int, str]]], str]] = {
    "asked": lambda said: "\n\n".join(f"Output {n}:\nRating: {r}\nRationale: {why}" for n, r, why in said),
    "bold": lambda said: "\n\n".join(f"**Output {n}**\n**Rating**: {r}/5\n**Rationale**: {why}" for n, r, why in said),
    "reason first": lambda said: "\n".join(f"Text {n}\nRationale: {why}\nRating: {r}" for n, r, why in said),
    "line": lambda said: "\n".join(f"Output {n}: {r} - {why}" for n, r, why in said),
    "objects": lambda said: json.dumps([{"output": n, "rating": r, "rationale": why} for n, r, why in said]),
    "keys": lambda said: json.dumps({f"Output {n}": {"rating": r, "rationale": why} for n, r, why in said}),
}

# Without numbers: only the order tells.
UNNUMBERED: dict[str, Callable[[Sequence[tuple[int, int, str]]], str]] = {
    "marks": lambda said: "\n\n".join(f"Rating: {r}\nRationale: {why}" for _, r, why in said),
    "marks after": lambda said: "\n\n".join(f"Rationale: {why}\nRating: {r}" for _, r, why in said),
    "numbers": lambda said: "\n".join(str(r) for _, r, _ in said),
    "json list": lambda said: json.dumps([r for _, r, _ in said]),
    "json objects": lambda said: json.dumps([{"rating": r, "why": why} for _, r, why in said]),
}

REASONS = st.text(alphabet="abc .!", min_size=1, max_size=20).map(lambda text: f"So {text}")
JUDGEMENTS = st.lists(st.tuples(st.integers(1, 5), REASONS), min_size=2, max_size=6).map(
    lambda said: [(number, rating, why) for number, (rating, why) in enumerate(said, 1)]
)


@pytest.mark.parametrize("layout", LAYOUTS)
@given(said=JUDGEMENTS, data=st.data())
@settings(max_examples=60, deadline=None)
def test_numbered_ratings_stay_with_their_outputs_whatever_is_left_out_cut_off_or_in_another_order(
    layout: str, said: list[tuple[int, int, str]], data: st.DataObject
) -> None:
    told = data.draw(st.lists(st.sampled_from(said), unique=True))
    whole = LAYOUTS[layout](told)
    true = {number: rating for number, rating, _ in told}
    assert ratings(whole, len(said)) == [true.get(number) for number, _, _ in said]
    cut = whole[: data.draw(st.integers(0, len(whole)))]
    for (number, _, _), found in zip(said, ratings(cut, len(said)), strict=True):
        assert found in (None, true.get(number))


@pytest.mark.parametrize("layout", UNNUMBERED)
@given(said=JUDGEMENTS, count=st.integers(2, 6))
@settings(max_examples=60, deadline=None)
def test_unnumbered_ratings_are_read_only_where_they_are_as_many_as_the_outputs(
    layout: str, said: list[tuple[int, int, str]], count: int
) -> None:
    found = ratings(UNNUMBERED[layout](said), count)
    assert found == ([rating for _, rating, _ in said] if count == len(said) else [None] * count)


# How judges name an output in other words than ours. What is read of them is read by its order.
SPELLINGS: dict[str, Callable[[int, int], str]] = {
    "number": lambda n, r: f"Output number {n}:\nRating: {r}",
    "no.": lambda n, r: f"Output No. {n}:\nRating: {r}",
    "underscore": lambda n, r: f"Output_{n}:\nRating: {r}",
    "hyphen": lambda n, r: f"Response-{n}\nRating: {r}",
    "field": lambda n, r: f"Output: {n}\nRating: {r}",
    "letter": lambda n, r: f"**Output {'ABCDEF'[n - 1]}:**\n**Rating:** {r}",
    "letter's": lambda n, r: f"Output {'ABCDEF'[n - 1]}'s rating: {r}",
    "letter alone": lambda n, r: f"{'ABCDEF'[n - 1]}: Rating: {r}",
    "letter in its line": lambda n, r: f"{'ABCDEF'[n - 1]})\nRating: {r}\nRationale: So.",
    "letter and words": lambda n, r: f"Text {'ABCDEF'[n - 1]} (the short one):\nRating: {r}",
    "letter and sentence": lambda n, r: f"Response {'ABCDEF'[n - 1]} is such that its rating is {r}.",
    "letter and reason": lambda n, r: f"Response {'ABCDEF'[n - 1]}:\nRationale: So.\nRating: {r}",
    "word": lambda n, r: f"Output {WORDS_OF[n - 1]}:\nRating: {r}\nRationale: So.",
    "ordinal": lambda n, r: f"{ORDINALS[n - 1].capitalize()} output\nRating: {r}",
    "ordinal alone": lambda n, r: f"The {ORDINALS[n - 1]}:\nRating: {r}",
    "2nd": lambda n, r: f"{n}{['st', 'nd', 'rd', 'th', 'th', 'th'][n - 1]} candidate - rating: {r}",
    "item": lambda n, r: f"{n}) Rating: {r}",
    "item and reason": lambda n, r: f"{n}. Rating: {r}\nRationale: So.",
    "reason in an item": lambda n, r: f"{n}. Rationale: So.\nRating: {r}",
    "item in a line": lambda n, r: f"{n}.\nRating: {r}",
    "item with words": lambda n, r: f"{n}. Blue, and green.\nRating: {r}\nRationale: So.",
    "parentheses": lambda n, r: f"({n}) Rating: {r}",
    "brackets": lambda n, r: f"[{n}] Rating: {r}/5",
    "hash": lambda n, r: f"#{n}\nRating: {r}",
    "hash and mark": lambda n, r: f"### #{n} Rating: {r}",
    "tag": lambda n, r: f"<output_{n}>\nRating: {r}\n</output_{n}>",
    "another language": lambda n, r: f"Ausgabe {n}:\nRating: {r}",
    "a space before the colon": lambda n, r: f"Sortie {n} :\nRating: {r}",
    "a wide colon": lambda n, r: f"\u8f93\u51fa {n}\uff1a\nRating: {r}\nRationale: So.",
    "small letter": lambda n, r: f"Output {'abcdef'[n - 1]}:\nRating: {r}",
    "small letter alone": lambda n, r: f"{'abcdef'[n - 1]}) Rating: {r}",
    "letter's rating": lambda n, r: f"{'ABCDEF'[n - 1]}'s rating: {r}",
    "another word": lambda n, r: f"Model {n}\nRating: {r}\nRationale: So.",
    "another word and a letter": lambda n, r: f"**Option {'ABCDEF'[n - 1]}**\n\nRationale: So.\nRating: {r}",
    "another word and reasons": lambda n, r: f"\nAssistant {n}\nIt says so.\nRating: {r}\n",
    "in a sentence": lambda n, r: f"Regarding output {n}, the rating is {r}.",
    "item of an output": lambda n, r: f"{n}. Output {n}\nRating: {r}",
    "item of a letter": lambda n, r: f"{n}. Output {'ABCDEF'[n - 1]}\nRating: {r}",
    "after it": lambda n, r: f"Rating: {r} for output {n}",
    "after it with a reason": lambda n, r: f"Rating: {r}/5 for the {ORDINALS[n - 1]} output\nRationale: So.",
    "after it in parentheses": lambda n, r: f"Rating: {r} (Output {n})\nRationale: So.",
    "in its mark": lambda n, r: f"Rating [{n}]: {r}",
    "ordinal in its mark": lambda n, r: f"Rating ({['1st', '2nd', '3rd', '4th', '5th', '6th'][n - 1]}): {r}",
    "letter in its mark": lambda n, r: f"Rating (Output {'ABCDEF'[n - 1]}): {r}",
    "sentence": lambda n, r: f"The rating is {r} for the {ORDINALS[n - 1]}.",
    "object": lambda n, r: f'Output {n}:\n{{"rating": {r}}}',
    "object in an item": lambda n, r: f'{n}. {{"rating": {r}}}',
    "object after a space": lambda n, r: f'Sortie {n} : {{"rating": {r}}}',
    "object and a small letter": lambda n, r: f'{"abcdef"[n - 1]}) {{"rating": {r}}}',
    "object with a letter": lambda n, r: f'{{"response": "{"ABCDEF"[n - 1]}", "rating": {r}}}',
}
ORDINALS = ["first", "second", "third", "fourth", "fifth", "sixth"]
WORDS_OF = ["one", "two", "three", "four", "five", "six"]

PLACES = st.integers(2, 6).flatmap(lambda count: st.permutations(range(1, count + 1)))


@pytest.mark.parametrize("spelling", SPELLINGS)
@given(order=PLACES, data=st.data(), between=st.sampled_from(["\n", "\n\n"]))
@settings(max_examples=60, deadline=None)
def test_a_rating_never_goes_to_another_output_than_the_one_that_it_names(
    spelling: str, order: list[int], data: st.DataObject, between: str
) -> None:
    true = data.draw(st.lists(st.integers(1, 5), min_size=len(order), max_size=len(order)))
    found = ratings(between.join(SPELLINGS[spelling](n, true[n - 1]) for n in order), len(order))
    assert all(one in (None, right) for one, right in zip(found, true, strict=True)), found
    if order == sorted(order):
        assert found == true


@pytest.mark.parametrize("key", ["candidate", "completion", "output_id", "Output Number", "response_index", "no", "#"])
@pytest.mark.parametrize(("second", "first"), [("2", "1"), ('"2"', '"1"'), ('"output 2"', '"Output 1"')])
def test_the_number_in_an_object_is_read_whatever_its_key(key: str, second: str, first: str) -> None:
    assert ratings(f'[{{"{key}": {second}, "rating": 4}}, {{"{key}": {first}, "rating": 3}}]') == [3, 4]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('[{"name": "output 2", "rating": 4}, {"name": "output 1", "rating": 3}]', [3, 4]),
        ('[{"output": "Blue.", "id": 2, "rating": 4}, {"output": "Red.", "id": 1, "rating": 3}]', [3, 4]),
        ('[{"id": 101, "output": 2, "rating": 4}, {"id": 100, "output": 1, "rating": 3}]', [3, 4]),
        ('[{"output": {"id": 2}, "rating": 4}, {"output": {"id": 1}, "rating": 3}]', [3, 4]),
        ('[{"name": "Blue.", "rating": 4}, {"name": "Red.", "rating": 3}]', [4, 3]),
        ('[{"output": "B", "rating": 4}, {"output": "A", "rating": 3}]', [None, None]),
        ('[{"name": "second output", "rating": 4}, {"name": "first output", "rating": 3}]', [None, None]),
        ('[{"output": "A", "rating": 4}, {"output": "B", "rating": 3}]', [4, 3]),
        ('{"ratings": [{"output": 2, "rating": 4}, {"output": 1, "rating": 3}]}', [3, 4]),
        ('{"scores": [{"output": "B", "score": 4}, {"output": "A", "score": 3}]}', [None, None]),
        ('{"ratings": [{"rating": 4}, {"rating": 3}]}', [4, 3]),
        ('[{"model": "B", "rating": 4}, {"model": "A", "rating": 3}]', [None, None]),
        ('[{"name": "Model 2", "rating": 4}, {"name": "Model 1", "rating": 3}]', [None, None]),
        ('[{"output": "b", "rating": 4}, {"output": "a", "rating": 3}]', [None, None]),
        ('[{"model": "A", "rating": 4}, {"model": "B", "rating": 3}]', [4, 3]),
        ('[{"accuracy": 2, "rating": "4"}, {"accuracy": 1, "rating": "3"}]', [4, 3]),
        ('[{"rating": "2"}, {"rating": "1"}]', [2, 1]),
        ('[{"rationale": "Unlike B", "rating": 4}, {"rationale": "Unlike A", "rating": 3}]', [4, 3]),
        ('[{"why": "It beats output 2.", "rating": 4}, {"why": "It trails output 1.", "rating": 3}]', [4, 3]),
        ('{"models": ["B", "A"], "ratings": [4, 3]}', [None, None]),
        ('{"ratings": ["2", "1"], "reasons": ["Beats 2", "Trails 1"]}', [2, 1]),
        ('{"outputs": [2, 1], "ratings": [4, 3]}', [None, None]),
        ('{"outputs": [1, 2], "ratings": [4, 3]}', [4, 3]),
        ('{"outputs": ["Blue.", "Red."], "ratings": [4, 3]}', [4, 3]),
        ('Output 2:\n{"output": 2, "rating": 4}\nOutput 1:\n{"output": 1, "rating": 3}', [3, 4]),
    ],
)
def test_an_object_that_names_its_output(text: str, found: list[float | None]) -> None:
    assert ratings(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Output 1: 4\nOutput 2: 3\n\nOverall rating: 5", [4, 3]),
        ("Output 1:\nRating: 4\nOutput 2:\nRationale: So.\n\n**Overall rating**: 5", [4, None]),
        ("Output 1: 4\nOutput 2: 3\n\nFor both, the rating is 5.", [4, None]),
        ("Output 1: 4\nOutput 2: 3\n\nFor both, the rating is 3.", [4, 3]),
        ("Rating: 4\n\nOverall rating: 5", [None, None]),
        ("1. 4/5 - Good.\n2. 3/5 - Bad.\n\nThe overall score is 5.", [4, 3]),
        ("Output 1: Good, 4/5.\nOutput 2: Bad, 3/5.\n\nOverall rating: 5", [4, 3]),
        ("Output 1:\nAccuracy: 3/5\nOverall rating: 4\nOutput 2:\nAccuracy: 5/5\nOverall rating: 3", [4, 3]),
        ("Output 1: 42\nRating: 4\nOutput 2: 43\nRating: 3", [4, 3]),
        ("Output 1:\n1. It is true.\n2. It is short.\nRating: 4\nOutput 2:\n1. Rating: 3\n2. Rationale: So.", [4, 3]),
    ],
)
def test_a_rating_of_all_is_not_the_last_ones(text: str, found: list[float | None]) -> None:
    assert ratings(text) == found


@pytest.mark.parametrize(
    "text",
    [
        "1. Output 2\nRating: 4\n2. Output 1\nRating: 3",
        "1. Rating: 4 for output 2\n2. Rating: 3 for output 1",
        "Rating: 4\n1) Rating: 3",
        "Rating: 4\nOutput: 2\n\nRating: 3\nOutput: 1",
        "The rating is 4 for the second output and the rating is 3 for the first.",
        "The \u017fecond:\nRating: 4\nThe first:\nRating: 3",
    ],
)
def test_nothing_is_read_by_an_order_that_the_text_denies(text: str) -> None:
    assert ratings(text) == [None, None]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1. 4\n2. 3", 4),
        ("2. 4\n1. 3", 4),
        ("1. Rating: 4\n2. Reason: So.\n" * 2, 4),
        ("Output 1:\n1. It is true.\n2. It is short.\n\nOutput 2:\n1) It is false.", 2),
        ("### Output 1\n**1.** It is true.\n\n### Output 2\n**1.** It is false.", 2),
    ],
)
def test_the_numbers_of_a_list_are_no_outputs_and_no_ratings(text: str, count: int) -> None:
    assert ratings(text, count) == [None] * count


@pytest.mark.parametrize(
    "text",
    [
        "Rating: 4\nRationale: Better than output 2.\n\nRating: 3\nRationale: Worse than output 1.",
        "Rationale: Output 2 is worse.\nRating: 4\nRationale: Output 1 is better.\nRating: 3",
        "Rating: 4 (better than output 2)\nRating: 3 (worse than output 1)",
        "Rating: 4\nRationale:\n1. True.\n2. Short.\n3. Kind.\n\nRating: 3\nRationale:\n1. False.\n2. Long.",
        "Rationale:\n1. True.\n2. Short.\n3. Kind.\nRating: 4\nRationale:\n1. False.\n2. Long.\nRating: 3",
        "I look at:\n1. truth\n2. length\n3. tone\n\nRating: 4\nRationale: Good.\n\nRating: 3\nRationale: Bad.",
        "Rating: 4\nAccuracy: 5\nBrevity: 3\n\nRating: 3\nAccuracy: 2\nBrevity: 4",
        "1. Rating: 4\n2. Rationale: Good.\n\n1. Rating: 3\n2. Rationale: Bad.",
        "1. Rating: 4\n2. Rationale: Good.\n3. Rating: 3\n4. Rationale: Bad.",
        "Rating:\n4\nRating:\n3.",
        "A rating: 4\nA rating: 3",
        "I'd say rating: 4 for the first, and rating: 3 for the second.\n\nOutput 1:\nRating: 4\nOutput 2:\nRating: 3",
    ],
)
def test_a_number_that_is_no_outputs_is_in_nobodys_way(text: str) -> None:
    assert ratings(text) == [4, 3]
