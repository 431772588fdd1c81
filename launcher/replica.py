"""What a Ray actor of genpool does: it runs one ``genpool`` command, starts it again when it dies, and tells how it is.

Ray places this on a host, and places it anew when the host is lost. It is found there by its name, so that genpool is
to be installed on every host; of Ray it needs nothing.
"""

from __future__ import annotations

import logging
import os
import random
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from ..protocol.backoff import FINAL, Backoff
from ..protocol.lifeline import Lifeline, describe_exit, kill_session
from ..protocol.notify import VARIABLES
from ..protocol.printable import printable
from .ear import EXIT_CANNOT_START, ear_folder, hear

log = logging.getLogger("genpool.launcher")

# With a larger value a drain begins and an end is seen later.
_LOOK_S = 0.1

# How long what is left in a pipe may take to be read once its process is gone.
_READ_S = 2.0


class Replica:
    """See the module. It begins at once, in a thread; the process never outlives this one.

    Args:
        arguments: of the ``genpool`` command.
        environment: what the command has in its environment beside this process's own.
        folder: where it runs; None for where this process does.
    """

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], folder: str | None) -> None:
        self._command = [sys.executable, "-m", "genpool.cli", *arguments]
        self._environment, self._folder = dict(environment), folder
        self._leaving = threading.Event()
        self._popen: subprocess.Popen[bytes] | None = None
        self._ready_at: float | None = None
        self._code: int | None = None
        self._is_over = False
        self._restarts = 0
        self._said = self._last_line = ""
        self._thread = threading.Thread(target=self._run, name="genpool-replica", daemon=True)
        self._thread.start()

    def state(self) -> dict[str, Any]:
        """How it is: ``is_ready``, ``is_over`` (it has ended in a way that another start would not mend), and more."""
        popen = self._popen
        return {
            "is_ready": self._ready_at is not None,
            "is_leaving": self._leaving.is_set(),
            "is_over": self._is_over,
            "code": self._code,
            "restarts": self._restarts,
            "host": socket.gethostname(),
            "pid": None if popen is None else popen.pid,
            "says": self._said,
            "last_line": self._last_line,
        }

    def leave(self) -> bool:
        """Have it drain (SIGTERM) and not start again. To be called until it says that it is gone."""
        self._leaving.set()
        return self._is_over

    def _run(self) -> None:
        backoff = Backoff(random.random)
        with Lifeline() as lifeline, ear_folder() as sockets:
            while not self._leaving.is_set():
                code = self._run_once(lifeline, Path(sockets) / str(self._restarts))
                ready_at, self._ready_at, self._popen, self._code = self._ready_at, None, None, code
                if self._leaving.is_set() or code in FINAL:
                    break
                pause_s = backoff.pause_s(0.0 if ready_at is None else time.monotonic() - ready_at)
                self._restarts += 1
                log.warning("it ended (%s); it is started again in %.1f s", describe_exit(code), pause_s)
                self._leaving.wait(pause_s)
        self._is_over = True

    def _run_once(self, lifeline: Lifeline, path: Path) -> int:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
            ear.bind(str(path))
            try:
                self._popen = popen = lifeline.start(
                    self._command,
                    cwd=self._folder,
                    env={**os.environ, **self._environment, VARIABLES[0]: str(path)},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                )
            except (OSError, ValueError) as error:  # the latter of what no process can be given
                self._last_line = f"it cannot be started on {socket.gethostname()}: {error}"
                return EXIT_CANNOT_START
            assert popen.stdout is not None
            reader = threading.Thread(target=self._pass_on, args=[popen.stdout], name="genpool-log", daemon=True)
            reader.start()
            code = self._attend(popen, ear)
            # What its engine has started must not outlive it, and may hold its memory or its GPU.
            kill_session(popen.pid)
            reader.join(_READ_S)
            return code

    def _attend(self, popen: subprocess.Popen[bytes], ear: socket.socket) -> int:
        is_asked = False
        while (code := popen.poll()) is None:
            if self._leaving.is_set() and not is_asked:
                is_asked = True
                popen.terminate()
            if select.select([ear], [], [], _LOOK_S)[0]:
                is_ready, said = hear(ear)
                self._said = self._said if said is None else said
                if is_ready:
                    self._ready_at = time.monotonic()
        return code

    def _pass_on(self, stream: IO[bytes]) -> None:
        """What the process logs goes to the actor's log, which Ray keeps."""
        with stream:
            for line in stream:
                text = line.decode(errors="replace")
                sys.stderr.write(text)
                sys.stderr.flush()
                self._last_line = printable(text.strip()) or self._last_line
