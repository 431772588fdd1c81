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
        ("4.", 4),
        ("8/10", None),
        ("4/10", None),
        ("4 out of 10", None),
        ("4 out of ten", None),
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
    "text", [" ", "\n", "Output ", "Output 1", "Rating:\n", "Rating (", "1\t", "*", "[{", "```\n", "1/"]
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
