"""Arrow tables, which Parquet and Hugging Face datasets share: rows out of them, and a working file into them."""

# pyright: reportMissingImports=false, reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownParameterType=false
# pyarrow is an extra, and it has no types.

from __future__ import annotations

import json
import logging
from abc import abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import pyarrow as pa

from ...protocol.errors import GenpoolError
from .base import Line, Source
from .schema import Fields, Items, Kind, kinds_of
from .working import rows_of, sized_rows_of

log = logging.getLogger("genpool.generate")

# Rows are made of a table so many at a time, and a table of so many rows, or of so many bytes: memory follows these,
# and a larger group of rows is packed better.
ROWS_AT_ONCE = 256
_GROUP_ROWS = 10_000
_GROUP_BYTES = 8 << 20

_TYPES: dict[str, Any] = {
    "null": pa.string(),
    "bool": pa.bool_(),
    "int": pa.int64(),
    "long": pa.int64(),
    "float": pa.float64(),
    "text": pa.string(),
}


class ArrowSource(Source):
    """Rows of a file that is read by groups, each as batches of a table."""

    unit = "row"

    @abstractmethod
    def groups(self) -> Iterator[tuple[int, Iterable[Any]]]:
        """For each group of rows: how many they are, and its batches (of ``pyarrow`` record batches or tables)."""

    def count(self) -> int:
        return sum(size for size, _ in self.groups())

    def rewind(self) -> None:
        """Nothing to do: ``read`` begins anew each time."""

    def read(self) -> Iterator[Line]:
        done = 0
        for size, batches in self.groups():
            number = done
            try:
                for batch in batches:
                    readers = readers_of(batch.schema)
                    for row in _rows(batch):
                        number += 1
                        yield self._line(number, row, readers)
            except (pa.ArrowException, OSError, ValueError) as error:
                problem = f"{self.at(number + 1)}: rows {number + 1} to {done + size} cannot be read: {one_line(error)}"
                yield Line(number + 1, {}, problem)
            done += size

    def _line(self, number: int, row: dict[str, Any] | Exception, readers: Mapping[str, Reader]) -> Line:
        if isinstance(row, Exception):
            return Line(number, {}, f"{self.at(number)}: this cannot be read: {one_line(row)}")
        try:
            return Line(number, plain(row | {name: read(row[name]) for name, read in readers.items()}))
        except RecursionError:  # a value of Arrow's JSON type may be as deep as it likes
            return Line(number, {}, f"{self.at(number)}: this is nested too deeply")


# What is raised for values that Python has no form for, as a year beyond 9999, or text that is no UTF-8.
_UNREADABLE = (pa.ArrowException, OverflowError, ValueError)


def _rows(batch: Any) -> Iterable[dict[str, Any] | Exception]:
    """The rows of a batch or table; in the place of each that Python has no form for, why not."""
    try:
        return batch.to_pylist()
    except _UNREADABLE:
        return [_row(batch.slice(at, 1)) for at in range(batch.num_rows)]


def _row(batch: Any) -> dict[str, Any] | Exception:
    try:
        return batch.to_pylist()[0]
    except _UNREADABLE as error:
        return error


def one_line(error: BaseException) -> str:
    """What a library says is wrong, without its further lines."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def translated(working: Path, target: Path) -> Generator[None]:
    """Raises GenpoolError for what a library raises over rows that it has no form for: they took hours to make."""
    try:
        yield
    except (pa.ArrowException, ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise GenpoolError(
            f"{target} cannot be written: {one_line(error)}; the rows are whole in {working}, as JSONL"
        ) from error


def plain(value: Any) -> Any:
    """``value`` with what neither JSON nor a task has a form for as text: times in ISO 8601, and decimals."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in cast(dict[str, Any], value).items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in cast(list[Any], value)]
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    return str(value) if isinstance(value, (Decimal, timedelta, UUID)) else value


Reader = Callable[[Any], Any]


def readers_of(fields: Iterable[Any]) -> dict[str, Reader]:
    """What makes values of Arrow's JSON type, which are texts, those that they stand for: by column."""
    return {field.name: read for field in fields if (read := _reader(field.type)) is not None}


def _reader(of: Any) -> Reader | None:
    if isinstance(of, pa.JsonType):
        return _value
    if pa.types.is_list(of) or pa.types.is_large_list(of):
        return None if (read := _reader(of.value_type)) is None else partial(_items, read)
    if pa.types.is_struct(of):
        return partial(_fields, readers) if (readers := readers_of(of)) else None
    return None


def _value(text: str | None) -> Any:
    try:
        return None if text is None else json.loads(text)
    except ValueError:
        return text  # the type is a promise that nobody has checked


def _items(read: Reader, items: list[Any] | None) -> list[Any] | None:
    return None if items is None else [read(item) for item in items]


def _fields(readers: Mapping[str, Reader], fields: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if fields is None else fields | {name: read(fields[name]) for name, read in readers.items()}


class Tables:
    """The rows of a working file as tables of one schema, which one pass over the file finds first.

    A column whose values have no common type gets Arrow's JSON type, and a warning names it.
    """

    def __init__(self, working: Path, target: Path) -> None:
        self._working = working
        kinds = kinds_of(rows_of(working))
        self._mixed = [name for name, kind in kinds.items() if not _has_type(kind)]
        self.schema = schema_of(kinds)
        if self._mixed:
            names = ", ".join(map(repr, self._mixed))
            log.warning("%s: values of no common type are written as JSON, in the column %s", target, names)

    def __iter__(self) -> Generator[Any]:
        group: list[dict[str, Any]] = []
        size = 0
        for row_bytes, row in sized_rows_of(self._working):
            row |= {
                name: json.dumps(row[name], ensure_ascii=False) for name in self._mixed if row.get(name) is not None
            }
            group.append(row)
            size += row_bytes
            if len(group) == _GROUP_ROWS or size >= _GROUP_BYTES:
                yield self._table(group)
                group, size = [], 0
        if group:
            yield self._table(group)

    def _table(self, rows: list[dict[str, Any]]) -> Any:
        return pa.Table.from_pylist(rows, schema=self.schema)


def _has_type(kind: Kind) -> bool:
    """Whether Arrow has a type for it that can be written: a dict that is always empty has none."""
    if isinstance(kind, Items):
        return _has_type(kind.of)
    if isinstance(kind, Fields):
        return bool(kind.of) and all(map(_has_type, kind.of.values()))
    return kind != "mixed"


def schema_of(kinds: Mapping[str, Kind]) -> Any:
    """A column for each, of Arrow's JSON type where it has no other."""
    return pa.schema([(name, arrow_type(kind) if _has_type(kind) else pa.json_()) for name, kind in kinds.items()])


def arrow_type(kind: Kind) -> Any:
    """Arrow's type for what has one; where only None was seen, text."""
    if isinstance(kind, Items):
        return pa.list_(arrow_type(kind.of))
    if isinstance(kind, Fields):
        return pa.struct([(name, arrow_type(of)) for name, of in kind.of.items()])
    return _TYPES[kind]
