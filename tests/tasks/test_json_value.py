"""JSON in the text of a completion."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genpool.tasks.json_value import json_values

OBJECTS = st.dictionaries(st.text(), st.integers() | st.text(), max_size=4)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ('{"a": 1}', [{"a": 1}]),
        ("7", [7]),
        ('"text"', ["text"]),
        ('Sure!\n```json\n{"a": [1, 2]}\n```\nThere you are.', [{"a": [1, 2]}]),
        ('{"a": 1} and then {"b": {"c": 2}}', [{"a": 1}, {"b": {"c": 2}}]),
        ('See [the note]: {"a": 1}', [{"a": 1}]),
        ("no {json} here", []),
        ("", []),
        # Cut off: what was whole in it is no value of its own.
        ('{"a": {"b": 1}, "c": ', []),
        ('{"a": {"b": 1}, "c": tru', []),
        ('[{"a": 1}, {"b": ', []),
        ('{"a": "in a string: {} []', []),
        ('{"a": NaN} {"b": 1}', [{"b": 1}]),
        ("[" * 100_000, []),
        ('{"a": ' + "9" * 5000 + "}", []),
    ],
)
def test_the_values_of_a_text(text: str, values: list[Any]) -> None:
    assert json_values(text) == values


@pytest.mark.timeout(10)
@pytest.mark.parametrize("text", ["{", "[{}", "{'", "if {\n"])
def test_a_completion_that_repeats_itself_is_read_soon(text: str) -> None:
    assert json_values(text * (400_000 // len(text))) == []


@given(st.text(alphabet='[]{}",:01 \\\n`ab', max_size=200) | st.text(max_size=200))
@settings(deadline=None)
def test_it_never_raises(text: str) -> None:
    json_values(text)


@given(st.text(alphabet="ab .\n", max_size=20), OBJECTS, st.text(alphabet="ab .\n", max_size=20))
@settings(deadline=None)
def test_an_object_is_found_in_the_middle_of_talk(before: str, value: dict[str, Any], after: str) -> None:
    assert json_values(f"{before} {json.dumps(value)} {after}") == [value]


@given(OBJECTS, st.data())
@settings(deadline=None)
def test_what_is_cut_off_is_not_there(value: dict[str, Any], data: st.DataObject) -> None:
    whole = json.dumps({"outer": value})
    cut = data.draw(st.integers(0, len(whole) - 1))
    assert json_values(whole[:cut]) == []
