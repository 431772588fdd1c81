"""What a run knows of a format: lines that say what is wrong with them, and how rows are read and written."""

from __future__ import annotations

import dataclasses
import errno
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, Self

from ...protocol.errors import ConfigurationError
from ...tasks.output import LLMOutput

STANDARD_STREAM = "-"


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the input: its columns, or what is left of them, and what makes it unusable.

    Attributes:
        number: the line of the file where it begins, or the row, counted from 1.
        row: the columns.
        problem: why no LLM can be asked, by file and number; empty where one can.
        options: generation options of this row alone, by the names that engines know, and ``seed``; None where the
            format has none.
    """

    number: int
    row: dict[str, Any]
    problem: str = ""
    options: Mapping[str, Any] | None = None


class Source(ABC):
    """Rows to generate for, as a context manager.

    Attributes:
        name: what sentences call it: a path, as a rule.
        unit: what a ``Line.number`` counts.
    """

    name: str
    unit = "line"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:  # noqa: B027  rows in memory have nothing to close
        """Give the file back."""

    def is_at(self, found: os.stat_result) -> bool:
        """Whether the file (or folder) ``found`` is the one that is read here."""
        return False

    @abstractmethod
    def count(self) -> int | None:
        """How many rows there are, before any is read; None where that cannot be told."""

    @abstractmethod
    def rewind(self) -> None:
        """Go back to the first row."""

    @abstractmethod
    def read(self) -> Iterator[Line]:
        """All rows. One that cannot be used says why, and costs no other."""

    def lines(self, needed: Callable[[], Sequence[str]]) -> Iterator[Line]:
        """All rows; one without a column that is needed says so.

        Args:
            needed: the columns that a row must have, as far as they are known when it is read.
        """
        for line in self.read():
            lacking = "" if line.problem else self.lacking(line.number, line.row, needed())
            yield dataclasses.replace(line, problem=lacking) if lacking else line

    def lacking(self, number: int, row: Mapping[str, Any], needed: Sequence[str]) -> str:
        """What to say of a row without some of its ``needed`` columns; nothing when it has them all."""
        missing = [name for name in needed if name not in row]
        if not missing:
            return ""
        there = ", ".join(map(repr, row)) or "none"
        return f"{self.at(number)}: the column {', '.join(map(repr, missing))} is missing; there is {there}"

    def at(self, number: int) -> str:
        """Where a row is, for a sentence."""
        return f"{self.name}, {self.unit} {number}"


def check_path(path: str) -> None:
    """Look whether ``path`` can be looked at. What is not there can.

    Raises:
        ConfigurationError: links go in a circle, a folder may not be read or entered, or the name is too long.
    """
    try:
        if stat.S_ISDIR(Path(path).stat().st_mode) and not os.access(path, os.R_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        problem = error.strerror if isinstance(error, OSError) else error
        raise ConfigurationError(f"{path} cannot be reached: {problem}") from None


class Encode(Protocol):
    """Makes the line to write of a row and its outputs; ``error`` says why it has failed, if it has."""

    def __call__(self, line: Line, outputs: Sequence[LLMOutput], error: str) -> bytes: ...


class Open(Protocol):
    """Opens what is at a path; see ``open_source`` for the arguments."""

    def __call__(self, path: str, *, num_generations: int | None, is_read_twice: bool) -> Source: ...


@dataclass(frozen=True, slots=True)
class Format:
    """One form that rows have on disk.

    Attributes:
        name: what ``--input-format`` and ``--output-format`` call it.
        suffixes: how file names in it end.
        open: reads it.
        export: writes the rows of a JSONL file to a path, whole or not at all; None where rows are written one by one.
        encode_row: makes a line in place of the row as a JSON object; None where that is what is written.
        has_nan: whether its numbers may be NaN or infinite, which JSON has not.
        is_folder: whether it is a folder and no file.
        package: what has to be installed for it, beside genpool.
        extra: which of genpool's extras installs that.
    """

    name: str
    suffixes: tuple[str, ...]
    open: Open
    export: Callable[[Path, Path], None] | None = None
    encode_row: Encode | None = None
    has_nan: bool = False
    is_folder: bool = False
    package: str = ""
    extra: str = ""

    @property
    def is_lines(self) -> bool:
        """Whether a row can be written to the target as soon as it is there, as a line."""
        return self.export is None

    def check_installed(self) -> None:
        """Look whether its package is there, before it is imported. Raises ConfigurationError."""
        if self.package and find_spec(self.package) is None:
            raise ConfigurationError(
                f'the format {self.name} needs the package {self.package}: pip install "genpool[{self.extra}]"'
            )
