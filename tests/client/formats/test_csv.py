"""CSV files from everywhere, and back."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from genpool.client.formats.base import Line
from genpool.client.formats.csv import CsvSource, export_csv
from genpool.protocol.errors import ConfigurationError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "in.csv"


def read(path: Path, content: bytes, *needed: str) -> list[Line]:
    path.write_bytes(content)
    with CsvSource(str(path)) as source:
        count = source.count()
        lines = list(source.lines(lambda: needed))
        source.rewind()
        assert list(source.lines(lambda: needed)) == lines
        assert count == len(lines)
        return lines


def test_a_spreadsheets_file_is_read_by_its_header_and_numbered_as_an_editor_does(path: Path) -> None:
    content = b'\xef\xbb\xbfinput,"a, b"\r\n"two\r\nlines, ""quoted""",1\r\n\r\n\xc3\xbc,\r\n'
    assert read(path, content) == [
        Line(2, {"input": 'two\r\nlines, "quoted"', "a, b": "1"}),
        Line(5, {"input": "ü", "a, b": ""}),
    ]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (b"one,two,three", "there are 3 fields, and the header names 2 columns"),
        (b"one", "there is 1 field, and the header names 2 columns"),
        (b"\xff,2", "this is no UTF-8: 0xff"),
        (b'"one"two,3', "this is no CSV: ',' expected after '\"'"),
        (b"one\rtwo,3", "this is no CSV: new-line character seen in unquoted field"),
    ],
)
def test_a_record_that_cannot_be_used_costs_no_other(path: Path, record: bytes, said: str) -> None:
    first, bad, last = read(path, b'input,id\n"o\nne",1\n' + record + b"\nlast,3\n", "input")
    assert (first.row["input"], last.row, last.problem) == ("o\nne", {"input": "last", "id": "3"}, "")
    assert bad.problem.startswith(f"{path}, line 4: {said}")


def test_a_quote_that_is_not_closed_is_found_at_the_end(path: Path) -> None:
    first, bad = read(path, b'input\none\n"two\nthree\n')
    assert (first.problem, bad.number) == ("", 3)
    assert bad.problem == f"{path}, line 3: this is no CSV: unexpected end of data"


def test_a_column_that_is_missing_is_named(path: Path) -> None:
    (line,) = read(path, b"prompt;id\none;1\n", "input")
    assert line.problem == f"{path}, line 2: the column 'input' is missing; there is 'prompt;id'"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "line 1: the file is empty; a CSV file begins with the names of its columns"),
        (b"a,b,a\n", "line 1: the column 'a' is there twice"),
        (b"a,\n", "line 1: the column 2 has no name"),
        (b"\xff\xfea\x00", "line 1: this is no UTF-8: 0xff"),
        (b'"a\n', "line 1: this is no CSV: unexpected end of data"),
    ],
)
def test_a_header_that_is_of_no_use_is_refused(path: Path, content: bytes, said: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        read(path, content)
    assert str(raised.value).startswith(f"{path}, {said}")


def test_a_text_longer_than_the_libraries_limit_is_read(path: Path) -> None:
    (line,) = read(path, b"input\n" + b"x" * 1_000_000 + b"\n")
    assert len(line.row["input"]) == 1_000_000


def test_rows_come_back_as_text_whatever_is_in_it(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"input": 'a "quote", a\nline, a\rreturn', "id": 1, "generations": ["ü", None]},
        {"input": "", "usage": {"tokens": 2}, "good": True, "half": "\ud800"},
    ]
    working, target = tmp_path / "working.jsonl", tmp_path / "out.csv"
    working.write_text("".join(json.dumps(row) + "\n" for row in rows))
    export_csv(working, target)
    names = ["input", "id", "generations", "usage", "good", "half"]
    wanted = [
        dict(zip(names, ['a "quote", a\nline, a\rreturn', "1", '["ü", null]', "", "", ""], strict=True)),
        dict(zip(names, ["", "", "", '{"tokens": 2}', "true", "\\ud800"], strict=True)),
    ]
    with CsvSource(str(target)) as source:
        assert [line.row for line in source.read()] == wanted
    with target.open(newline="") as file:
        assert list(csv.DictReader(file)) == wanted
