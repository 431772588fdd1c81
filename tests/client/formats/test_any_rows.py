"""Whatever rows a run has written, every format writes them, and reads them as what they were."""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import pytest
from extras import require
from hypothesis import given, settings
from hypothesis import strategies as st

from genpool.client.formats.format import format_of, open_source

# Names that a format may have a meaning of its own for, and text that it may trip over.
NAMES = st.sampled_from(["a", "b", "", "_type", "dtype", "feature", "list", "item", "a.b", "ü\n", '"', "id"])
TEXTS = st.sampled_from(["", "x", '"quoted", text', "line\nline\rline\r\n", "\0", "ü😀", " ", "1", "null", "[]", "{}"])
NUMBERS = st.one_of(st.integers(-3, 3), st.sampled_from([2**53 + 1, 2**63 - 1, -(2**63), 2**70, 0.5, 1e300, -0.0]))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=8,
)
# Few columns, and often one kind of value in each, so that typed columns are as many as mixed ones.
ROWS = st.one_of(
    st.lists(st.dictionaries(NAMES, VALUES, min_size=1, max_size=3), max_size=5),
    st.sampled_from([NUMBERS, TEXTS, st.lists(TEXTS, max_size=2), st.dictionaries(NAMES, TEXTS, max_size=3)]).flatmap(
        lambda values: st.lists(st.fixed_dictionaries({"a": st.none() | values}), max_size=5)
    ),
)


def written(name: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows as they come back from a file in the format."""
    with tempfile.TemporaryDirectory() as folder:
        working, target = Path(folder) / "working.jsonl", Path(folder) / "out"
        working.write_text("".join(json.dumps(row) + "\n" for row in rows))
        export = format_of("", name).export
        assert export is not None
        export(working, target)
        with open_source(str(target), name) as source:
            lines = list(source.read())
    assert [line.problem for line in lines] == [""] * len(rows)
    return [line.row for line in lines]


def filled(given: Any, found: Any) -> bool:
    """Whether ``found`` is ``given``, but for keys that another row has and are None here, and whole floats."""
    if isinstance(given, dict) and isinstance(found, dict):
        return given.keys() <= found.keys() and all(filled(given.get(name), value) for name, value in found.items())
    if isinstance(given, list) and isinstance(found, list):
        return len(given) == len(found) and all(map(filled, given, found))
    is_number = type(given) is int and type(found) is float
    return given == found and (type(given) is type(found) or is_number)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "genpool.generate")


@given(ROWS)
@settings(max_examples=150, deadline=None)
def test_parquet_gives_every_value_back(rows: list[dict[str, Any]]) -> None:
    require("pyarrow")
    assert all(map(filled, rows, written("parquet", rows)))


@given(ROWS)
@settings(max_examples=60, deadline=None)
def test_a_dataset_gives_every_value_back(rows: list[dict[str, Any]]) -> None:
    require("datasets")
    assert all(map(filled, rows, written("dataset", rows)))


@given(ROWS)
@settings(max_examples=150, deadline=None)
def test_packed_lines_are_the_lines(rows: list[dict[str, Any]]) -> None:
    assert written("jsonl.gz", rows) == rows
