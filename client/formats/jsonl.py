"""JSONL: a JSON object a line, packed by gzip or not."""

from __future__ import annotations

import codecs
import dataclasses
import gzip
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from ...protocol.printable import plural
from .base import Line, Source
from .file import ByteFile, CutOff
from .target import replacing

_JSON_NAMES: dict[type[Any], str] = {
    list: "a list",
    str: "a text",
    bool: "true or false",
    int: "a number",
    float: "a number",
}


class JsonlSource(Source):
    """A file of JSON objects, or standard input.

    Args:
        path, is_read_twice, is_gzip: as for ByteFile.

    Raises:
        ConfigurationError: when it cannot be read.
    """

    def __init__(self, path: str, *, is_read_twice: bool = False, is_gzip: bool = False) -> None:
        self._file = ByteFile(path, is_read_twice=is_read_twice, is_gzip=is_gzip)
        self.name = self._file.name

    def close(self) -> None:
        self._file.close()

    def is_at(self, found: os.stat_result) -> bool:
        return self._file.is_at(found)

    def rewind(self) -> None:
        self._file.rewind()

    def count(self) -> int | None:
        if not self._file.is_seekable:
            return None
        lines = 0
        try:
            for raw in self._file.lines():
                lines += bool(raw.strip())
        except CutOff:
            lines += 1
        self.rewind()
        return lines

    def read(self) -> Iterator[Line]:
        number = good = 0
        try:
            for number, raw in enumerate(self._file.lines(), 1):
                if number == 1:
                    raw = raw.removeprefix(codecs.BOM_UTF8)
                if raw.strip():
                    yield self._line(number, raw)
                    good += 1
        except CutOff as error:
            whole = f"the {plural(good, 'row')} before it {'is' if good == 1 else 'are'} whole"
            yield Line(number + 1, {}, f"{self.at(number + 1)}: {error}; {whole}")

    def _line(self, number: int, raw: bytes) -> Line:
        try:
            return self.line_of(number, parse(raw.rstrip()))
        except ValueError as error:
            return Line(number, {}, f"{self.at(number)}: {error}")

    def line_of(self, number: int, row: dict[str, Any]) -> Line:
        """What the JSON object of a line stands for."""
        return Line(number, row)


def parse(raw: bytes) -> dict[str, Any]:
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


def encode(row: Mapping[str, Any], *, has_nan: bool = False) -> bytes:
    """One row as a line, in readable UTF-8; a lone surrogate, which UTF-8 has no form for, makes it plain ASCII.

    NaN and infinities, which JSON has not, are null, or with ``has_nan`` written so that ``parse`` has them again.

    Raises:
        ValueError: a value contains itself, or is nested too deeply.
        TypeError: a key that JSON cannot have.
    """
    try:
        return _dumps(row, has_nan, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return _dumps(row, has_nan, ensure_ascii=True).encode()


def _dumps(row: Mapping[str, Any], has_nan: bool, *, ensure_ascii: bool) -> str:
    try:
        text = json.dumps(row, ensure_ascii=ensure_ascii, default=_plain)
        if not has_nan and ("NaN" in text or "Infinity" in text):
            text = json.dumps(json.loads(text, parse_constant=lambda _: None), ensure_ascii=ensure_ascii)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return text + "\n"


def _plain(value: Any) -> Any:
    """What stands for a value that JSON has no form for: a task may return anything."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if isinstance(value, (set, frozenset)):
        return sorted(cast(set[Any], value), key=repr)  # in the next process it would have another order
    kind = cast("type[object]", type(value))
    if kind.__str__ is object.__str__ and kind.__repr__ is object.__repr__:
        return f"<{kind.__module__}.{kind.__qualname__}>"  # without its address, which is another one each time
    return str(value)


def export_gzip(working: Path, target: Path) -> None:
    """Write the lines of ``working`` to ``target``, packed. Raises GenpoolError as ``replacing`` does."""
    with (
        working.open("rb") as lines,
        replacing(target) as file,
        # The same rows make the same bytes: without a name and a time.
        gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed,
    ):
        shutil.copyfileobj(lines, packed, 1 << 20)
