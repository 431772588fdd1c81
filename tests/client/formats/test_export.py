"""Whole files made of a working file, in every format that needs one: right, at once, or not at all."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from extras import require

from genpool.client.formats.format import NAMES, format_of, open_source
from genpool.protocol.errors import GenpoolError

EXPORTED = [name for name in NAMES if not format_of("-", name).is_lines]
TYPED = [name for name in EXPORTED if format_of("-", name).package]


@pytest.fixture(params=EXPORTED)
def name(request: pytest.FixtureRequest) -> str:
    package = format_of("-", request.param).package
    if package:
        require(package)
    return request.param


@pytest.fixture
def working(tmp_path: Path) -> Path:
    return tmp_path / "out.partial.jsonl"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    # In a folder of its own, to see what else is left there.
    (tmp_path / "there").mkdir()
    return tmp_path / "there" / "out"


def export(name: str, working: Path, target: Path, rows: Sequence[dict[str, Any]]) -> None:
    working.write_text("".join(json.dumps(row) + "\n" for row in rows))
    export_of = format_of(str(target), name).export
    assert export_of is not None
    export_of(working, target)


def read(name: str, target: Path) -> list[dict[str, Any]]:
    with open_source(str(target), name) as source:
        count = source.count()
        lines = list(source.lines(list))
        assert count == len(lines)
        assert not [line.problem for line in lines if line.problem]
        return [line.row for line in lines]


def test_rows_come_out_as_they_went_in_and_in_order(name: str, working: Path, target: Path) -> None:
    rows = [{"input": f"row {at}, ü\n", "generations": f"{at}"} for at in range(25_000)]
    export(name, working, target, rows)
    assert read(name, target) == rows
    assert working.exists()


def test_a_second_export_takes_the_place_of_the_first_and_leaves_nothing_else(
    name: str, working: Path, target: Path
) -> None:
    for text in ("first", "second"):
        export(name, working, target, [{"input": text}])
        assert read(name, target) == [{"input": text}]
        assert list(target.parent.iterdir()) == [target]


def test_no_rows_are_a_file_too(name: str, working: Path, target: Path) -> None:
    export(name, working, target, [])
    assert target.exists()
    if name != "csv":  # which has no header then
        assert read(name, target) == []


def test_a_full_disk_leaves_what_was_there(
    name: str, working: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(name, working, target, [{"input": "first"}])

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(GenpoolError, match="there/out cannot be written: No space left on device"):
            export(name, working, target, [{"input": "second"}])
    assert read(name, target) == [{"input": "first"}]
    assert list(target.parent.iterdir()) == [target]


def test_a_link_goes_on_to_point_to_what_is_written(name: str, working: Path, target: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(target)
    export(name, working, link, [{"input": "one"}])
    assert link.is_symlink()
    assert read(name, target) == [{"input": "one"}]


def test_a_working_file_that_is_damaged_is_named(name: str, working: Path, target: Path) -> None:
    if name == "jsonl.gz":
        pytest.skip("packs what is there")
    working.write_text('{"input": 1}\n{"inp')
    export_of = format_of(str(target), name).export
    assert export_of is not None
    with pytest.raises(GenpoolError, match=r"out\.partial\.jsonl, line 2: this is no JSON"):
        export_of(working, target)
    assert not list(target.parent.iterdir())


def test_a_row_that_is_nested_too_deeply_is_named(name: str, working: Path, target: Path) -> None:
    if name == "jsonl.gz":
        pytest.skip("packs what is there")
    # Within what the JSON parser reads, and beyond what Python's own calls may be nested.
    depth = 600 if sys.version_info < (3, 12) else 1200
    working.write_text('{"input": 1}\n{"input": "\\u0000", "deep": ' + "[" * depth + "]" * depth + "}\n")
    export_of = format_of(str(target), name).export
    assert export_of is not None
    with pytest.raises(GenpoolError, match=r"out\.partial\.jsonl, line 2: this is nested too deeply"):
        export_of(working, target)
    assert not list(target.parent.iterdir())


@pytest.fixture(params=TYPED)
def typed(request: pytest.FixtureRequest) -> Iterator[str]:
    require(format_of("-", request.param).package)
    return request.param


def test_types_are_kept_and_what_is_missing_is_none(typed: str, working: Path, target: Path) -> None:
    rows = [
        {"id": 1, "score": 1, "good": True, "generations": ["a", None], "none": None},
        {"id": 2**60, "score": 0.5, "prompt": [{"role": "user", "content": "x"}], "generations": []},
        {"usage": {"tokens": 3}, "generations": None},
        {"usage": {"cost": 0.5}, "prompt": [{"role": "user", "name": "n"}]},
    ]
    export(typed, working, target, rows)
    assert read(typed, target) == [
        {"id": 1, "score": 1.0, "good": True, "generations": ["a", None], "none": None, "prompt": None, "usage": None},
        {
            "id": 2**60,
            "score": 0.5,
            "good": None,
            "generations": [],
            "none": None,
            "prompt": [{"role": "user", "content": "x", "name": None}],
            "usage": None,
        },
        dict.fromkeys(["id", "score", "good", "generations", "none", "prompt"])
        | {"usage": {"tokens": 3, "cost": None}},
        dict.fromkeys(["id", "score", "good", "generations", "none"])
        | {"prompt": [{"role": "user", "content": None, "name": "n"}], "usage": {"tokens": None, "cost": 0.5}},
    ]


@pytest.mark.parametrize(
    "values",
    [
        [1, "one"],
        [None, 1, [1]],
        [None, ["a"], {"a": 1}],
        [{"a": 1}, {"a": [1]}],
        [{}, {}],
        [[{}]],
        [[1, "a"], None],
        [2**70, 1],
        [0.5, 2**60],
        [True, 1],
        [{str(at): at} for at in range(1000)],
    ],
)
def test_values_of_no_common_type_come_back_as_they_were_and_a_warning_names_the_column(
    typed: str, working: Path, target: Path, values: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    export(typed, working, target, [{"id": at, "odd": value} for at, value in enumerate(values)])
    rows = read(typed, target)
    assert [row["id"] for row in rows] == list(range(len(values)))
    assert [row["odd"] for row in rows] == values
    (said,) = caplog.messages
    assert said == f"{target}: values of no common type are written as JSON, in the column 'odd'"


def test_what_a_library_cannot_write_is_one_sentence_that_says_where_the_rows_are(
    typed: str, working: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from genpool.client.formats import arrow

    monkeypatch.setattr(arrow.Tables, "_table", lambda *_: {}["no\nsuch type"])
    with pytest.raises(GenpoolError) as raised:
        export(typed, working, target, [{"input": 1}])
    wanted = f"{target} cannot be written: 'no\\nsuch type'; the rows are whole in {working}, as JSONL"
    assert str(raised.value) == wanted
    assert not list(target.parent.iterdir())


def test_a_row_at_the_end_may_differ_from_all_before(typed: str, working: Path, target: Path) -> None:
    rows: list[dict[str, Any]] = [{"input": 1} for _ in range(12_000)]
    export(typed, working, target, [*rows, {"input": "text", "error": "late"}])
    *_, before, last = read(typed, target)
    assert (before, last) == ({"input": 1, "error": None}, {"input": "text", "error": "late"})


def test_a_name_with_a_zero_byte_is_written_with_its_escape(name: str, working: Path, target: Path) -> None:
    rows = [{"a\0": "zero \0 byte", "a": "x"}]
    export(name, working, target, rows)
    assert read(name, target) == (rows if name == "jsonl.gz" else [{"a\\x00": "zero \0 byte", "a": "x"}])


def test_text_that_utf8_has_no_form_for_becomes_its_escape(name: str, working: Path, target: Path) -> None:
    export(name, working, target, [{"in\udfffput": "half \ud800 of 😀", "list": '["\ud800"]'}])
    (row,) = read(name, target)
    if name == "jsonl.gz":
        assert row == {"in\udfffput": "half \ud800 of 😀", "list": '["\ud800"]'}
    else:
        assert row == {"in\\udfffput": "half \\ud800 of 😀", "list": '["\\ud800"]'}
