"""One type for a column, whatever its values are."""

from __future__ import annotations

from typing import Any

import pytest

from genpool.client.formats.schema import Fields, Items, Kind, kinds_of


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([None], "null"),
        ([None, True, False], "bool"),
        ([1, None, -1], "int"),
        ([1, 2**60], "long"),
        ([1, 0.5], "float"),
        (["a", None], "text"),
        ([[], ["a"], None, [None]], Items("text")),
        ([[1], [0.5]], Items("float")),
        ([{"a": 1}, {"b": "x"}, {}], Fields({"a": "int", "b": "text"})),
        ([[{"a": [1]}, {"a": None}]], Items(Fields({"a": Items("int")}))),
        # What has no type that holds all of it as it is.
        ([1, "a"], "mixed"),
        ([1, "a", 1], "mixed"),
        ([True, 1], "mixed"),
        ([0.5, 2**53], "float"),
        ([0.5, 2**53 + 1], "mixed"),
        ([0.5, -(2**53) - 1], "mixed"),
        ([2**63], "mixed"),
        ([-(2**63)], "long"),
        (["a", ["a"]], "mixed"),
        ([{"a": 1}, [1]], "mixed"),
        ([{"a": 1}, {"a": "x"}], "mixed"),
        ([[1, "a"]], "mixed"),
        ([[1], "mixed", [1]], "mixed"),
        ([{str(at): at} for at in range(300)], "mixed"),
        ([deep(100)], "mixed"),
    ],
)
def test_the_type_holds_all_values_without_loss(values: list[Any], kind: Kind) -> None:
    assert kinds_of({"column": value} for value in values) == {"column": kind}
    assert kinds_of({"column": value} for value in reversed(values)) == {"column": kind} or isinstance(kind, Fields)


def test_columns_stand_in_the_order_in_which_they_appear() -> None:
    assert list(kinds_of([{"b": 1}, {"a": 1, "b": 2}, {"c": 1}])) == ["b", "a", "c"]
