"""Processes that a client starts for itself: each in a session of its own, restarted with backoff, gone with us.

A socket ties each to this process (its lifeline): however this process ends, ``kill -9`` among it, the socket
closes and the child ends itself.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ..protocol.backoff import Backoff
from ..protocol.framed import framed, whole_contents
from ..protocol.lifeline import describe_exit, kill_session
from ..protocol.notify import VARIABLES

log = logging.getLogger("genpool.client")

# Shorter than for a fleet's processes: somebody waits for this one.
_FIRST_BACKOFF_S = 0.2
_LONGEST_BACKOFF_S = 10.0

# How long a child may take to end after it was asked to; then its whole session is killed.
_PATIENCE_S = 5.0

_children: weakref.WeakSet[Child] = weakref.WeakSet()

# Held while a child is started: nothing is started once stopping was decided, and a fork in another thread never
# copies a lifeline that nobody knows of yet, which would keep the child alive after us. Reentrant, for the garbage
# collector may stop another child in the midst of a start: see link.py.
_starting = threading.RLock()


class Child:
    """One supervised process. It keeps the working directory and ``sys.path`` of the moment when this was made.

    Args:
        name: for threads and log lines.
        code: Python source that the child runs; ``{descriptor}`` in it becomes its end of the socket.
        greeting: framed contents that the child reads first.
        heard: called with each content that the child sends, on the supervisor's thread.
        ended: called with the exit code when the child ended by itself; says whether to start it again.

    Raises:
        OSError: when the operating system starts no more processes.
    """

    def __init__(
        self,
        name: str,
        code: str,
        greeting: list[bytes],
        heard: Callable[[bytes], None],
        ended: Callable[[int], bool],
    ) -> None:
        self._name, self._code, self._greeting = name, code, greeting
        self._heard, self._ended = heard, ended
        self._directory = Path.cwd()
        self._path = [str(one) for one in sys.path]
        self._stopping = threading.Event()
        self._backoff = Backoff(lambda: 0.0, _FIRST_BACKOFF_S, _LONGEST_BACKOFF_S)  # alone, it needs no jitter
        with _starting:
            self._process, self._ours = self._start()
            _children.add(self)
        self._started = time.monotonic()
        self._supervisor = threading.Thread(target=self._supervise, name=f"genpool-{name}", daemon=True)
        self._supervisor.start()

    @property
    def pid(self) -> int:
        """Of the process that was started last."""
        return self._process.pid

    def came_up(self) -> None:
        """It has loaded what it needed: how long it runs counts from now."""
        self._started = time.monotonic()

    def kill(self) -> None:
        """End its process and all that it has started, at once. ``ended`` is called as for any other end."""
        kill_session(self._process.pid)

    def ask_to_stop(self) -> None:
        """Send SIGTERM and start it no more."""
        with _starting:
            self._stopping.set()
            self._process.terminate()

    def stop(self) -> None:
        """End it, by force where asking does not help, with every process that it has started."""
        self.ask_to_stop()
        self._supervisor.join(_PATIENCE_S)
        if self._supervisor.is_alive():
            log.warning("%s did not end within %g s of SIGTERM; it is killed", self._name, _PATIENCE_S)
            self.kill()
            self._supervisor.join()

    def abandon(self) -> None:
        """In a forked process: let go of the lifeline, which is the parent's."""
        self._stopping.set()
        self._ours.close()

    # On the supervisor's thread.

    def _start(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        """The started process and our end of its socket. The caller holds ``_starting``."""
        ours, theirs = socket.socketpair()
        with theirs:
            descriptor = theirs.fileno()
            source = f"import sys; sys.path[:] = {self._path!r}; {self._code.format(descriptor=descriptor)}"
            try:
                process = subprocess.Popen(
                    [sys.executable, "-c", source],
                    cwd=self._directory,
                    # It is none of its service, if this process is one's.
                    env={name: value for name, value in os.environ.items() if name not in VARIABLES},
                    stdin=subprocess.DEVNULL,
                    pass_fds=[descriptor],
                    start_new_session=True,
                )
            except OSError:
                ours.close()
                raise
        return process, ours

    def _supervise(self) -> None:
        while True:
            self._converse()
            code = self._process.wait()
            # What its engine has started must not outlive it, and may hold its memory or its GPU.
            kill_session(self._process.pid)
            self._ours.close()
            if self._stopping.is_set() or not self._ended(code):
                return
            log.warning("%s ended (%s); it is started again", self._name, describe_exit(code))
            if not self._start_again():
                return

    def _start_again(self) -> bool:
        """Whether it was: not when it was stopped meanwhile."""
        pause_s = self._backoff.pause_s(time.monotonic() - self._started)
        while not self._stopping.wait(pause_s):
            try:
                with _starting:
                    if self._stopping.is_set():
                        return False
                    self._process, self._ours = self._start()
            except OSError as error:
                pause_s = self._backoff.pause_s(0.0)
                log.warning("%s cannot be started (%s); trying again in %.1f s", self._name, error, pause_s)
                continue
            self._started = time.monotonic()
            return True
        return False

    def _converse(self) -> None:
        """Send the greeting, then pass on what the child says until it has ended."""
        sock, process = self._ours, self._process
        heard = bytearray()
        with suppress(OSError):  # it has ended already; what it said before is still to be read
            sock.sendall(b"".join(map(framed, self._greeting)))
        try:
            # A process of the engine's may hold a copy of the socket, so its end is not the child's end.
            sock.settimeout(0.2)
            while process.poll() is None:
                try:
                    part = sock.recv(1 << 16)
                except TimeoutError:
                    continue
                if not part:
                    return
                heard += part
                self._pass_on(heard)
            while part := sock.recv(1 << 16):
                heard += part
                self._pass_on(heard)
        except OSError:
            pass  # it went away in the middle; the exit code tells

    def _pass_on(self, heard: bytearray) -> None:
        for content in whole_contents(heard):
            self._heard(content)


def _abandon_all() -> None:
    for child in list(_children):
        child.abandon()
    _children.clear()
    _starting.release()


os.register_at_fork(before=_starting.acquire, after_in_parent=_starting.release, after_in_child=_abandon_all)
