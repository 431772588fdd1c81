"""JSONL in and out: lines that say what is wrong with them, and an output that never holds half a line."""

from __future__ import annotations

import codecs
import dataclasses
import errno
import io
import json
import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from ..protocol.errors import ConfigurationError, GenpoolError

STANDARD_STREAM = "-"

_PIECE_BYTES = 1 << 16

_JSON_NAMES: dict[type[Any], str] = {
    list: "a list",
    str: "a text",
    bool: "true or false",
    int: "a number",
    float: "a number",
}


@dataclass(frozen=True, slots=True)
class Line:
    """One line that is not blank: its columns, or what is left of them, and what makes it unusable."""

    number: int
    row: dict[str, Any]
    problem: str = ""


class Source:
    """A file of rows, or standard input, as a context manager.

    Args:
        path: ``-`` is standard input.
        is_read_twice: keeps in memory what can be read only once, so that ``rewind`` works.

    Raises:
        ConfigurationError: when it cannot be read.
    """

    def __init__(self, path: str, *, is_read_twice: bool = False) -> None:
        self.name = "standard input" if path == STANDARD_STREAM else path
        self.path = None if path == STANDARD_STREAM else path
        if self.path is None and sys.stdin is None:  # pyright: ignore[reportUnnecessaryComparison]
            raise ConfigurationError("the input cannot be read: standard input is closed")
        try:
            # Without Python's buffer: a thread that waits for a line in it would hold up whoever closes the file.
            source: str | int = 0 if self.path is None else path
            self._file: RawIOBase | io.BytesIO = io.FileIO(source, closefd=self.path is not None)
            self.stat = os.fstat(self._file.fileno())
            if is_read_twice and not self._file.seekable():
                with self._file as pipe:
                    self._file = io.BytesIO(b"".join(_pieces(pipe)))
            self._start = self._file.tell() if self._file.seekable() else 0
        except OSError as error:
            raise ConfigurationError(f"the input {self.name} cannot be read: {error.strerror}") from None

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def rewind(self) -> None:
        """Go back to the first line."""
        self._file.seek(self._start)

    def count(self) -> int | None:
        """How many lines there are, before any is read; None where that cannot be told."""
        if not self._file.seekable():
            return None
        lines = sum(1 for raw in self._raw_lines() if raw.strip())
        self.rewind()
        return lines

    def lines(self, needed: Callable[[], Sequence[str]]) -> Iterator[Line]:
        """The lines that are not blank. One that cannot be used says why, by file and line.

        Args:
            needed: the columns that a row must have, as far as they are known when it is read.
        """
        for number, raw in enumerate(self._raw_lines(), 1):
            if number == 1:
                raw = raw.removeprefix(codecs.BOM_UTF8)
            if raw.strip():
                yield self._line(number, raw, needed)

    def _raw_lines(self) -> Iterator[bytes]:
        """The bytes of each line, as soon as it is whole."""
        begun: list[bytes] = []
        for piece in _pieces(self._file):
            *whole, rest = piece.split(b"\n")
            for line in whole:
                yield b"".join((*begun, line))
                begun.clear()
            begun.append(rest)
        if any(begun):
            yield b"".join(begun)

    def lacking(self, number: int, row: Mapping[str, Any], needed: Sequence[str]) -> str:
        """What to say of a row without some of its ``needed`` columns; nothing when it has them all."""
        missing = [name for name in needed if name not in row]
        if not missing:
            return ""
        there = ", ".join(map(repr, row)) or "none"
        return f"{self.name}, line {number}: the column {', '.join(map(repr, missing))} is missing; there is {there}"

    def _line(self, number: int, raw: bytes, needed: Callable[[], Sequence[str]]) -> Line:
        try:
            row = _parse(raw.rstrip())
        except ValueError as error:
            return Line(number, {}, f"{self.name}, line {number}: {error}")
        return Line(number, row, self.lacking(number, row, needed()))


def _pieces(file: RawIOBase | io.BytesIO) -> Iterator[bytes]:
    """All of a file, in pieces as they come."""
    while piece := file.read(_PIECE_BYTES):
        yield piece


