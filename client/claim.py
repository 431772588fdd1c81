"""What a run may do with the output that it is given: begin, go on, say that all is done, or leave it alone.

::

    OUTPUT.journal                            a run that was cut off: goes on, if its options are the same
    OUTPUT.report.json of a finished run      all is done, if its options are the same
    neither, and OUTPUT is not empty          somebody else's: never written over
"""

from __future__ import annotations

import dataclasses
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from pathlib import Path
from types import NoneType, TracebackType
from typing import Any, Self, cast

from ..protocol.errors import ConfigurationError
from ..protocol.limits import MAX_COUNT
from .entry import standing_fields, standing_of
from .fingerprint import changes
from .formats.base import STANDARD_STREAM
from .formats.format import Format
from .journal import Journal
from .standing import Standing, trusted

# What a user can do where an output is not to be written over.
AFRESH = "name another output, or start afresh with --overwrite"

# The bytes that file systems give a name.
_LONGEST_NAME = 255

# What a report has of the header of its run, and of what type that is.
_KEPT = {
    "run": str,
    "started": str,
    "pool": list,
    "drawn": (list, NoneType),
    "settings": dict,
    "errors": (str, NoneType),
}


@dataclass(frozen=True, slots=True)
class Places:
    """The files of a run beside its output.

    Attributes:
        target: the output.
        working: where rows are written as they come: the output itself, where that has a row a line.
        journal, report: the files of those names.
    """

    target: Path
    working: Path
    journal: Path
    report: Path

    @property
    def all(self) -> list[Path]:
        """Every file that the run writes, but that of errors."""
        return [self.target, self.working, self.journal, self.report]

    @classmethod
    def of(cls, target: str, format: Format, *, is_beside: bool = False) -> Places:
        """The places for an output in a format; ``is_beside`` has rows written beside it in any case."""
        path = Path(target)
        if path.is_symlink():
            path = path.resolve()
        beside = path.with_name(f"{path.name}.partial.jsonl")
        return cls(
            path,
            path if format.is_lines and not is_beside else beside,
            path.with_name(f"{path.name}.journal"),
            path.with_name(f"{path.name}.report.json"),
        )


def is_resumable(target: str) -> bool:
    """Whether a run into ``target`` can go on later: it is a file or a folder, or will be."""
    if target == STANDARD_STREAM:
        return False
    try:
        mode = Path(target).stat().st_mode
    except OSError:
        return True
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)


@dataclass(slots=True)
class Claim:
    """A run's hold of its output, as a context manager: nobody else writes there meanwhile.

    Attributes:
        header: what the run was begun with; empty where there was none.
        standing: how far it is.
        finished: for a run that does failed rows again, how far the run was that it goes back to.
        is_finished: whether the run came to its end.
        is_going_on: whether it was cut off, and not begun anew or finished.
    """

    places: Places
    journal: Journal
    header: Mapping[str, Any] = field(default_factory=dict[str, Any])
    standing: Standing = field(default_factory=Standing)
    finished: Standing | None = None
    is_finished: bool = False
    is_going_on: bool = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.journal.close()

    @property
    def is_retry(self) -> bool:
        """Whether it does rows again that have failed."""
        return self.finished is not None

    def for_retry(self) -> Claim:
        """A run that does the rows of this finished one again that have failed."""
        done = self.standing
        start = dataclasses.replace(done, rows=0, size=0, errors_size=0, failed=0, reasons={})
        return dataclasses.replace(
            self,
            header={**self.header, "finished": _fields(done)},
            standing=start,
            finished=done,
            is_finished=False,
        )

    def begin(self, header: Mapping[str, Any]) -> None:
        """The run begins, or goes on. Raises GenpoolError when that cannot be noted."""
        if not self.is_going_on:
            self.journal.begin(dict(header), self.standing)
            self.places.report.unlink(missing_ok=True)
        elif header != self.header:
            self.journal.change(dict(header))
        self.header = header


def claim(places: Places, asked: Mapping[str, Any], *, overwrite: bool, is_retry: bool) -> Claim:
    """Take hold of an output.

    Args:
        places: where it is.
        asked: the options that must be those of the run that was begun there, if one was: see fingerprint.changes.
        overwrite: begin afresh whatever there is.
        is_retry: go back to a finished run.

    Raises:
        ConfigurationError: its name is too long, or something else is where its files go; another run has it, it
            belongs to one with other options, or to none; or its files are not as they were left.
    """
    if len(os.fsencode(f".{places.report.name}.tmp")) > _LONGEST_NAME:  # which is written last, and is the longest
        raise ConfigurationError(f"{places.target} has too long a name for the files beside it: name another output")
    for own in (places.working, places.journal, places.report):
        if own.exists() and not own.is_file():
            raise ConfigurationError(f"{own} is no regular file, and the run writes one there: name another output")
    journal = Journal(places.journal)
    try:
        if overwrite:
            return Claim(places, journal)
        report = finished_report(places)
        if journal.header is not None and not _is_over(places, journal, report):
            return _cut_off(places, journal, journal.header, asked, is_retry=is_retry)
        # What there may be was cut off between its report and the end of its journal.
        journal.header = None
        return _at_rest(places, journal, report, asked, is_retry=is_retry)
    except BaseException:
        journal.close()
        raise


def _is_over(places: Places, journal: Journal, report: Mapping[str, Any] | None) -> bool:
    """Whether the journal is of a run that has ended, and only the journal is left."""
    is_its = report is not None and journal.header is not None and report["run"] == journal.header["run"]
    return is_its and not places.working.exists()


