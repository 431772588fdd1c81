"""Which format a file has, and how each is read and written.

::

    open_source(path) ─▶ Source ─ lines ─▶ the run ─ rows ─▶ is_lines: written to the target one by one
                                                             else: OUTPUT.partial.jsonl ─▶ export ─▶ the target
"""

from __future__ import annotations

from ...protocol.errors import ConfigurationError
from .base import Format, Source
from .jsonl import JsonlSource, export_gzip

JSONL = "jsonl"


def _jsonl(path: str, *, is_read_twice: bool, **_: object) -> Source:
    return JsonlSource(path, is_read_twice=is_read_twice)


def _gzip(path: str, *, is_read_twice: bool, **_: object) -> Source:
    return JsonlSource(path, is_read_twice=is_read_twice, is_gzip=True)


_FORMATS = {
    known.name: known
    for known in (
        Format(JSONL, (".jsonl", ".ndjson"), _jsonl),
        Format("jsonl.gz", (".jsonl.gz", ".ndjson.gz"), _gzip, export_gzip),
    )
}

NAMES = tuple(_FORMATS)

# Names that say that a file is surely no JSONL, which is what a name that says nothing is taken for.
_OTHER_SUFFIXES = (".gz", ".zst", ".xz", ".bz2", ".zip", ".arrow", ".feather", ".tsv", ".xlsx", ".orc", ".avro")


def format_of(path: str, format: str | None = None) -> Format:
    """The format of a file by the end of its name, or the one that is named; JSONL where neither says.

    Raises:
        ConfigurationError: there is no such format.
    """
    if format is not None:
        if format not in _FORMATS:
            raise ConfigurationError(f"there is no format {format!r}: it is one of {', '.join(NAMES)}")
        return _FORMATS[format]
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
    return format_of(path, format).open(path, num_generations=num_generations, is_read_twice=is_read_twice)
