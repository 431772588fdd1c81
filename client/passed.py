"""The rows of an input that were written before: passed over, after a look whether they are the same still."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..protocol.errors import ConfigurationError
from ..protocol.printable import plural
from .claim import AFRESH, Places
from .column import OF_EVERY_ROW, encoded
from .fingerprint import chained, digest
from .formats.base import Line, Source
from .standing import NO_ROWS, Standing


def after(source: Source, done: Standing, id_column: str | None, places: Places) -> Iterator[Line]:
    """The rows of ``source`` that follow those that are done.

    Raises:
        ConfigurationError: those that are done are not the first ones of the source any more.
    """
    lines = source.read()
    chain = NO_ROWS
    for number in range(done.rows):
        line = next(lines, None)
        if line is None:
            raise ConfigurationError(
                f"{source.name} has {plural(number, 'row')}, and {done.rows} of it are in {places.target} already: it "
                f"was changed meanwhile; put it back, or {AFRESH}"
            )
        chain = chained(chain, digest(line, id_column))
    if chain != done.chain:
        raise ConfigurationError(
            f"{source.name} was changed since its first {done.rows} rows were done: "
            f"{_first_difference(source, places.working, done.rows, id_column)}; put it back, or {AFRESH}"
        )
    return lines


def _first_difference(source: Source, working: Path, rows: int, id_column: str | None) -> str:
    """Where the input is not what it was, as far as the rows that are written tell."""
    try:
        source.rewind()
        with working.open("rb") as file:
            for line, raw in zip(source.read(), file, strict=False):
                if not _is_of(line, json.loads(raw), id_column):
                    return f"{source.at(line.number)} is the first that is another one"
    except (OSError, ValueError):
        pass
    return f"one of those {rows} is another one"


def _is_of(line: Line, written: Mapping[str, Any], id_column: str | None) -> bool:
    """Whether ``written`` may be the row of ``line``, by the columns that both have."""
    given = json.loads(encoded(line.row)[0])
    names = [id_column] if id_column is not None else [name for name in given if name not in OF_EVERY_ROW]
    return all(given.get(name) == written[name] for name in names if name in written)
