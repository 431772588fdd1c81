"""SIGINT and SIGTERM as an exception in the main thread, raised only where nothing is torn by it."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Collection, Generator
from contextlib import contextmanager

# `timeout` signals its command and then the command's group, so one wish may arrive twice.
_SAME_WISH_S = 0.5
# How long a handler may take to run before its signal is sent again.
_UNSEEN_S = 0.1


class Interrupted(BaseException):
    """Raised when a signal asks to stop; no Exception, so that what handles a row's errors lets it pass.

    Attributes:
        number: the signal's.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Interrupt:
    """Whether a signal has come. The first one raises Interrupted, the next one ends the process at once."""

    def __init__(self) -> None:
        self.seen = threading.Event()
        self._number: int | None = None
        self._came_at = 0.0
        self._is_held = False

    def on_signal(self, number: int, _: object) -> None:
        """Handle a signal: for ``signal.signal``."""
        if self._number is not None:
            if time.monotonic() - self._came_at > _SAME_WISH_S:
                os._exit(128 + number)
            return
        self._number, self._came_at = number, time.monotonic()
        self.seen.set()
        if not self._is_held:
            raise Interrupted(number)

    @contextmanager
    def held(self) -> Generator[None]:
        """Nothing is raised within; what came meanwhile is raised at the end."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
        if self._number is not None:
            raise Interrupted(self._number)


@contextmanager
def interruptible() -> Generator[Interrupt]:
    """Have signals raise Interrupted in here. One that was ignored (a job in the background) stays so.

    For the main thread only.
    """
    interrupt = Interrupt()
    taken = [one for one in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(one) is not signal.SIG_IGN]
    former = {one: signal.signal(one, interrupt.on_signal) for one in taken}
    try:
        with _wakened(interrupt, taken):
            yield interrupt
    finally:
        for one, handler in former.items():
            signal.signal(one, handler)


@contextmanager
def _wakened(interrupt: Interrupt, taken: Collection[int]) -> Generator[None]:
    """See to it that a signal's handler runs.

    One that arrives when the main thread is about to block, after Python last looked, would lie there until what is
    waited for comes; a thread that hears of signals by Python's wakeup descriptor then sends it again.
    """
    ear, bell = socket.socketpair()
    bell.setblocking(False)
    former = signal.set_wakeup_fd(bell.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(
        target=_send_again, args=(ear, interrupt.seen, taken), name="genpool-signals", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        # The thread ends before the handlers go: what it sends must not end the process.
        signal.set_wakeup_fd(former)
        interrupt.seen.set()
        bell.close()
        thread.join()
        ear.close()


def _send_again(ear: socket.socket, seen: threading.Event, taken: Collection[int]) -> None:
    main = threading.main_thread().ident
    assert main is not None
    while number := ear.recv(1):
        while number[0] in taken and not seen.wait(_UNSEEN_S):
            signal.pthread_kill(main, number[0])
