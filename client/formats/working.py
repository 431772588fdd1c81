"""The rows of a run as they lie in its working file, before they are written in another format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from ...protocol.errors import GenpoolError
from .jsonl import parse


def rows_of(working: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSONL file that a run has written; see ``sized_rows_of``."""
    return (row for _, row in sized_rows_of(working))


def sized_rows_of(working: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each row, and how many bytes it has there. A lone surrogate becomes its escape, as other forms have none.

    Raises:
        GenpoolError: it holds a line that is no row, or cannot be read.
    """
    number = 0
    try:
        with working.open("rb") as lines:
            for raw in lines:
                number += 1
                row = parse(raw.rstrip())
                # Only an escape in the JSON can stand for a lone surrogate, as UTF-8 has none.
                yield len(raw), cast(dict[str, Any], _encodable(row)) if b"\\ud" in raw.lower() else row
    except ValueError as error:
        raise GenpoolError(f"{working}, line {number}: {error}") from None
    except OSError as error:
        raise GenpoolError(f"{working} cannot be read: {error.strerror}") from None


def _encodable(value: Any) -> Any:
    """``value`` with all of its text as UTF-8 can have it."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, list):
        return [_encodable(item) for item in cast(list[Any], value)]
    if isinstance(value, Mapping):
        return {_encodable(key): _encodable(item) for key, item in cast(Mapping[Any, Any], value).items()}
    return value
