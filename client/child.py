"""Processes that a client starts for itself: each in a session of its own, restarted with backoff, gone with us.

A socket ties each to this process (its lifeline): however this process ends, ``kill -9`` among it, the socket
closes and the child ends itself.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable

log = logging.getLogger("genpool.client")

_LENGTH = struct.Struct("!Q")
_FIRST_BACKOFF_S = 0.2
_LONGEST_BACKOFF_S = 30.0

# How long a child may take to end after it was asked to; then its whole session is killed.
_PATIENCE_S = 5.0

_children: weakref.WeakSet[Child] = weakref.WeakSet()


class Child:
    """One supervised process.

    Args:
        name: for threads and log lines.
        code: Python source that the child runs; ``{descriptor}`` in it becomes its end of the socket.
        greeting: framed contents that the child reads first.
        heard: called with each content that the child sends, on the supervisor's thread.
        ended: called with the exit code when the child ended by itself; says whether to start it again.
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
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._ours: socket.socket | None = None
        self._backoff_s = _FIRST_BACKOFF_S
        self._supervisor = threading.Thread(target=self._supervise, name=f"genpool-{name}", daemon=True)
        _children.add(self)
        self._start()
        self._supervisor.start()

    @property
    def is_supervised(self) -> bool:
        """Whether it runs, or will be started again."""
        return self._supervisor.is_alive() and not self._stopping.is_set()

    def settled(self) -> None:
        """It has come up: its next start, should it end, is not delayed by what was before."""
        self._backoff_s = _FIRST_BACKOFF_S

    def ask_to_stop(self) -> None:
        """Send SIGTERM and start it no more."""
        self._stopping.set()
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def stop(self) -> None:
        """End it, by force where asking does not help, with every process that it has started."""
        self.ask_to_stop()
        process = self._process
        if process is None:
            return
        try:
            process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            log.warning("%s did not end within %g s of SIGTERM; it is killed", self._name, _PATIENCE_S)
        _kill_session(process.pid)
        process.wait()
        self._close()
        if threading.current_thread() is not self._supervisor:
            self._supervisor.join()

    def abandon(self) -> None:
        """In a forked process: let go of the lifeline, which is the parent's."""
        self._stopping.set()
        self._process = None
        self._close()

    def _start(self) -> None:
        self._ours, theirs = socket.socketpair()
        with theirs:
            descriptor = theirs.fileno()
            source = f"import sys; sys.path[:] = {sys.path!r}; {self._code.format(descriptor=descriptor)}"
            self._process = subprocess.Popen(
                [sys.executable, "-c", source],
                stdin=subprocess.DEVNULL,
                pass_fds=[descriptor],
                start_new_session=True,
            )

    def _supervise(self) -> None:
        while True:
            assert self._process is not None
            self._converse()
            code = self._process.wait()
            # What its engine has started must not outlive it, and may hold its memory or its GPU.
            _kill_session(self._process.pid)
            self._close()
            if self._stopping.is_set() or not self._ended(code):
                return
            if self._stopping.wait(self._backoff_s):
                return
            self._backoff_s = min(_LONGEST_BACKOFF_S, 2 * self._backoff_s)
            self._start()

    def _converse(self) -> None:
        """Send the greeting, then pass on what the child says until it has ended."""
        assert self._ours is not None and self._process is not None
        sock, process = self._ours, self._process
        heard = bytearray()
        try:
            sock.sendall(b"".join(_LENGTH.pack(len(one)) + one for one in self._greeting))
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
        while len(heard) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(heard)
            end = _LENGTH.size + length
            if len(heard) < end:
                return
            content = bytes(heard[_LENGTH.size : end])
            del heard[:end]
            self._heard(content)

    def _close(self) -> None:
        if self._ours is not None:
            self._ours.close()
            self._ours = None


def describe_exit(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"exit code {code}"
    return signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"


def _kill_session(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


@atexit.register
def _stop_all() -> None:
    children = list(_children)
    for child in children:
        child.ask_to_stop()
    for child in children:
        child.stop()


def _abandon_all() -> None:
    for child in list(_children):
        child.abandon()
    _children.clear()


os.register_at_fork(after_in_child=_abandon_all)
