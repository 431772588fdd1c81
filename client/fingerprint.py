"""What tells one run from another: its options, and the rows of its input."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, cast

from .formats.base import Line
from .formats.jsonl import encode

_CHAIN_BYTES = 16
_LONGEST_SHOWN = 60


def digest(line: Line, id_column: str | None = None) -> bytes:
    """What tells a row from others: its contents, or the value of ``id_column`` alone where it has one."""
    if id_column is not None and id_column in line.row:
        known: Mapping[str, Any] = {id_column: line.row[id_column]}
    elif line.problem and not line.row:
        return b"unusable"
    else:
        known = {**line.row, **({"\0options": line.options} if line.options else {})}
    try:
        return encode(known)
    except (TypeError, ValueError):
        pass
    try:
        return repr(known).encode(errors="backslashreplace")
    except RecursionError:
        return b"nested too deeply"


def contents(line: Line) -> bytes:
    """A hash of all that a row has, whatever it is known by."""
    return hashlib.blake2b(digest(line), digest_size=_CHAIN_BYTES).digest()


def chained(chain: bytes, row: bytes) -> bytes:
    """The hash of all rows up to one, of the hash before it and the row's digest."""
    return hashlib.blake2b(chain + row, digest_size=_CHAIN_BYTES).digest()


def task_settings(task: object | None) -> dict[str, Any]:
    """A task's class, and those of its settings that can be compared: text, numbers, and lists and dicts of them."""
    if task is None:
        return {}
    kind = type(task)
    settings = {f"the task's {name}": value for name, value in vars(task).items() if _is_plain(value)}
    return {"the task": f"{kind.__module__}.{kind.__qualname__}", **settings} if hasattr(task, "__dict__") else {}


def _is_plain(value: object) -> bool:
    if isinstance(value, Mapping):
        entries = cast(Mapping[Any, Any], value)
        return all(isinstance(key, str) and _is_plain(item) for key, item in entries.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, cast(list[Any], value)))
    return value is None or isinstance(value, (str, int, float, bool))


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as they come back from a file."""
    return json.loads(json.dumps(settings, default=str))


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """In words, the settings that differ; empty when none does."""
    names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    return "; ".join(f"{name} was {_shown(then.get(name))} and is {_shown(now.get(name))}" for name in names)


def _shown(value: Any) -> str:
    text = "not given" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"
