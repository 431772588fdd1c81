"""Datasets of Hugging Face: a folder that ``save_to_disk`` wrote, and ``datasets.Dataset`` itself."""

# pyright: reportMissingImports=false, reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownParameterType=false
# datasets and pyarrow are extras, and have no types.

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from ...protocol.errors import ConfigurationError
from .arrow import ROWS_AT_ONCE, ArrowSource, Tables, one_line, schema_of, translated
from .schema import kinds_of
from .target import cannot_write, sync_folder


class DatasetSource(ArrowSource):
    """The rows of a ``datasets.Dataset``. Images and sounds stay as they are stored: a dict of bytes and path."""

    def __init__(self, dataset: datasets.Dataset, name: str = "the dataset") -> None:
        self.name = name
        self._dataset = dataset

    def groups(self) -> Iterator[tuple[int, Iterable[Any]]]:
        yield len(self._dataset), self._dataset.with_format("arrow").iter(ROWS_AT_ONCE)


class FolderSource(DatasetSource):
    """The dataset that ``save_to_disk`` wrote to a folder.

    Raises:
        ConfigurationError: there is none, or there are several.
    """

    def __init__(self, path: str) -> None:
        super().__init__(_loaded(Path(path)), path)
        self._stat = Path(path).stat()

    def is_at(self, found: os.stat_result) -> bool:
        return os.path.samestat(found, self._stat)


def _loaded(path: Path) -> datasets.Dataset:
    splits = _splits(path)
    if splits:
        raise ConfigurationError(f"{path} holds the splits {', '.join(splits)}: name one, such as {path / splits[0]}")
    if not path.exists():
        raise ConfigurationError(f"the input {path} cannot be read: No such file or directory")
    if not (path / "state.json").is_file():
        raise ConfigurationError(f"{path} is no dataset: give a folder that `save_to_disk` of `datasets` wrote")
    try:
        return datasets.Dataset.load_from_disk(str(path))
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigurationError(f"the dataset {path} cannot be read: {one_line(error)}") from None


def _splits(path: Path) -> list[str]:
    """The splits, where the folder is a ``DatasetDict``."""
    try:
        told = json.loads((path / "dataset_dict.json").read_bytes())
        return [str(split) for split in told["splits"]]
    except (OSError, ValueError, LookupError, TypeError):
        return []


def export_dataset(working: Path, target: Path) -> None:
    """Write the rows of ``working`` to the folder ``target``, in the place of a dataset that is there.

    Raises:
        GenpoolError: it cannot be written (a full disk, say, or as ``translated``); what was there stays whole.
    """
    target = Path(os.path.realpath(target))
    beside = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir()
        with translated(working, target):
            _write(Tables(working, target), beside / "rows.arrow", beside / "dataset")
        _sync(beside / "dataset")
        _take_place(beside / "dataset", target, beside / "replaced")
    except OSError as error:
        raise cannot_write(target, error) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _write(tables: Tables, rows: Path, folder: Path) -> None:
    """Make one Arrow file first, as the number of shards follows its size; it is mapped, and not loaded."""
    # `datasets` cannot save a dataset of no columns, which is what a run over no rows has made.
    schema = tables.schema if tables.schema.names else pa.schema([("generations", pa.string())])
    with rows.open("wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for table in tables:
            writer.write_table(table)
    dataset = datasets.Dataset.from_file(str(rows))
    with _no_bar():
        # Left to itself it makes no shard of no rows, and cannot load that again.
        dataset.save_to_disk(str(folder), num_shards=None if len(dataset) else 1)


def _sync(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_folder(folder)


def _take_place(folder: Path, target: Path, replaced: Path) -> None:
    """Two renames, as no folder takes the place of another that holds something."""
    if target.exists():
        target.rename(replaced)
    try:
        folder.rename(target)
    except OSError:
        if replaced.exists():
            replaced.rename(target)
        raise
    sync_folder(target.parent)


@contextmanager
def _no_bar() -> Generator[None]:
    """Without the bars of ``datasets``, as the run has its own."""
    was_shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if was_shown:
            datasets.enable_progress_bars()


def as_dataset(
    working: Path, given: Any | None = None, made: Sequence[str] = (), example: Mapping[str, Any] | None = None
) -> Any:
    """The rows of a run as a ``datasets.Dataset`` in memory.

    Args:
        working: the rows, as JSONL.
        given: the ``Dataset`` that the rows were read from, all of them and in its order: its columns keep their types,
            and what is stored in them.
        made: columns that are taken from ``working`` although ``given`` has them too.
        example: a row, for the columns of a ``working`` that has none.

    Raises:
        GenpoolError: ``working`` cannot be read.
    """
    tables = Tables(working, working)
    groups = list(tables) or [schema_of(kinds_of([example or {}])).empty_table()]
    made_now = datasets.Dataset(pa.concat_tables(groups))
    if given is None:
        return made_now
    kept = [name for name in given.column_names if name in made_now.column_names and name not in made]
    made_now = made_now.remove_columns(kept)
    if not len(given):  # of datasets without rows, `concatenate_datasets` gives back one
        features = {**{name: given.features[name] for name in kept}, **made_now.features}
        return datasets.Dataset.from_dict(dict.fromkeys(features, ()), datasets.Features(features))
    return datasets.concatenate_datasets([given.select_columns(kept), made_now], axis=1) if kept else made_now
