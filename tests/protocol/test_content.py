from __future__ import annotations

import math
import tracemalloc
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum, StrEnum
from typing import Any, NamedTuple

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genpool.protocol.content import (
    Failure,
    pack,
    pack_failure,
    pack_row,
    unpack,
    unpack_each_outputs,
    unpack_failure,
    unpack_outputs,
    unpack_row,
    unpack_rows,
)
from genpool.protocol.errors import DecodeError, RowError

texts = st.text(st.characters(), max_size=12)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | texts
    | st.binary(max_size=12)
)
keys = texts | st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=4)
contents = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
)


def scalar_of_numpy(value: Any, name: str = "float32", shape: tuple[int, ...] = ()) -> Any:
    """Something that looks like a numpy scalar, or an array, without numpy."""
    kind = type(name, (), {"shape": shape, "item": lambda self: value})
    kind.__module__ = "numpy"
    return kind()


class Colour(StrEnum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


@dataclass
class Person:
    name: str


class Point(NamedTuple):
    x: int
    y: int


class Tricky:
    """Raises whatever it is asked for, as lazy objects do."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"no {name} here")


# What can be carried.


@given(contents)
def test_what_is_packed_is_unpacked(content: Any) -> None:
    assert unpack(pack(content)) == content


@pytest.mark.parametrize(
    ("given_", "comes_back"),
    [
        ((1, (2, "x")), [1, [2, "x"]]),
        ({"pair": ("a", "b")}, {"pair": ["a", "b"]}),
        (Point(1, 2), [1, 2]),
        (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        ({1: "one", -2: "two", None: "none", 1.5: "half"}, {1.5: "half", 1: "one", -2: "two", None: "none"}),
        (Colour.RED, "red"),
        ({Level.HIGH: Level.HIGH}, {3: 3}),
        (bytearray(b"bytes"), b"bytes"),
        (memoryview(b"bytes"), b"bytes"),
        ("\ud800 alone", "\ud800 alone"),
        ({"\udfff": ["\udc80"]}, {"\udfff": ["\udc80"]}),
        (math.inf, math.inf),
        (2**64 - 1, 2**64 - 1),
        (-(2**63), -(2**63)),
    ],
)
def test_what_comes_back(given_: Any, comes_back: Any) -> None:
    assert unpack(pack(given_)) == comes_back


@pytest.mark.parametrize("value", [3, 2.5, True])
def test_numpy_scalars_are_numbers(value: Any) -> None:
    scores = {"scores": [scalar_of_numpy(value)], "best": (scalar_of_numpy(value),)}

    assert unpack(pack(scores)) == {"scores": [value], "best": [value]}


def test_a_numpy_integer_may_be_a_key() -> None:
    assert unpack(pack({scalar_of_numpy(7, "int64"): "seven"})) == {7: "seven"}


@pytest.mark.parametrize(
    ("content", "seed"), [({"input": "x"}, None), ("a prompt", 0), ([{"role": "user"}], 2**31 - 1)]
)
def test_a_row_is_its_content_and_its_seed(content: Any, seed: int | None) -> None:
    assert unpack_row(pack_row(content, seed)) == (content, seed)


@given(st.lists(st.tuples(contents, st.none() | st.integers(-(2**63), 2**64 - 1)), max_size=4))
def test_rows_are_opened_together_to_what_each_is_alone(rows: list[tuple[Any, int | None]]) -> None:
    """Integer keys and lone surrogates among them."""
    payloads = [pack_row(content, seed) for content, seed in rows]
    opened = unpack_rows(payloads)
    assert opened is not None
    assert list(zip(*opened, strict=True)) == [unpack_row(payload) for payload in payloads]


@pytest.mark.parametrize("size", [0, 5_000])
def test_rows_are_opened_together_whatever_their_size(size: int) -> None:
    long, odd = {"input": "i" * size}, {"input": "\ud800", 7: [None] * (size // 2)}
    assert unpack_rows([pack_row(long, None), pack_row(odd, 1)]) == ([long, odd], [None, 1])


@pytest.mark.parametrize("odd", [b"", b"\xc1", pack([1]), pack({}), pack([{}, "seed"]), pack([{}, True])])
def test_rows_of_which_one_cannot_be_read_are_not_opened_together(odd: bytes) -> None:
    assert unpack_rows([pack_row({}, 1), odd]) is None


def test_outputs_come_back_as_they_were() -> None:
    outputs = [{"model_name": "m", "prompt_used": None, "raw_output": "\ud800", "parsed_output": {"scores": [1.5]}}]

    assert unpack_outputs(pack(outputs)) == outputs


@given(st.builds(Failure, texts, texts, texts, texts, texts, texts))
def test_whatever_a_failure_says_can_be_told(failure: Failure) -> None:
    assert unpack_failure(pack_failure(failure)) == failure


def test_a_failure_of_another_release_may_say_more_or_less() -> None:
    told = unpack_failure(pack({"type": "KeyError", "message": 7, "colour": "red"}))

    assert told == Failure("KeyError", "7", builtin="", traceback="", worker="", host="")


# What cannot, and what is said of it.

HINT = ", which msgpack cannot carry: use text, numbers, bytes, lists and dicts"


@pytest.mark.parametrize(
    ("content", "culprit"),
    [
        ({1, 2}, "a value of type set at its top"),
        ({"tags": {1}}, "a value of type set under ['tags']"),
        ({"a": {"b": [0, {"c": frozenset()}]}}, "a value of type frozenset under ['a']['b'][1]['c']"),
        ({"when": datetime(2026, 1, 1, tzinfo=UTC)}, "a value of type datetime under ['when']"),
        ([{"who": Person("Ada")}], "a value of type Person under [0]['who']"),
        ((1, (2, 3j)), "a value of type complex under [1][1]"),
        ({"x": 2**64}, "an integer value beyond 64 bits under ['x']"),
        ({"x": -(2**63) - 1}, "an integer value beyond 64 bits under ['x']"),
        ({2**70: "x"}, "an integer key beyond 64 bits at its top"),
        ({"f": print}, "a value of type builtin_function_or_method under ['f']"),
        ({"c": dict}, "a value of type type under ['c']"),
        ({"error": ValueError("x")}, "a value of type ValueError under ['error']"),
        ({"lazy": Tricky()}, "a value of type Tricky under ['lazy']"),
        ({"iter": iter([])}, "a value of type list_iterator under ['iter']"),
        ({1: {3: {5: object()}}}, "a value of type object under [1][3][5]"),
        ({("a", 1): "x"}, "a key of type tuple at its top"),
        ({"table": [{("a", 1): "x"}]}, "a key of type tuple under ['table'][0]"),
        ({Point(1, 2): "x"}, "a key of type Point at its top"),
        ({"by": {frozenset(): "x"}}, "a key of type frozenset under ['by']"),
        ({"view": memoryview(b"abcd")[::2]}, "a value of type memoryview under ['view']"),
        ({"vector": scalar_of_numpy(0, "ndarray", (3,))}, "a value of type ndarray under ['vector']"),
        ({"at": scalar_of_numpy(1_700_000_000, "datetime64")}, "a value of type datetime64 under ['at']"),
        ({"took": scalar_of_numpy(5, "timedelta64")}, "a value of type timedelta64 under ['took']"),
        ({"z": scalar_of_numpy(1j, "complex64")}, "a value of type complex64 under ['z']"),
    ],
)
def test_what_cannot_be_carried_is_named_with_its_type_and_place(content: Any, culprit: str) -> None:
    with pytest.raises(RowError) as caught:
        pack(content)

    assert str(caught.value) == f"the row holds {culprit}{HINT}"


def test_the_place_in_a_row_is_the_one_in_its_content() -> None:
    with pytest.raises(RowError, match=r"a value of type set under \['tags'\]\[1\], which"):
        pack_row({"input": "x", "tags": ["ok", {1}]}, None)


def test_a_long_key_is_shortened() -> None:
    with pytest.raises(RowError) as caught:
        pack({"k" * 10_000: {1}})

    assert len(str(caught.value)) < 300


def test_something_that_holds_itself_is_an_error() -> None:
    family: dict[str, Any] = {"name": "parent"}
    family["children"] = [{"parent": family, "sibling": family} for _ in range(20)]

    with pytest.raises(RowError, match="the row cannot be carried over the network"):
        pack(family)


def test_something_that_holds_itself_and_a_set_is_searched_once() -> None:
    family: dict[str, Any] = {"friends": {1}}
    family = {"children": [{"parent": family, "all": [family] * 5} for _ in range(20)], "family": family}

    with pytest.raises(RowError, match=r"a value of type set under \['children'\]\[0\]\['parent'\]\['friends'\]"):
        pack(family)


def test_what_is_nested_too_deeply_is_an_error() -> None:
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]

    with pytest.raises(RowError, match="the row cannot be carried over the network"):
        pack(deep)


def test_what_packs_also_opens() -> None:
    """The deepest that packs, in a row too, which adds a level."""
    deep: list[Any] = []
    for _ in range(500):
        deep = [deep]

    assert unpack_row(pack_row(deep, 1)) == (deep, 1)


# What comes from a peer.


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"\x01\x01",
        b"\xa1\xff",
        b"\x81\x90\x01",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x91" * 5000,
        b"\xd7\xff" + b"\xff" * 8,
    ],
    ids=repr,
)
def test_bytes_that_are_no_content_are_an_error_with_a_sentence(payload: bytes) -> None:
    for opened in (unpack, unpack_row, unpack_outputs, unpack_failure):
        with pytest.raises(DecodeError, match=r"the content cannot be read: .+"):
            opened(payload)


@given(st.binary(max_size=80))
def test_arbitrary_bytes_do_no_harm(payload: bytes) -> None:
    for opened in (unpack, unpack_row, unpack_outputs, unpack_failure):
        try:
            opened(payload)
        except DecodeError as error:
            complaint = str(error)
            continue
        complaint = "none"
    assert complaint


@pytest.mark.parametrize("value", [None, 7, "x", [], [1], [1, 2, 3], {"content": 1}])
def test_a_row_is_a_list_of_two(value: Any) -> None:
    with pytest.raises(DecodeError, match="a row that is not content and seed"):
        unpack_row(msgpack.packb(value))


@pytest.mark.parametrize("seed", ["1", 1.0, True, [1]])
def test_a_seed_is_an_integer(seed: Any) -> None:
    with pytest.raises(DecodeError, match="a row whose seed is no integer"):
        unpack_row(msgpack.packb(["x", seed]))


@pytest.mark.parametrize("value", [None, 7, {}, ["x"], [{}, None]])
def test_outputs_are_a_list_of_dicts(value: Any) -> None:
    with pytest.raises(DecodeError, match="an answer that is no list of outputs"):
        unpack_outputs(msgpack.packb(value))


@pytest.mark.parametrize("value", [None, 7, [], "ValueError"])
def test_a_failure_is_a_map(value: Any) -> None:
    with pytest.raises(DecodeError, match="a failure that is no map"):
        unpack_failure(msgpack.packb(value))


@pytest.mark.parametrize("kind", [b"\xdd", b"\xdf", b"\xdb", b"\xc6"], ids=["list", "map", "text", "bytes"])
@pytest.mark.parametrize("levels", [1, 900])
def test_long_lengths_that_are_announced_take_no_memory(kind: bytes, levels: int) -> None:
    """Without a look at what follows, nested lists would be allocated as long as they say, at each level."""
    size = 4_000_000
    bomb = (kind + (size - 10_000).to_bytes(4)) * levels
    bomb += b"\xc0" * (size - len(bomb) - 5_000)
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError, match="the content cannot be read"):
            unpack(bomb)
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024 * 1024
    finally:
        tracemalloc.stop()


def test_lengths_that_are_announced_in_short_rows_take_no_memory() -> None:
    rows = [(b"\xdd" + (4_000).to_bytes(4)) * 800] * 4
    tracemalloc.start()
    try:
        assert unpack_rows(rows) is None
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024 * 1024
    finally:
        tracemalloc.stop()


def test_a_list_that_is_as_long_as_it_says_is_opened() -> None:
    value = [[0.5] * 100_000, {"numbers": list(range(70_000)), 7: "\ud800"}]
    assert unpack(pack(value)) == value
    assert unpack_row(pack_row(value, 1)) == (value, 1)
    broken = pack(value)[:-1]
    with pytest.raises(DecodeError, match="announces more than there is"):
        unpack(broken)


@given(st.lists(st.lists(st.dictionaries(texts, scalars, max_size=3), min_size=2, max_size=2), min_size=1, max_size=4))
def test_answers_are_opened_together_as_one_by_one(answers: list[list[dict[str, Any]]]) -> None:
    payloads = [pack(outputs) for outputs in answers]
    assert unpack_each_outputs(payloads, 2) == [unpack_outputs(payload) for payload in payloads]
    assert unpack_each_outputs(payloads, 1) is None


def test_what_is_no_answer_is_looked_at_by_itself() -> None:
    good = pack([{"a": 1}])
    for bad in (b"\xc1", b"", pack({"a": 1}), pack(["a"]), good + good, good[:-1]):
        assert unpack_each_outputs([good, bad], 1) is None
