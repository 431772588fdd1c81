"""CSV as RFC 4180 has it: a line of column names, then rows of text. What is no text is written as JSON."""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...protocol.errors import ConfigurationError
from ...protocol.printable import plural
from .base import Line, Source
from .file import ByteFile
from .target import replacing
from .working import rows_of

# A quote that is not closed makes one field of all that follows; a longer text than this in a cell is taken for that.
_MAX_FIELD_CHARACTERS = 1 << 25


class CsvSource(Source):
    """A CSV file with a header, or standard input; all values are text.

    Args:
        path, is_read_twice: as for ByteFile.

    Raises:
        ConfigurationError: when it cannot be read, or the header is of no use.
    """

    def __init__(self, path: str, *, is_read_twice: bool = False) -> None:
        # Of the whole process; no smaller limit that somebody set is of use here, as any text may be a prompt.
        csv.field_size_limit(max(csv.field_size_limit(), _MAX_FIELD_CHARACTERS))
        self._file = ByteFile(path, is_read_twice=is_read_twice)
        self.name = self._file.name
        try:
            self._records = self._begin()
            self._columns = self._header()
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        self._file.close()

    def is_at(self, found: os.stat_result) -> bool:
        return self._file.is_at(found)

    def rewind(self) -> None:
        self._file.rewind()
        self._records = self._begin()
        next(self._records)

    def count(self) -> int | None:
        if not self._file.is_seekable:
            return None
        rows = sum(1 for _ in self._records)
        self.rewind()
        return rows

    def read(self) -> Iterator[Line]:
        for number, fields, problem in self._records:
            problem = problem or self._problem(fields)
            row = {} if problem else dict(zip(self._columns, fields, strict=True))
            yield Line(number, row, f"{self.at(number)}: {problem}" if problem else "")

    def _begin(self) -> Iterator[tuple[int, list[str], str]]:
        return _records(self._file.lines())

    def _header(self) -> list[str]:
        """The names of the columns. Raises ConfigurationError."""
        number, columns, problem = next(self._records, (1, list[str](), "the file is empty"))
        twice = [name for at, name in enumerate(columns) if name in columns[:at]]
        if twice:
            problem = f"the column {twice[0]!r} is there twice"
        elif "" in columns:
            problem = f"the column {columns.index('') + 1} has no name"
        problem = problem or self._undecodable(columns)
        if problem:
            raise ConfigurationError(f"{self.at(number)}: {problem}; a CSV file begins with the names of its columns")
        return columns

    def _problem(self, fields: Sequence[str]) -> str:
        if len(fields) != len(self._columns):
            there = f"there {'is' if len(fields) == 1 else 'are'} {plural(len(fields), 'field')}"
            return f"{there}, and the header names {plural(len(self._columns), 'column')}"
        return self._undecodable(fields)

    @staticmethod
    def _undecodable(fields: Sequence[str]) -> str:
        try:
            "".join(fields).encode()
        except UnicodeEncodeError as error:
            return f"this is no UTF-8: 0x{ord(error.object[error.start]) - 0xDC00:02x}"
        return ""


def _records(lines: Iterator[bytes]) -> Iterator[tuple[int, list[str], str]]:
    """For each record that is not blank: the line where it begins, its fields, and why it cannot be read."""
    records = csv.reader(_texts(lines), strict=True)
    while True:
        number = records.line_num + 1
        try:
            fields, problem = next(records), ""
        except StopIteration:
            return
        except csv.Error as error:
            fields, problem = [], f"this is no CSV: {error}"
        if fields or problem:
            yield number, fields, problem


def _texts(lines: Iterator[bytes]) -> Iterator[str]:
    """Each line as text. A byte that is no UTF-8 is a lone surrogate, so that it costs no other record."""
    for number, line in enumerate(lines):
        yield (line if number else line.removeprefix(codecs.BOM_UTF8)).decode(errors="surrogateescape")


def export_csv(working: Path, target: Path) -> None:
    """Write the rows of ``working`` to ``target``. Raises GenpoolError as ``replacing`` does."""
    columns = list(dict.fromkeys(name for row in rows_of(working) for name in row))
    with replacing(target) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        writer = csv.writer(text)
        writer.writerow(columns)
        writer.writerows([_cell(row.get(name)) for name in columns] for row in rows_of(working))
        text.detach()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
