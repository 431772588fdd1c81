"""The rows of a finished output, for a run that does those that have failed again and copies the others."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ..protocol.errors import ConfigurationError
from .column import ERROR, encoded
from .formats.base import Format

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Old:
    """One row of the finished output: as it is written again when it is copied, and whether it has failed."""

    line: bytes
    has_failed: bool


def old_rows(path: Path, format: Format) -> Iterator[Old]:
    """The rows of a finished output. Raises ConfigurationError when it cannot be read."""
    if format.is_lines:
        yield from _old_lines(path)
        return
    with format.open(str(path), is_read_twice=False, num_generations=None) as source:
        for line in source.read():
            if line.problem:
                raise ConfigurationError(f"a row that was to be kept cannot be read: {line.problem}")
            yield Old(encoded(line.row, has_nan=format.has_nan)[0], bool(line.row.get(ERROR)))


def _old_lines(path: Path) -> Iterator[Old]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                # Most rows have no such column, and need not be read.
                yield Old(line, b'"error"' in line and bool(_parsed(path, number, line).get(ERROR)))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None


def _parsed(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        return json.loads(line)
    except ValueError:
        raise ConfigurationError(f"{path}, line {number} is no row that a run has written") from None


class Retry:
    """What a run takes over from the finished output: ``rows`` gives them, from the first on.

    ``start`` of them are written by now. One thread asks ``failed``, another one ``copied`` and ``skip``.
    """

    def __init__(self, reading: Iterable[Old], writing: Iterable[Old], start: int) -> None:
        self._reading = islice(reading, start, None)
        self._writing = islice(writing, start, None)
        self._at = start

    def has_failed(self) -> bool:
        """Whether the next row is one that has failed. Raises ConfigurationError when there is none."""
        old = next(self._reading, None)
        if old is None:
            raise ConfigurationError("the output has fewer rows than its run has written: it was changed since")
        return old.has_failed

    def copied(self, until: int | None) -> Iterator[tuple[bytes, int]]:
        """The rows before ``until``, or all that are left, in blocks: their lines, and how many rows there are then."""
        block: list[bytes] = []
        size = 0
        for old in self._writing if until is None else islice(self._writing, until - self._at):
            block.append(old.line)
            size += len(old.line)
            self._at += 1
            if size >= _BLOCK_BYTES:
                yield b"".join(block), self._at
                block, size = [], 0
        if block:
            yield b"".join(block), self._at

    def skip(self) -> None:
        """The next row is written anew."""
        next(self._writing, None)
        self._at += 1
