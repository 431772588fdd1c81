"""Reading lines that may be anything, and writing none by half."""

from __future__ import annotations

import errno
import io
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from genpool.client.formats.base import Line
from genpool.client.formats.format import format_of
from genpool.client.formats.jsonl import JsonlSource as Source
from genpool.client.formats.jsonl import encode
from genpool.client.formats.target import Target, check_target
from genpool.protocol.errors import ConfigurationError, GenpoolError


def read(path: Path, content: bytes, *needed: str) -> list[Line]:
    path.write_bytes(content)
    with Source(str(path)) as source:
        return list(source.lines(lambda: needed))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "in.jsonl"


def test_blank_lines_and_a_byte_order_mark_are_passed_over_and_numbers_are_those_of_an_editor(path: Path) -> None:
    content = b'\xef\xbb\xbf{"input": "\xc3\xbc"}\r\n\n  \n{"input": 2}'
    assert read(path, content) == [Line(1, {"input": "ü"}), Line(4, {"input": 2})]


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b'{"input": 1', "this is no JSON: Expecting ',' delimiter at column 12"),
        (b'["input"]', 'a row is a JSON object such as {"input": …}, and this is a list'),
        (b"null", 'a row is a JSON object such as {"input": …}, and this is null'),
        (b'{"input": "\xff"}', "this is no UTF-8: 0xff at byte 12"),
        (b"[" * 100_000, "this is nested too deeply"),
        (b'{"input": ' + b"1" * 5000 + b"}", "Exceeds the limit"),
        (b'{"prompt": 1, "id": 2}', "the column 'input' is missing; there is 'prompt', 'id'"),
        (b"{}", "the column 'input' is missing; there is none"),
    ],
)
def test_an_unusable_line_is_told_of_by_file_and_line_and_costs_no_other(path: Path, raw: bytes, said: str) -> None:
    first, bad, last = read(path, b'{"input": 1}\n' + raw + b'\n{"input": 3}\n', "input")
    assert (first.problem, last.row, last.problem) == ("", {"input": 3}, "")
    assert bad.problem.startswith(f"{path}, line 2: {said}")


def test_a_line_without_a_column_keeps_the_others(path: Path) -> None:
    assert read(path, b'{"id": 7}', "input")[0].row == {"id": 7}


def test_a_file_is_counted_and_read_again(path: Path) -> None:
    path.write_bytes(b'{"a": 1}\n\n{"a": 2}\n')
    with Source(str(path)) as source:
        assert source.count() == 2
        first = list(source.lines(list))
        source.rewind()
        assert list(source.lines(list)) == first == [Line(1, {"a": 1}), Line(3, {"a": 2})]


def test_a_pipe_is_read_twice_only_when_that_is_asked_for(tmp_path: Path) -> None:
    def piped(*, is_read_twice: bool) -> Source:
        reader, writer = os.pipe()
        os.write(writer, b'{"a": 1}\n')
        os.close(writer)
        try:
            return Source(f"/dev/fd/{reader}", is_read_twice=is_read_twice)
        finally:
            os.close(reader)

    with piped(is_read_twice=False) as once:
        assert once.count() is None
        assert len(list(once.lines(list))) == 1
    with piped(is_read_twice=True) as twice:
        assert twice.count() == 1
        assert len(list(twice.lines(list))) == 1


def test_an_input_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none\.jsonl cannot be read: No such file"):
        Source(str(tmp_path / "none.jsonl"))
    with pytest.raises(ConfigurationError, match="cannot be read: Is a directory"):
        Source(str(tmp_path))


def test_an_output_that_cannot_be_written_is_found_before_any_work(path: Path) -> None:
    path.write_bytes(b"{}")
    link = path.with_name("link.jsonl")
    link.symlink_to(path)
    with Source(str(path)) as source:
        check_target(str(path.with_name("out.jsonl")), source, format_of("out.jsonl"))
        check_target("/dev/null", source, format_of("/dev/null"))
        for target, said in [
            (path.parent / "none" / "out.jsonl", "there is no directory"),
            (path.parent, "it is a directory"),
            (link, "is the input and the output"),
        ]:
            with pytest.raises(ConfigurationError, match=said):
                check_target(str(target), source, format_of("out.jsonl"))


@dataclass
class FullDisk:
    """A file on a disk that takes so many bytes more."""

    file: Any
    room: int

    def write(self, data: memoryview) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = self.file.write(data[: self.room])
        self.room -= taken
        return taken

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def test_a_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with Target(str(path)) as target:
        target._file = cast(io.FileIO, FullDisk(target._file, room=20))
        target.write(b'{"row": 1}\n')
        with pytest.raises(GenpoolError, match=r"out\.jsonl cannot be written: No space left on device"):
            target.write(b'{"row": 2}\n')
        assert path.read_bytes() == b'{"row": 1}\n'


def test_a_line_is_in_the_file_when_write_returns(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with Target(str(path)) as target:
        target.write(b"{}\n")
        assert path.read_bytes() == b"{}\n"


def test_text_stays_readable_and_a_lone_surrogate_comes_through() -> None:
    assert encode({"a": "ü"}) == '{"a": "ü"}\n'.encode()
    assert json.loads(encode({"a": "ü\ud800"}).decode()) == {"a": "ü\ud800"}


def test_what_json_has_no_form_for_is_written_as_text_or_refused() -> None:
    @dataclass
    class Score:
        value: int

    row = {"score": Score(3), "bytes": b"\xff", "set": {1}, "other": io.StringIO}
    assert json.loads(encode(row)) == {"score": {"value": 3}, "bytes": "\\xff", "set": [1], "other": str(io.StringIO)}
    numbers = {"a": math.nan, "b": [{"c": -math.inf, "Infinity": "NaN ü\ud800"}, 1.5]}
    assert json.loads(encode(numbers), parse_constant=pytest.fail) == {
        "a": None,
        "b": [{"c": None, "Infinity": "NaN ü\ud800"}, 1.5],
    }
    assert encode({"a": math.nan}, has_nan=True) == b'{"a": NaN}\n'
    itself: list[Any] = []
    itself.append(itself)
    with pytest.raises(ValueError, match="Circular"):
        encode({"a": itself})
    with pytest.raises(TypeError):
        encode({"a": {(1, 2): 3}})
