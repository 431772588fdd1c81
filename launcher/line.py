"""On which line of a TOML file a key stands."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from ..protocol.printable import printable


def line_of(text: str, path: Sequence[str]) -> int:
    """The line, from 1, where the value at ``path`` begins in a TOML ``text``; 1 where there is no such value.

    ``tomllib`` tells no positions. So the file is read again and again with a line more, until the value is there:
    slow, and only for an error.
    """
    lines = text.split("\n")
    begin = 1
    for end in range(1, len(lines) + 1):
        try:
            content = tomllib.loads("\n".join(lines[:end]) + "\n")
        except tomllib.TOMLDecodeError:
            continue  # in the midst of a value of several lines
        if _has(content, path):
            return begin
        begin = end + 1
    return 1


def placed(file: Path, text: str, path: Sequence[str], sentence: str) -> str:
    """``sentence`` about the value at ``path``, with the file, the line and the key before it."""
    key = f"{printable('.'.join(path))}: " if path else ""
    return f"{file}, line {line_of(text, path)}: {key}{sentence}"


def _has(content: object, path: Sequence[str]) -> bool:
    for key in path:
        if not isinstance(content, dict) or key not in content:
            return False
        content = cast(dict[str, Any], content)[key]
    return True
