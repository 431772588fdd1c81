"""Ties the processes that one starts to itself: a pipe of which they hold one end and nobody else the other.

However the owner ends, ``kill -9`` among it, the pipe closes, and a ``genpool`` command that was given it with
``--lifeline`` ends itself and what it has started.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from typing import Any, Self


class Lifeline:
    """The pipe of this process. It may hold any number of others."""

    def __init__(self) -> None:
        self._theirs, self._ours = os.pipe()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._theirs)
        os.close(self._ours)

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start a ``genpool`` command in a session of its own, where Ctrl-C does not reach it.

        ``options`` are those of ``subprocess.Popen``.

        Raises:
            OSError: when the operating system starts no more processes.
            ValueError: when no process can be given such arguments or such an environment.
        """
        return subprocess.Popen[bytes](
            [*command, "--lifeline", str(self._theirs)],
            stdin=subprocess.DEVNULL,
            pass_fds=[self._theirs],
            start_new_session=True,
            **options,
        )


def kill_session(pid: int) -> None:
    """End the process that was started in a session of its own, and all that it has started, at once."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def describe_exit(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"exit code {code}"
    return signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
