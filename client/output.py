"""What a run writes: rows into its working file, failed ones into the file of errors too, and the journal of both.

A row is noted in the journal, then written. What is written is synced in the background, and only then does the
journal say that it is on the disk: it never claims more than there is.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
import threading
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from ..protocol.errors import ConfigurationError, GenpoolError
from .formats.target import cannot_write
from .item import Planned
from .journal import Journal
from .record import Record, Share
from .row import Ending
from .standing import Block, Finished, LostWorker, Made, Standing, planned

# What a host that loses its power may cost; each sync takes the disk some milliseconds.
_SYNC_EVERY_S = 1.0


class Lines(Protocol):
    """Where lines are written, each whole or not at all: an open file, which its end closes."""

    def write(self, line: bytes) -> None: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


class LineFile:
    """A file that is written from ``size`` on; what it holds beyond is cut off.

    Raises:
        ConfigurationError: when it cannot be opened, or another run has it open.
    """

    def __init__(self, path: Path, size: int = 0) -> None:
        self.path = path
        try:
            # Unbuffered: what is killed leaves all lines that it said it had written.
            self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b", buffering=0)
            self._lock()  # before anything is cut off
            self._size = min(size, os.fstat(self._file.fileno()).st_size)
            self._file.truncate(self._size)
            self._file.seek(self._size)
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from None

    def _lock(self) -> None:
        """Keep other runs away as long as it is open. Raises ConfigurationError when one has it."""
        try:
            fcntl.flock(self._file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise ConfigurationError(
                f"another run writes to {self.path} now: wait for its end, or name another file"
            ) from None
        except OSError:
            pass  # some file systems have no locks, of which the journal warns

    @property
    def size(self) -> int:
        """How many bytes there are."""
        return self._size

    def write(self, line: bytes) -> None:
        """Write whole lines. Raises GenpoolError (a full disk, say); no part of them is left then."""
        left = memoryview(line)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            self._take_back()
            raise cannot_write(self.path, error) from error
        self._size += len(line)

    def _take_back(self) -> None:
        try:
            self._file.truncate(self._size)
            self._file.seek(self._size)
        except OSError:
            pass  # the disk is beyond that; the error that follows tells

    def sync(self) -> None:
        """Have the disk keep what is written. Raises GenpoolError."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def __exit__(self, *_: object) -> None:
        self._file.close()


class Output:
    """Where rows go that nobody can ask again for: standard output, a pipe, a device. A context manager."""

    def __init__(self, rows: Lines, errors: Lines | None, standing: Standing | None = None) -> None:
        self.standing = standing or Standing()
        self._rows, self._errors = rows, errors
        self._repeated = 0
        self._lost: Sequence[LostWorker] = ()
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._errors is not None:
            self._errors.__exit__(kind, error, trace)
        self._rows.__exit__(kind, error, trace)

    def plan(self, number: int, contents: bytes) -> Sequence[Planned]:
        """What is known of the shares of a row that is about to begin, if it had the same contents then."""
        return ()

    def note_share(self, record: Record, share: Share, ending: Ending) -> None:
        """A share is finished. On a callbacks thread."""
        self._repeated += ending.attempts > 1

    def write(
        self,
        lines: bytes,
        rows: int,
        chain: bytes,
        line: int,
        *,
        reason: str = "",
        made: Mapping[str, Made] | None = None,
        failed: bytes = b"",
    ) -> None:
        """Write ``lines``, after which there are ``rows``, and ``failed`` to the file of errors.

        The others are as in Block. Raises GenpoolError when they cannot be written.
        """
        failed = failed if self._errors is not None else b""
        standing = self.standing
        size, errors_size = standing.size + len(lines), standing.errors_size + len(failed)
        block = Block(rows, size, chain, line, errors_size, zlib.crc32(lines), reason, made or {})
        self._note(block)
        if failed and self._errors is not None:
            self._errors.write(failed)
        self._rows.write(lines)
        self.standing = standing.after(block)

    def summary(self) -> Standing:
        """How far it is now, with all that is counted."""
        now, seconds = self.standing, self.seconds
        before = [dataclasses.replace(one, ago_s=round(one.ago_s + seconds, 3)) for one in now.lost]
        return dataclasses.replace(
            now,
            repeated=now.repeated + self._repeated,
            seconds=now.seconds + seconds,
            lost=[*before, *self._lost],
        )

    @property
    def seconds(self) -> float:
        """How long it is being written, this time."""
        return time.monotonic() - self._began

    def note_lost(self, lost: Sequence[LostWorker]) -> None:
        """The workers that were lost in these seconds."""
        self._lost = lost

    def _note(self, block: Block) -> None:
        """``block`` is about to be written."""


class ResumableOutput(Output):
    """A working file with a journal, from ``standing`` on.

    Raises:
        ConfigurationError: when a file cannot be opened.
    """

    def __init__(self, working: Path, errors: Path | None, journal: Journal, standing: Standing) -> None:
        self._journal = journal
        self._shares = journal.found.shares
        self._contents: dict[int, bytes] = {}  # of the rows that are under way
        self._working = LineFile(working, standing.size)
        try:
            self._errors_file = LineFile(errors, standing.errors_size) if errors else None
        except BaseException:
            self._working.__exit__()
            raise
        # After the host has lost its power, the file of errors may be shorter than it was.
        errors_size = self._errors_file.size if self._errors_file else standing.errors_size
        super().__init__(self._working, self._errors_file, dataclasses.replace(standing, errors_size=errors_size))
        self._failure: GenpoolError | None = None
        self._synced: tuple[int, int] | None = None
        self._is_over = threading.Event()
        self._syncing = threading.Thread(target=self._sync_now_and_then, name="genpool-journal", daemon=True)
        self._syncing.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._syncing.join()
        try:
            self._sync()
        except GenpoolError:
            if kind is None:
                raise
        finally:
            super().__exit__(kind, error, trace)

    def plan(self, number: int, contents: bytes) -> Sequence[Planned]:
        self._contents[number] = contents
        return planned(self._shares.pop(number, ()), contents)

    def note_share(self, record: Record, share: Share, ending: Ending) -> None:
        super().note_share(record, share, ending)
        plan = [(one.at, one.count, one.draw) for one in record.shares if one.count]
        contents = self._contents[record.number]
        entry = Finished(record.number, contents, share.at, share.draw, plan, bytes(ending.payload), ending.attempts)
        try:
            self._journal.append(entry)
        except GenpoolError as error:
            self._failure = error  # raised with the next row

    def _note(self, block: Block) -> None:
        if self._failure is not None:
            raise self._failure
        self._journal.append(block)
        self._contents.pop(block.rows - 1, None)

    def _sync_now_and_then(self) -> None:
        while not self._is_over.wait(_SYNC_EVERY_S):
            try:
                self._sync()
            except GenpoolError as error:
                self._failure = error
                return

    def _sync(self) -> None:
        now = self.summary()  # first: what is written from here on is not synced yet
        what = (now.rows, len(now.lost))
        if what == self._synced:
            return
        self._working.sync()
        if self._errors_file is not None:
            self._errors_file.sync()
        self._journal.sync(now)
        self._synced = what
