"""A run's journal on the disk: appended to as things happen, mended when its end is torn, and kept small.

It is locked while a run has it. Any thread may append; what a journal holds is in standing.py.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..protocol.content import pack, unpack
from ..protocol.errors import ConfigurationError, DecodeError
from .entry import bodies, frame, packed, unpacked
from .formats.target import cannot_write, sync_folder
from .standing import Block, Entry, Finished, Recovered, Standing, recovered

log = logging.getLogger("genpool.generate")

MAGIC = b"genpool journal 2\n"

# A journal shorter than this is never rewritten; a longer one when most of it is obsolete.
_SMALL_BYTES = 4 << 20
_OBSOLETE_RATIO = 4


class Journal:
    """The journal at ``path``, opened, locked, and read.

    Attributes:
        header: what ``begin`` was given when the run was started; None for a new journal.
        found: what else it held.

    Raises:
        ConfigurationError: another run has it, it is no journal, or it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header: dict[str, Any] | None = None
        self.found = Recovered()
        self._lock = threading.Lock()
        # What must outlive a rewriting: frames of shares by their row, and of blocks with the rows that they make.
        self._shares: dict[int, list[bytes]] = {}
        self._blocks: deque[tuple[int, bytes]] = deque()
        self._file = _opened(path)
        try:
            self._size = self._read()
        except OSError as error:
            self._file.close()
            raise ConfigurationError(f"the journal {path} cannot be read: {error.strerror}") from None
        except BaseException:
            self._file.close()
            raise

    def begin(self, header: dict[str, Any], standing: Standing) -> None:
        """Forget what there was, and start a run from ``standing``. Raises GenpoolError when it cannot be written."""
        with self._lock:
            self.header, self.found = header, Recovered()
            self._shares.clear()
            self._blocks.clear()
            self._rewrite(standing)

    def change(self, header: dict[str, Any]) -> None:
        """Go on with another header, and all else as it was found. Raises GenpoolError when it cannot be written."""
        with self._lock:
            self.header = header
            self._rewrite(self.found.standing)

    def append(self, entry: Entry) -> None:
        """Note an entry. Once this returns, it outlives the process, but not yet the host. Raises GenpoolError.

        What comes after ``close``, when the run is over for whoever waited for it, is not noted.
        """
        framed = frame(packed(entry))
        with self._lock:
            if not self._file.closed:
                self._keep(entry, framed)
                self._write(framed)

    def sync(self, standing: Standing) -> None:
        """What ``standing`` tells is on the disk: have the journal say so there too. Raises GenpoolError."""
        self.append(standing)
        with self._lock:
            live = sum(map(len, self._live()))
            if self._size > _SMALL_BYTES and self._size > _OBSOLETE_RATIO * live:
                self._rewrite(standing)
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def close(self) -> None:
        """Give it back. One without a run is removed."""
        with self._lock:
            if self.header is None:
                self.path.unlink(missing_ok=True)
            self._file.close()

    def remove(self) -> None:
        """The run has come to its end."""
        with self._lock:
            self.path.unlink(missing_ok=True)
            self._file.close()

    def _read(self) -> int:
        """Read all that is whole, cut off what is not, and return how many bytes there are then."""
        self._file.seek(0)
        reader = open(self._file.fileno(), "rb", closefd=False)  # noqa: SIM115
        magic = reader.read(len(MAGIC))
        if not MAGIC.startswith(magic):
            raise ConfigurationError(f"{self.path} is no journal of genpool: move it away, or name another output")
        end = 0
        frames = bodies(reader)
        if (first := next(frames, None)) is not None:
            self.header, end = unpack(first[0]), first[1]

        def entries() -> Iterator[Entry]:
            nonlocal end
            for body, at in frames:
                try:
                    entry = unpacked(body)
                except DecodeError:
                    return
                self._keep(entry, frame(body))
                end = at
                yield entry

        self.found = recovered(entries(), Standing())
        self._file.truncate(end)
        self._file.seek(end)
        return end

    def _keep(self, entry: Entry, framed: bytes) -> None:
        match entry:
            case Finished():
                self._shares.setdefault(entry.number, []).append(framed)
            case Block():
                while self._blocks and self._blocks[-1][0] >= entry.rows:
                    self._blocks.pop()
                self._blocks.append((entry.rows, framed))
            case Standing():
                while self._blocks and self._blocks[0][0] <= entry.rows:
                    self._blocks.popleft()
                for number in [number for number in self._shares if number < entry.rows]:
                    del self._shares[number]

    def _live(self) -> list[bytes]:
        return [*(framed for _, framed in self._blocks), *(one for framed in self._shares.values() for one in framed)]

    def _rewrite(self, standing: Standing) -> None:
        """Write what is not obsolete beside, and put it in the journal's place. Under the lock."""
        beside = self.path.with_name(f".{self.path.name}.tmp")
        whole = b"".join([MAGIC, frame(pack(self.header)), frame(packed(standing)), *self._live()])
        try:
            file = beside.open("w+b", buffering=0)
            # Locked before it has the name, so that nobody finds it without an owner.
            _lock(file.fileno())
            _write_all(file.fileno(), whole)
            os.fsync(file.fileno())
            beside.replace(self.path)
            sync_folder(self.path.parent)
        except OSError as error:
            raise cannot_write(self.path, error) from error
        self._file.close()
        self._file, self._size = file, len(whole)

    def _write(self, framed: bytes) -> None:
        try:
            _write_all(self._file.fileno(), framed)
        except OSError as error:
            self._file.truncate(self._size)
            self._file.seek(self._size)
            raise cannot_write(self.path, error) from error
        self._size += len(framed)


def _write_all(descriptor: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(descriptor, left) :]


def _opened(path: Path) -> Any:
    """The file at ``path``, made if it is not there, and locked. Raises ConfigurationError."""
    while True:
        try:
            file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b", buffering=0)
        except OSError as error:
            raise ConfigurationError(f"the journal {path} cannot be written: {error.strerror}") from None
        try:
            _lock(file.fileno())
            # Its owner may have put another in its place, or removed it, since it was opened.
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except FileNotFoundError:
            pass
        except BlockingIOError:
            file.close()
            raise ConfigurationError(
                f"another run has the journal {path} now: wait for its end, or name another output"
            ) from None
        file.close()


def _lock(descriptor: int) -> None:
    """Raises BlockingIOError when another process has the lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        # Some network file systems have no locks.
        log.warning("the journal cannot be locked (%s): see to it that no other run has its output", error.strerror)
