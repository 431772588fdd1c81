"""Rows that are in this process already: any iterable of dicts, or a ``datasets.Dataset``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any, cast

from ...protocol.errors import ConfigurationError
from .base import Line, Source


class IterableSource(Source):
    """The rows of an iterable of dicts, in its order.

    Args:
        rows: anything to iterate over. What can be iterated over only once, a generator say, is read as it is needed.
        is_read_twice: keeps in memory what can be read only once, so that ``rewind`` works.
    """

    name = "the rows"
    unit = "row"

    def __init__(self, rows: Iterable[Any], *, is_read_twice: bool = False) -> None:
        self._rows = list(rows) if is_read_twice and isinstance(rows, Iterator) else rows

    def count(self) -> int | None:
        return len(self._rows) if isinstance(self._rows, Sized) else None

    def rewind(self) -> None:
        """Nothing to do: ``read`` begins anew each time."""

    def read(self) -> Iterator[Line]:
        for number, row in enumerate(self._rows, 1):
            if isinstance(row, Mapping):
                yield Line(number, dict(cast(Mapping[str, Any], row)))
            else:
                kind = type(row).__name__
                problem = f'{self.at(number)}: a row is a dict such as {{"input": …}}, and this is of the type {kind}'
                yield Line(number, {}, problem)


def source_of(rows: Any, *, is_read_twice: bool = False) -> Source:
    """The rows of a ``datasets.Dataset`` or of any iterable of dicts.

    Raises:
        ConfigurationError: it is neither.
    """
    if type(rows).__module__.partition(".")[0] == "datasets":
        from .huggingface import DatasetSource, is_dataset

        if is_dataset(rows):
            return DatasetSource(rows)
    if isinstance(rows, Mapping):
        names = ", ".join(map(repr, cast(Mapping[Any, Any], rows)))
        raise ConfigurationError(
            f"rows are a dataset or an iterable of dicts, and this is one dict: give one of {names}"
        )
    if isinstance(rows, (str, bytes)) or not isinstance(rows, Iterable):
        raise ConfigurationError(
            f"rows are a dataset or an iterable of dicts, and not of the type {type(rows).__name__}"
        )
    return IterableSource(cast(Iterable[Any], rows), is_read_twice=is_read_twice)
