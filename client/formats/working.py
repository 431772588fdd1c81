"""The rows of a run as they lie in its working file, before they are written in another format."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from ...protocol.errors import GenpoolError
from .jsonl import parse

_ESCAPED = re.compile(rb"\\u(?:d[89a-f]|0000)", re.IGNORECASE)


def rows_of(working: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSONL file that a run has written; see ``sized_rows_of``."""
    return (row for _, row in sized_rows_of(working))


def sized_rows_of(working: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each row, and how many bytes it has there.

    A lone surrogate becomes its escape, and so does a zero byte in a name: Arrow ends the name there.

    Raises:
        GenpoolError: it holds a line that is no row, or cannot be read.
    """
    number = 0
    try:
        with working.open("rb") as lines:
            for raw in lines:
                number += 1
                row = parse(raw.rstrip())
                # In JSON both are escapes, so that most rows need no second look.
                is_plain = _ESCAPED.search(raw) is None
                yield len(raw), row if is_plain else cast(dict[str, Any], _encodable(row))
    except ValueError as error:
        raise GenpoolError(f"{working}, line {number}: {error}") from None
    except RecursionError:
        raise GenpoolError(f"{working}, line {number}: this is nested too deeply") from None
    except OSError as error:
        raise GenpoolError(f"{working} cannot be read: {error.strerror}") from None


def _encodable(value: Any) -> Any:
    """``value`` with all of its text as UTF-8 can have it."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, list):
        return [_encodable(item) for item in cast(list[Any], value)]
    if isinstance(value, Mapping):
        return {
            _encodable(key).replace("\0", "\\x00"): _encodable(item)
            for key, item in cast(Mapping[Any, Any], value).items()
        }
    return value
