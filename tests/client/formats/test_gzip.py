"""JSONL that gzip has packed: in one piece or several, whole or not."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from genpool.client.formats.base import Line
from genpool.client.formats.format import open_source
from genpool.client.formats.jsonl import export_gzip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "in.jsonl.gz"


def packed(*numbers: int) -> bytes:
    # Random text, so that the packed bytes are as many as the rows.
    lines = (json.dumps({"input": number, "text": os.urandom(500).hex()}) + "\n" for number in numbers)
    return gzip.compress("".join(lines).encode())


def read(path: Path, content: bytes) -> list[Line]:
    path.write_bytes(content)
    with open_source(str(path)) as source:
        count = source.count()
        lines = list(source.lines(lambda: ["input"]))
        assert count == len(lines)
        return lines


def test_members_one_after_the_other_are_one_file(path: Path) -> None:
    content = packed(*range(1000)) + packed(1000) + gzip.compress(b"") + packed(1001)
    lines = read(path, content)
    assert [line.row["input"] for line in lines] == list(range(1002))
    assert lines[-1].number == 1002


def test_padding_after_the_end_is_passed_over(path: Path) -> None:
    assert len(read(path, packed(1, 2) + b"\0" * 512)) == 2


def test_what_is_cut_off_gives_the_rows_that_are_whole_and_says_how_many(path: Path) -> None:
    content = packed(*range(1000))
    *whole, cut = read(path, content[: len(content) // 2])
    assert [line.row["input"] for line in whole] == list(range(len(whole)))
    assert 400 < len(whole) < 600
    assert cut.problem == (
        f"{path}, line {len(whole) + 1}: the gzip data end too early: the file is cut off; "
        f"the {len(whole)} rows before it are whole"
    )


def test_a_file_that_is_cut_off_after_one_row_says_so(path: Path) -> None:
    _, cut = read(path, packed(1) + packed(2)[:20])
    assert cut.problem.endswith("the file is cut off; the 1 row before it is whole")


@pytest.mark.parametrize("missing", range(1, 9))
def test_not_a_byte_of_the_end_may_be_missing(path: Path, missing: int) -> None:
    assert "cut off; the 2 rows before" in read(path, packed(1, 2)[:-missing])[-1].problem


def test_what_is_damaged_or_not_packed_says_so(path: Path) -> None:
    content = bytearray(packed(*range(1000)))
    content[len(content) // 2] ^= 255
    *whole, bad = read(path, bytes(content))
    # A flipped byte may show at once or in the sum at the end.
    assert "the gzip data are damaged" in bad.problem
    assert all(not line.problem for line in whole if line.row)
    (bad,) = read(path, b'{"input": 1}\n')
    assert bad.problem.startswith(f"{path}, line 1: this is no gzip data")


def test_an_empty_file_has_no_rows(path: Path) -> None:
    assert read(path, b"") == []
    assert read(path, gzip.compress(b"")) == []


def test_the_same_rows_make_the_same_bytes_and_any_gzip_reads_them(tmp_path: Path) -> None:
    working = tmp_path / "working.jsonl"
    working.write_bytes(b'{"input": 1}\n' * 3)
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        export_gzip(working, tmp_path / name)
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    # Where gzip has the time.
    assert (tmp_path / "a.jsonl.gz").read_bytes()[4:8] == bytes(4)
    assert gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes()) == working.read_bytes()