def _cut_off(
    places: Places, journal: Journal, header: dict[str, Any], asked: Mapping[str, Any], *, is_retry: bool
) -> Claim:
    finished = header.get("finished")
    if is_retry != (finished is not None):
        again = "with --only-failed" if finished is not None else "without --only-failed"
        raise ConfigurationError(f"a run {again} into {places.target} was cut off: run it {again} first, or {AFRESH}")
    _require_same(places, header["settings"], asked, "a run that was cut off")
    standing = _trusted(places, journal)
    done = None if finished is None else _standing(finished)
    return Claim(places, journal, header, standing, done, is_going_on=True)


def _at_rest(
    places: Places, journal: Journal, report: Mapping[str, Any] | None, asked: Mapping[str, Any], *, is_retry: bool
) -> Claim:
    if report is not None:
        _require_same(places, report["settings"], asked, "a finished run")
        header = {name: report[name] for name in _KEPT}
        return Claim(places, journal, header, _standing(report["standing"]), is_finished=True)
    if is_retry:
        raise ConfigurationError(f"{places.target} is not the output of a finished run, whose rows could be done again")
    if _holds_something(places.target):
        raise ConfigurationError(f"{places.target} is there, and belongs to no run that could go on: {AFRESH}")
    return Claim(places, journal)


def require_appendable(held: Claim) -> None:
    """A finished run has new rows: look whether they can be written after the others. Raises ConfigurationError."""
    places, done = held.places, held.standing
    if places.working != places.target:
        raise ConfigurationError(f"the input has rows that {places.target} has not, which is finished: {AFRESH}")
    if places.target.stat().st_size != done.size:
        raise ConfigurationError(
            f"the input has rows that {places.target} has not, and that was changed since it was finished: {AFRESH}"
        )


def errors_path(errors: str, held: Claim | None, *, overwrite: bool) -> Path:
    """The path of a run's file of errors. Raises ConfigurationError when it is somebody else's."""
    path = Path(errors)
    is_its = held is not None and held.header.get("errors") == str(path.resolve())
    if not is_its and not overwrite and path.is_file() and _holds_something(path):
        raise ConfigurationError(f"{path} is there, and is not the file of errors of this run: name another one")
    return path


def finished_report(places: Places) -> dict[str, Any] | None:
    """The report of a finished run whose output is there still; None for one that was changed and is of no use."""
    if not places.target.exists():
        return None
    try:
        report = cast(dict[str, Any], json.loads(places.report.read_bytes()))
        return report if report["finished"] and _is_whole(report) else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _is_whole(report: Mapping[str, Any]) -> bool:
    """Whether a report has all that is read of it. Raises as ``_standing``, and AttributeError."""
    standing, pool, drawn = _standing(report["standing"]), report["pool"], report["drawn"]
    of_llms = [number for made in standing.made.values() for number in astuple(made)[:-1]]
    counts = [standing.rows, standing.size, standing.line, standing.errors_size, standing.failed, standing.repeated]
    counts += [*standing.reasons.values(), *of_llms, *(drawn or ())]
    counts += [number for one in standing.lost for number in (one.pid, one.rows)]
    texts = [text for one in standing.lost for text in (one.llm, one.host, one.why)]
    numbers = [*counts, standing.seconds, *(made.cost for made in standing.made.values())]
    numbers += [one.ago_s for one in standing.lost]
    return (
        all(isinstance(report[name], kind) for name, kind in _KEPT.items())
        and all(isinstance(text, str) for text in [*pool, *texts])
        and (drawn is None or len(drawn) == len(pool))
        and all(type(count) is int for count in counts)
        and all(0 <= number <= MAX_COUNT for number in numbers)
    )


def _standing(fields: Mapping[str, Any]) -> Standing:
    """The Standing in a report. Raises KeyError, TypeError and ValueError."""
    return standing_of({**fields, "chain": bytes.fromhex(fields["chain"])})


def _fields(standing: Standing) -> dict[str, Any]:
    """A Standing as it is in a report."""
    return {**standing_fields(standing), "chain": standing.chain.hex()}


def _require_same(places: Places, then: Mapping[str, Any], asked: Mapping[str, Any], what: str) -> None:
    if changed := changes(then, asked):
        raise ConfigurationError(
            f"{places.target} belongs to {what} with other options, and rows of both would be mixed: {changed}; "
            f"give the same options, or {AFRESH}"
        )


def _trusted(places: Places, journal: Journal) -> Standing:
    """How far the run surely came. Raises ConfigurationError when the working file is not as it was left."""
    at_least = journal.found.standing.size
    try:
        with places.working.open("rb") as file:
            size = os.fstat(file.fileno()).st_size

            def read(start: int, end: int) -> bytes:
                file.seek(start)
                return file.read(end - start)

            standing = trusted(journal.found, read)
    except FileNotFoundError:
        size, standing = 0, journal.found.standing
    except OSError as error:
        raise ConfigurationError(f"{places.working} cannot be read: {error.strerror}") from None
    if size < at_least:
        raise ConfigurationError(
            f"{places.working} was changed since its run was cut off: it has {size} bytes, and {at_least} were "
            f"written; put it back, or {AFRESH}"
        )
    return standing


def _holds_something(path: Path) -> bool:
    if path.is_dir():
        return any(path.iterdir())
    return path.exists() and path.stat().st_size > 0