def _parse(raw: bytes) -> dict[str, Any]:
    """The JSON object in one line. Raises ValueError that says what is wrong."""
    try:
        value: Any = json.loads(raw.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"this is no UTF-8: 0x{raw[error.start]:02x} at byte {error.start + 1}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"this is no JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("this is nested too deeply") from None
    if isinstance(value, dict):
        return cast(dict[str, Any], value)
    kind = _JSON_NAMES.get(cast(type[Any], type(value)), "null")
    raise ValueError(f'a row is a JSON object such as {{"input": …}}, and this is {kind}')


def check_target(path: str, source: Source) -> None:
    """Look, before any work, whether rows can be written to ``path``; ``-`` is standard output.

    Raises:
        ConfigurationError: says why not.
    """
    if path == STANDARD_STREAM:
        # Closed, its number may be another file's by now: the input's.
        if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison]
            raise ConfigurationError("the output cannot be written: standard output is closed")
        found = _stat(1)
    else:
        folder = Path(path).parent
        if not folder.is_dir():
            raise ConfigurationError(f"the output {path} cannot be written: there is no directory {folder}")
        found = _stat(path)
        if found is not None and stat.S_ISDIR(found.st_mode):
            raise ConfigurationError(f"the output {path} cannot be written: it is a directory")
        if not os.access(path if found else folder, os.W_OK):
            raise ConfigurationError(f"the output {path} cannot be written: permission denied")
    if found is not None and stat.S_ISREG(found.st_mode) and os.path.samestat(found, source.stat):
        raise ConfigurationError(f"{source.name} is the input and the output: write to another file")


def _stat(file: str | int) -> os.stat_result | None:
    try:
        return os.fstat(file) if isinstance(file, int) else Path(file).stat()
    except OSError:
        return None


class Target:
    """Where rows are written, as a context manager. A row is in the file, whole, when ``write`` returns.

    Raises:
        ConfigurationError: when it cannot be opened.
    """

    def __init__(self, path: str) -> None:
        self.name = "standard output" if path == STANDARD_STREAM else path
        self.path = None if path == STANDARD_STREAM else path
        try:
            # Unbuffered: what is killed leaves all lines that it said it had written.
            self._file = open(1 if self.path is None else path, "wb", buffering=0, closefd=self.path is not None)  # noqa: SIM115
        except OSError as error:
            raise ConfigurationError(f"the output {self.name} cannot be written: {error.strerror}") from None

    def __enter__(self) -> Target:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: TracebackType | BaseException | None) -> None:
        try:
            self._file.close()
        except OSError as error:
            if kind is None:
                raise self._failed(error) from error

    def write(self, line: bytes) -> None:
        """Write one line.

        Raises:
            BrokenPipeError: when nobody reads any more.
            GenpoolError: when it cannot be written (a full disk, say); no half line is left in a file.
        """
        left = memoryview(line)
        try:
            while left:
                left = left[self._file.write(left) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            self._take_back(len(line) - len(left))
            raise self._failed(error) from error

    def _take_back(self, size: int) -> None:
        try:
            if size and stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
                self._file.truncate(self._file.seek(-size, io.SEEK_CUR))
        except OSError:
            pass  # the disk is beyond that; the error that follows tells

    def _failed(self, error: OSError) -> GenpoolError:
        return GenpoolError(f"{self.name} cannot be written: {error.strerror or errno.errorcode.get(error.errno or 0)}")


def encode(row: Mapping[str, Any]) -> bytes:
    """One row as a line, in readable UTF-8; a lone surrogate, which UTF-8 has no form for, makes it plain ASCII.

    Raises:
        ValueError: a value contains itself, or is nested too deeply.
        TypeError: a key that JSON cannot have.
    """
    try:
        return _dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return _dumps(row, ensure_ascii=True).encode()


def _dumps(row: Mapping[str, Any], *, ensure_ascii: bool) -> str:
    try:
        return json.dumps(row, ensure_ascii=ensure_ascii, default=_plain) + "\n"
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _plain(value: Any) -> Any:
    """What stands for a value that JSON has no form for: a task may return anything."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if isinstance(value, (set, frozenset)):
        return list(cast(set[Any], value))
    return str(value)
