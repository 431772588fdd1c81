"""Parquet, row group by row group."""

# pyright: reportMissingImports=false, reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyarrow is an extra, and it has no types.

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ...protocol.errors import ConfigurationError
from .arrow import ROWS_AT_ONCE, ArrowSource, Tables, one_line, translated
from .target import replacing


class ParquetSource(ArrowSource):
    """A Parquet file.

    Raises:
        ConfigurationError: it cannot be read, or has two columns of one name.
    """

    def __init__(self, path: str) -> None:
        self.name = path
        try:
            self._opened = Path(path).open("rb")  # noqa: SIM115
        except OSError as error:
            raise ConfigurationError(f"the input {path} cannot be read: {error.strerror}") from None
        try:
            self._stat = os.fstat(self._opened.fileno())
            self._file: Any = pq.ParquetFile(self._opened)
            self._check_columns()
        except (pa.ArrowException, OSError) as error:
            self.close()
            raise ConfigurationError(f"{path} is no whole Parquet file: {one_line(error)}") from None
        except ConfigurationError:
            self.close()
            raise

    def close(self) -> None:
        self._opened.close()

    def is_at(self, found: os.stat_result) -> bool:
        return os.path.samestat(found, self._stat)

    def groups(self) -> Iterator[tuple[int, Iterable[Any]]]:
        for at in range(self._file.num_row_groups):
            size = self._file.metadata.row_group(at).num_rows
            yield size, self._file.iter_batches(batch_size=ROWS_AT_ONCE, row_groups=[at])

    def _check_columns(self) -> None:
        names: list[str] = self._file.schema_arrow.names
        twice = [name for at, name in enumerate(names) if name in names[:at]]
        if twice:
            raise ConfigurationError(f"{self.name}: the column {twice[0]!r} is there twice: rename one")


def export_parquet(working: Path, target: Path) -> None:
    """Write the rows of ``working`` to ``target``. Raises GenpoolError as ``replacing`` and ``translated`` do."""
    with translated(working, target), replacing(target) as file:
        tables = Tables(working, target)
        with pq.ParquetWriter(file, tables.schema, compression="zstd") as writer:
            for table in tables:
                writer.write_table(table)
