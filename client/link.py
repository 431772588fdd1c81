"""This process's connection to one broker, shared by every LLM and pool that uses it.

Two threads each: ``genpool-io`` owns the socket and resolves futures, but runs no user code; ``genpool-callbacks``
does that: progress and done-callbacks, and tasks that read completions. Both are made anew in a forked child.
"""

from __future__ import annotations

import atexit
import logging
import os
import queue
import random
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NoReturn, TypeVar

from ..protocol.dealer import Dealer
from ..protocol.errors import Closed, ConfigurationError, GenpoolError, NoBroker, Refused
from ..protocol.frames import Frames
from ..protocol.messages import Dismiss, Dismissed, Hello, LLMInfo, PeerInfo, Role
from ..protocol.printable import printable
from ..protocol.session import ENDED, REFUSED, SessionSettings
from .future import leave_callbacks_to
from .machine import Client, Ended, FleetSeen, HasDismissed, Reported, RunEnded, TurnedAway
from .row import Row, by_owner, is_large, tell
from .run import Run, tell_run

log = logging.getLogger("genpool.client")

T = TypeVar("T")

_links: dict[str, Link] = {}

# Reentrant, for what is allocated under them may have the garbage collector tear down another pool: by a `with` block
# in a generator that nobody has any more, or by somebody's ``__del__``.
_lock = threading.RLock()
_step = threading.RLock()

_pid = os.getpid()


def own_pid() -> int:
    """This process's id, without asking the system for it at every row."""
    return _pid


def step() -> AbstractContextManager[object]:
    """A lock for short steps of any LLM or pool. A forked child has another, whoever has this one in its parent."""
    return _step


def link_to(address: str) -> Link:
    """The link of this process to the broker at ``address``, opened for its first user. Give it back with ``leave``.

    Raises:
        Closed: the interpreter is ending, as for a ``__del__`` that is called so late.
    """
    if sys.is_finalizing():
        raise Closed("the interpreter is ending")  # it would wait for ever for a thread to start
    with _lock:
        link = _links.get(address)
        if link is None or not link.is_open:
            link = _links[address] = Link(address)
        link.users += 1
        return link


def leave(link: Link) -> None:
    """One user of ``link`` is done with it; the last one closes it."""
    with _lock:
        link.users -= 1
        is_last = link.users <= 0
        if is_last and _links.get(link.address) is link:
            del _links[link.address]
    if is_last:
        link.close()


