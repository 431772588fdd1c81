"""The one type of each column, found from values that JSON has: what a typed format needs before the first row.

The types are those of JSON, as far as they can be told apart without loss: integers that a float cannot hold are
``long`` and do not join with floats. Values without a common type are ``mixed``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

# What a float holds exactly, and what 64 bits hold.
_EXACT = 1 << 53
_LONGEST = 1 << 63

# A deeper value is data of an unknown form, and so is a dict whose keys go on being new: they are values themselves.
_DEEPEST = 16
_MOST_FIELDS = 256


@dataclass(frozen=True, slots=True)
class Items:
    """A list, and the type of what is in it."""

    of: Kind


@dataclass(frozen=True, slots=True)
class Fields:
    """A dict, and the type of each of its keys; a value may lack any of them."""

    of: Mapping[str, Kind]


Kind = Literal["null", "bool", "int", "long", "float", "text", "mixed"] | Items | Fields

_WIDER: dict[tuple[str, str], Kind] = {
    ("int", "long"): "long",
    ("long", "int"): "long",
    ("int", "float"): "float",
    ("float", "int"): "float",
}


def kinds_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, Kind]:
    """The type of each column of ``rows``, in the order in which the columns appear."""
    kinds: dict[str, Kind] = {}
    for row in rows:
        for name, value in row.items():
            kinds[name] = joined(kinds.get(name, "null"), kind_of(value))
    return kinds


def kind_of(value: Any, depth: int = 0) -> Kind:
    """The type of one value that JSON has."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return _integer(value)
    if isinstance(value, float):
        return "float"
    if isinstance(value, str):
        return "text"
    if depth == _DEEPEST:
        return "mixed"
    if isinstance(value, list):
        inner: Kind = "null"
        for item in cast(list[Any], value):
            inner = joined(inner, kind_of(item, depth + 1))
        return _items(inner)
    return _fields({name: kind_of(item, depth + 1) for name, item in cast(Mapping[str, Any], value).items()})


def _integer(value: int) -> Kind:
    if -_EXACT <= value <= _EXACT:
        return "int"
    return "long" if -_LONGEST <= value < _LONGEST else "mixed"


def _items(kind: Kind) -> Kind:
    return "mixed" if kind == "mixed" else Items(kind)


def _fields(kinds: Mapping[str, Kind]) -> Kind:
    return "mixed" if "mixed" in kinds.values() or len(kinds) > _MOST_FIELDS else Fields(kinds)


def joined(one: Kind, other: Kind) -> Kind:
    """The type that holds the values of both without loss."""
    if one == other or other == "null":
        return one
    if one == "null":
        return other
    if isinstance(one, Items) and isinstance(other, Items):
        return _items(joined(one.of, other.of))
    if isinstance(one, Fields) and isinstance(other, Fields):
        names = dict.fromkeys((*one.of, *other.of))
        return _fields({name: joined(one.of.get(name, "null"), other.of.get(name, "null")) for name in names})
    if isinstance(one, str) and isinstance(other, str):
        return _WIDER.get((one, other), "mixed")
    return "mixed"
