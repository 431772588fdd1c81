"""The folder of one fleet file on this host: the logs, what runs, and a pipe to say to the launcher what to do.

The pipe tells as well whether a launcher is there: without one, nobody reads it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import socket
import stat
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from ..protocol.errors import ConfigurationError
from ..protocol.private import write_private

_STATE = "the state file"


@dataclass(frozen=True, slots=True)
class Request:
    """What a command asks a launcher for: ``what`` is "up" or "down"; ``token`` tells the answer."""

    what: str
    restart: tuple[str, ...] = ()
    timeout_s: float | None = None
    token: str = field(default_factory=lambda: secrets.token_hex(8))


@dataclass(frozen=True, slots=True)
class Status:
    """What a launcher tells: how its processes are, and to the token of each of the last requests its error, or ""."""

    pid: int
    fleet: str
    answers: dict[str, str]
    is_settled: bool
    processes: list[dict[str, Any]]


class Place:
    """See the module."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pipe = folder / "control"
        self._state = folder / "state.json"
        self.own_log = folder / "up.log"

    @classmethod
    def of(cls, file: Path, folder: Path | None) -> Place:
        """The one that was named, or that of the fleet file: hosts that share the file have one each."""
        return cls(folder.absolute() if folder else file.absolute().with_suffix(".run") / socket.gethostname())

    def log_of(self, name: str) -> Path:
        return self.folder / f"{quote(name, safe=' ')}.log"

    # For the launcher.

    def occupy(self) -> int | None:
        """Make the folder and its pipe, and be its only launcher. Returns the pipe; None where there is one already.

        Raises:
            ConfigurationError: when there can be no such folder.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                os.mkfifo(self._pipe, 0o600)
            if not stat.S_ISFIFO(self._pipe.stat().st_mode):
                raise ConfigurationError(f"{self._pipe} is in the way: `genpool up` needs a pipe there; remove it")
            # For writing too, or it would be at its end whenever nobody writes.
            pipe = os.open(self._pipe, os.O_RDWR | os.O_NONBLOCK)
        except OSError as error:
            raise ConfigurationError(f"{self.folder} cannot be used for logs: {error.strerror}") from error
        try:
            fcntl.flock(pipe, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(pipe)
            return None
        return pipe

    def tell(self, status: Status) -> None:
        write_private(self._state, json.dumps(asdict(status)) + "\n", _STATE)

    def leave(self) -> None:
        """Nothing runs any more."""
        self._state.unlink(missing_ok=True)
        self._pipe.unlink(missing_ok=True)

    # For the commands.

    def ask(self, request: Request) -> bool:
        """Send the request. Returns whether there is a launcher that gets it."""
        try:
            pipe = os.open(self._pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno in (errno.ENXIO, errno.ENOENT):
                return False
            raise ConfigurationError(f"{self._pipe} cannot be written: {error.strerror}") from error
        try:
            os.write(pipe, json.dumps(asdict(request)).encode() + b"\n")  # short enough to go as one
        finally:
            os.close(pipe)
        return True

    @property
    def is_occupied(self) -> bool:
        """Whether there is a launcher."""
        try:
            os.close(os.open(self._pipe, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            return False
        return True

    def status(self) -> Status | None:
        """What the launcher told last."""
        try:
            return Status(**json.loads(self._state.read_text()))
        except (OSError, ValueError, TypeError):
            return None


def parsed_request(line: bytes) -> Request | None:
    """The request in a line of the pipe; None for anything else."""
    try:
        said = cast(dict[str, Any], json.loads(line))
        return Request(said["what"], tuple(said["restart"]), said["timeout_s"], said["token"])
    except (ValueError, TypeError, KeyError):
        return None
