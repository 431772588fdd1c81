"""Rows that are in this process already: any iterable of dicts, or a ``datasets.Dataset``."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any, cast

from ...protocol.errors import ConfigurationError
from .base import Line, Source


class IterableSource(Source):
    """The rows of an iterable of dicts, in its order, each as it is needed."""

    name = "the rows"
    unit = "row"

    def __init__(self, rows: Iterable[Any]) -> None:
        self._rows = rows
        self._is_begun = False

    def count(self) -> int | None:
        return len(self._rows) if isinstance(self._rows, Sized) else None

    def rewind(self) -> None:
        """Raises ConfigurationError where the rows can be had only once, and were."""
        if self._is_begun and isinstance(self._rows, Iterator):
            raise ConfigurationError("the rows have to be read more than once for this: give a list, and no iterator")

    def read(self) -> Iterator[Line]:
        self._is_begun = True
        for number, row in enumerate(self._rows, 1):
            if isinstance(row, Mapping):
                yield Line(number, {str(name): value for name, value in cast(Mapping[Any, Any], row).items()})
            else:
                kind = type(row).__name__
                problem = f'{self.at(number)}: a row is a dict such as {{"input": …}}, and this is of the type {kind}'
                yield Line(number, {}, problem)


def source_of(rows: Any) -> Source:
    """The rows of a ``datasets.Dataset`` or of any iterable of dicts.

    Raises:
        ConfigurationError: it is neither.
    """
    if is_dataset(rows):
        from .huggingface import DatasetSource

        return DatasetSource(rows)
    if isinstance(rows, Mapping):
        names = ", ".join(map(repr, cast(Mapping[Any, Any], rows)))
        raise ConfigurationError(
            f"rows are a Dataset or an iterable of dicts, and this is one dict: give one of {names}"
        )
    if isinstance(rows, (str, bytes)) or not isinstance(rows, Iterable):
        raise ConfigurationError(
            f"rows are a Dataset or an iterable of dicts, and not of the type {type(rows).__name__}"
        )
    return IterableSource(cast(Iterable[Any], rows))


def is_dataset(rows: object) -> bool:
    """Whether it is a ``datasets.Dataset``, on the disk or in memory: one that streams is an iterable of dicts."""
    # Who has one has imported the package, which takes its time.
    package = sys.modules.get("datasets")
    return package is not None and isinstance(rows, package.Dataset)
