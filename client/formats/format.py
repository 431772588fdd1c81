"""Which format a file has, and how each is read and written.

::

    open_source(path) ─▶ Source ─ lines ─▶ the run ─ rows ─▶ is_lines: written to the target one by one
                                                             else: OUTPUT.partial.jsonl ─▶ export ─▶ the target
"""

from __future__ import annotations

from pathlib import Path

from ...protocol.errors import ConfigurationError
from .base import STANDARD_STREAM, Format, Source
from .batch import BatchSource, encode_answer
from .csv import CsvSource, export_csv
from .jsonl import JsonlSource, export_gzip

JSONL = "jsonl"


def _jsonl(path: str, *, is_read_twice: bool, **_: object) -> Source:
    return JsonlSource(path, is_read_twice=is_read_twice)


def _gzip(path: str, *, is_read_twice: bool, **_: object) -> Source:
    return JsonlSource(path, is_read_twice=is_read_twice, is_gzip=True)


def _csv(path: str, *, is_read_twice: bool, **_: object) -> Source:
    return CsvSource(path, is_read_twice=is_read_twice)


def _parquet(path: str, **_: object) -> Source:
    from .parquet import ParquetSource

    return ParquetSource(path)


def _export_parquet(working: Path, target: Path) -> None:
    from .parquet import export_parquet

    export_parquet(working, target)


def _dataset(path: str, **_: object) -> Source:
    from .huggingface import FolderSource

    return FolderSource(path)


def _export_dataset(working: Path, target: Path) -> None:
    from .huggingface import export_dataset

    export_dataset(working, target)


def _batch(path: str, *, num_generations: int | None, is_read_twice: bool) -> Source:
    return BatchSource(path, num_generations=num_generations, is_read_twice=is_read_twice)


DATASET = Format(
    "dataset", (), _dataset, _export_dataset, has_nan=True, is_folder=True, package="datasets", extra="datasets"
)

_FORMATS = {
    known.name: known
    for known in (
        Format(JSONL, (".jsonl", ".ndjson"), _jsonl),
        Format("jsonl.gz", (".jsonl.gz", ".ndjson.gz"), _gzip, export_gzip),
        Format("csv", (".csv",), _csv, export_csv, has_nan=True),
        Format(
            "parquet",
            (".parquet", ".pq"),
            _parquet,
            _export_parquet,
            has_nan=True,
            package="pyarrow",
            extra="parquet",
        ),
        DATASET,
        Format("openai-batch", (), _batch, encode_row=encode_answer),
    )
}

NAMES = tuple(_FORMATS)

# Names that say that a file is surely no JSONL, which is what a name that says nothing is taken for.
_OTHER_SUFFIXES = (".gz", ".zst", ".xz", ".bz2", ".zip", ".arrow", ".feather", ".tsv", ".xlsx", ".orc", ".avro")


def format_of(path: str, format: str | None = None) -> Format:
    """The format that is named, or the one of a file by the end of its name; JSONL where neither says.

    A folder, or a name that ends in a slash, is a Hugging Face dataset.

    Raises:
        ConfigurationError: there is no such format.
    """
    if format is not None:
        if format not in _FORMATS:
            raise ConfigurationError(f"there is no format {format!r}: it is one of {', '.join(NAMES)}")
        return _FORMATS[format]
    if path.endswith("/") or Path(path).is_dir():
        return DATASET
    name = path.lower()
    for known in _FORMATS.values():
        if name.endswith(known.suffixes):
            return known
    if name.endswith(_OTHER_SUFFIXES):
        raise ConfigurationError(
            f"the name {path} does not tell its format: name the format, one of {', '.join(NAMES)}"
        )
    return _FORMATS[JSONL]


def open_source(
    path: str, format: str | None = None, *, num_generations: int | None = None, is_read_twice: bool = False
) -> Source:
    """The rows of a file; ``-`` is standard input.

    Args:
        path: of a file, or of a folder for a Hugging Face dataset.
        format: in place of the one that the name tells.
        num_generations: what rows that ask for a number of generations must agree with; None takes any.
        is_read_twice: keeps in memory what can be read only once, so that ``rewind`` works.

    Raises:
        ConfigurationError: when it cannot be read, or its package is not installed.
    """
    found = format_of(path, format)
    found.check_installed()
    if path == STANDARD_STREAM and found.package:
        raise ConfigurationError(f"{found.name} cannot be read from standard input: name a file")
    return found.open(path, num_generations=num_generations, is_read_twice=is_read_twice)