class Link:
    """See the module. Every method may be called from any thread."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.users = 0
        identity = Hello(role=Role.CLIENT, instance=os.urandom(16), host=socket.gethostname(), pid=os.getpid())
        self._machine = Client(address, identity, SessionSettings(), random.Random().random, time.monotonic())
        self._dealer = Dealer([self._machine], self._perform, Role.CLIENT, log=log)
        self._fleet: dict[str, LLMInfo] | None = None
        self._report: dict[str, Any] | None = None
        self._dismissed: Dismissed | None = None
        self._news = threading.Condition()
        self._closing = False
        self._gate = threading.RLock()  # no row is posted behind the end
        self._user_code: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._io = threading.Thread(target=self._run, name="genpool-io", daemon=True)
        self._callbacks = threading.Thread(target=self._run_user_code, name="genpool-callbacks", daemon=True)
        self._io.start()
        self._callbacks.start()

    @property
    def is_open(self) -> bool:
        """Whether rows may be submitted. One that was refused stays so; who connects anew tries again."""
        return not self._closing and self._io.is_alive() and self._machine.state is not REFUSED

    def submit(self, rows: list[Row] | Run) -> None:
        """Send rows; their owners hear of their end. Raises Closed."""
        with self._gate:
            if self._closing:
                raise Closed(f"the connection to the broker at {self.address} was closed")
            self._dealer.post(lambda now: self._machine.submit(rows, now))

    def withdraw(self, rows: Iterable[Row] | Run) -> None:
        """Nobody wants these rows any more; their owners hear nothing."""
        self._dealer.post(lambda now: self._machine.withdraw(rows, now))

    def fail(self, llm: str, error: GenpoolError) -> None:
        """End all rows of one LLM with ``error``."""
        self._dealer.post(lambda now: self._machine.fail(llm, error))

    @property
    def fleet(self) -> dict[str, LLMInfo] | None:
        """The LLMs that the broker knows by now; None before it has said."""
        return self._fleet

    def wait_for(self, question: Callable[[dict[str, LLMInfo]], T | None], timeout_s: float) -> T | None:
        """The first answer other than None to ``question`` about the fleet, or None when there was none in time.

        Raises:
            NoBroker: when no broker told of its LLMs within ``timeout_s``.
            Refused: when the broker will not talk to this client.
        """

        def answer() -> tuple[T | None] | None:
            found = None if self._fleet is None else question(self._fleet)
            return (found,) if found is not None or self._machine.state is REFUSED else None

        with self._news:
            found = self._news.wait_for(answer, timeout_s)
        if self._fleet is None:
            self._raise_unreachable(timeout_s)
        return None if found is None else found[0]

    def status(self, timeout_s: float) -> dict[str, Any]:
        """The broker's report. Raises NoBroker and Refused as ``wait_for`` does."""
        self._report = None
        self._dealer.post(self._machine.ask)
        with self._news:
            self._news.wait_for(lambda: self._report is not None or self._machine.state is REFUSED, timeout_s)
        if self._report is None:
            self._raise_unreachable(timeout_s)
        return self._report or {}

    def dismiss(self, message: Dismiss, timeout_s: float) -> list[PeerInfo]:
        """Have the broker send others away. Returns whom.

        Raises:
            NoBroker: when there was none within ``timeout_s``.
            Refused: when the broker will not talk to this client, or not be told by it.
            ConfigurationError: when what the message names is not there.
        """
        self._dismissed = None
        self._dealer.post(lambda now: self._machine.dismiss(message, now))
        with self._news:
            self._news.wait_for(lambda: self._dismissed is not None or self._machine.state is REFUSED, timeout_s)
        answer = self._dismissed
        if answer is None:
            self._raise_unreachable(timeout_s)
        if answer.is_refused:
            raise Refused(f"the broker at {self.address} refused this client: {printable(answer.reason)}")
        if answer.reason:
            raise ConfigurationError(printable(answer.reason))
        return answer.peers

    def close(self) -> None:
        """Say goodbye and end both threads. Rows that are not over end as Closed; may be called twice."""
        with self._gate:
            self._closing = True
            self._dealer.post(lambda now: self._machine.end("it is done"))
        if threading.current_thread() is not self._io:
            self._io.join(timeout=3.0)

    def _raise_unreachable(self, timeout_s: float) -> NoReturn:
        if self._machine.state is REFUSED:
            raise Refused(f"the broker at {self.address} refused this client: {self._machine.trouble}")
        raise NoBroker(f"no broker at {self.address} within {round(timeout_s, 1):g} s: {self._machine.trouble}")

    # The threads.

    def _run(self) -> None:
        leave_callbacks_to(self._user_code.put)
        try:
            self._dealer.run(lambda: self._machine.state is ENDED)
        except BaseException:
            log.exception("the connection to the broker at %s ended by a defect in genpool", self.address)
            error = Closed(f"the connection to the broker at {self.address} broke by a defect; see the log")
            with self._gate:
                self._closing = True  # who hears of it may want to send more
            rows = [row for row in self._machine.rows() if not row.over]
            for row in rows:
                row.ending = error
            self._tell(rows)
        finally:
            self._closing = True
            self._user_code.put(None)

    def _perform(self, effect: Any) -> None:
        match effect:
            case Ended():
                self._tell(effect.rows)
            case RunEnded():
                self._tell_run(effect)
            case FleetSeen():
                with self._news:
                    self._fleet = effect.llms
                    self._news.notify_all()
            case Reported():
                with self._news:
                    self._report = effect.report
                    self._news.notify_all()
            case HasDismissed():
                with self._news:
                    self._dismissed = effect.answer
                    self._news.notify_all()
            case TurnedAway():
                with self._news:
                    self._news.notify_all()
            case _:
                raise AssertionError(f"an effect that the client does not know: {effect}")

    def _tell(self, rows: list[Row]) -> None:
        for owner, own in by_owner(rows).items():
            if owner.runs_user_code or is_large(own):
                self._user_code.put(partial(tell, owner, own))
            else:
                tell(owner, own)

    def _tell_run(self, ended: RunEnded) -> None:
        if ended.run.owner.runs_user_code or isinstance(ended.payloads[0], Frames):
            self._user_code.put(partial(tell_run, ended.run, ended.first, ended.payloads))
        else:
            tell_run(ended.run, ended.first, ended.payloads)

    def _run_user_code(self) -> None:
        while (run := self._user_code.get()) is not None:
            run()


@atexit.register
def _close_all() -> None:
    for link in list(_links.values()):
        link.close()


def _forget_all() -> None:
    """In a forked child: the parent's threads and sockets are not there."""
    global _lock, _step, _pid  # noqa: PLW0603
    _lock, _step = threading.RLock(), threading.RLock()
    _pid = os.getpid()
    _links.clear()


os.register_at_fork(after_in_child=_forget_all)
