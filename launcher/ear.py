"""The sockets on which processes say how they fare: where they are, and what is heard there."""

from __future__ import annotations

import os
import socket
import tempfile

from ..protocol.printable import printable

# What stands for the exit code of a process that cannot be started; sysexits.h calls it EX_OSERR.
EXIT_CANNOT_START = 71

# A socket's path may have 103 bytes on macOS. The rest is for the folder's own name and the socket's.
_LONGEST_PARENT = 76


def ear_folder() -> tempfile.TemporaryDirectory[str]:
    """A new folder for such sockets, below the temporary folder unless that one's path is too long."""
    usual = tempfile.gettempdir()
    parent = usual if len(os.fsencode(usual)) <= _LONGEST_PARENT else "/tmp"
    return tempfile.TemporaryDirectory(prefix="genpool-up-", dir=parent)


def hear(ear: socket.socket) -> tuple[bool, str | None]:
    """What has come next: whether the process says that it is ready, and its line for people, if it says one.

    Raises:
        BlockingIOError: nothing has come, and the socket does not wait.
    """
    lines = ear.recv(4096).decode(errors="replace").splitlines()
    said = [printable(line.removeprefix("STATUS=")) for line in lines if line.startswith("STATUS=")]
    return "READY=1" in lines, said[-1] if said else None
