"""The socket shell of workers and clients: one thread that owns the sockets and performs effects."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import zmq

from .address import KEYS, endpoint, host_of, is_literal, keys_for
from .codec import decode, encode
from .descriptor import Inflow
from .errors import ConfigurationError, DecodeError
from .greeting import mechanism_at
from .limits import Limits
from .messages import Message
from .monitor import next_event
from .multipart import is_readable, receive, send
from .printable import printable
from .session import Close, Log, Open, Send
from .trace import trace

if TYPE_CHECKING:
    from .keys import PeerKeys

# How many messages are read before effects are performed: larger batches more, smaller answers sooner.
_BURST = 256

# The message that brings a burst past so many bytes is its last. Without this, thousands of rows that share messages
# pass through one process after the other, and the others idle meanwhile.
BURST_BYTES = 512 * 1024

# libzmq asks for a sign of life every fifth of the timeout and waits three quarters of it, so that a peer that freezes
# right after an answer is still dropped within the whole.
_HEARTBEAT_INTERVAL = 0.2
_HEARTBEAT_WAIT = 0.75

# A machine gives up a silent connection well before libzmq at its own end breaks it, while a last word can still be
# sent: to the broker, a connection that only closes is a process that ended, and who ran in it is blamed. libzmq is
# there for a process whose loop cannot turn.
SILENCE = 0.7
_BACKSTOP = 1.0

# A DEALER that reconnects by itself would deliver stale messages first, so it waits a day, and is closed long before.
# With -1 ("never") libzmq drops what has arrived and is unread as soon as the connection breaks, the broker's last
# words among it, and the next send blocks.
_NO_RECONNECT_MS = 24 * 60 * 60 * 1000

_EVENTS = (
    zmq.EVENT_CONNECTED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
_TROUBLES: dict[int, str] = {
    zmq.EVENT_DISCONNECTED: "the connection broke",
    zmq.EVENT_CLOSED: "nothing answers there",
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "it ended the handshake: no genpool broker?",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "what answers there does not speak ZeroMQ: no genpool broker",
}

# How long the other end may take to say which mechanism it speaks.
_GREETING_S = 3.0

# Why a handshake failed, where it is about keys.
_NOT_ALLOWED = "this key is not among those that it allows: see `genpool keys allow`"
_NEEDS_KEYS = f"it speaks only to peers with keys: name a key file in {KEYS}, or give its connection file"
_NEEDS_NO_KEYS = f"it has no keys, and this peer has: unset {KEYS}, or start the broker with --keys"
_OTHER_KEY = f"it ended the handshake: it has another key than {KEYS} or the connection file says, or is no broker"


class Machine(Protocol):
    """What the shell drives, with one broker at a time: see session.py."""

    limits: Limits

    @property
    def address(self) -> str: ...

    def received(self, message: Message, now: float) -> None: ...
    def arriving(self, now: float) -> None: ...
    def malformed(self, reason: str, now: float) -> None: ...
    def broken(self, reason: str, now: float) -> None: ...
    def kept_out(self, reason: str, now: float) -> None: ...
    def tick(self, now: float) -> list[object]: ...
    def flush(self, now: float) -> list[object]: ...
    def row_of(self, execution: int) -> bytes | None: ...


def heartbeat(sock: zmq.Socket[bytes], timeout_s: float, *, is_broker: bool) -> None:
    """Have libzmq notice when the other end is gone: at the broker within ``timeout_s``. Both ends must set this."""
    wait, others_wait = (_HEARTBEAT_WAIT, _BACKSTOP) if is_broker else (_BACKSTOP, _HEARTBEAT_WAIT)
    sock.setsockopt(zmq.HEARTBEAT_IVL, int(timeout_s * 1000 * _HEARTBEAT_INTERVAL))
    sock.setsockopt(zmq.HEARTBEAT_TIMEOUT, int(timeout_s * 1000 * wait))
    # The other end counts this from a ping that nothing follows, whatever is set there.
    sock.setsockopt(zmq.HEARTBEAT_TTL, int(timeout_s * 1000 * others_wait))


class Dealer:
    """Runs ``machines``, each with a DEALER of its own to a broker at a time.

    Other threads speak to them through ``post`` only: a posted function runs in the loop's thread with the time, before
    the next effects are performed. Effects that are not about a socket go to ``perform``. ``ticked`` is called in the
    loop's thread after each tick of the machines.
    """

    def __init__(
        self,
        machines: Sequence[Machine],
        perform: Callable[[Any], None],
        role: str,
        *,
        heartbeat_timeout_s: float = 10.0,
        tick_s: float = 0.1,
        log: logging.Logger,
        ticked: Callable[[float], None] | None = None,
    ) -> None:
        self._tick_s = tick_s
        self._ticked = ticked
        self._poller = zmq.Poller()
        self._connections = [
            _Connection(machine, perform, role, heartbeat_timeout_s, log, self._poller, self.post)
            for machine in machines
        ]
        self._posted: deque[Callable[[float], None]] = deque()
        self._bell, self._ear = socket.socketpair()
        self._bell.setblocking(False)
        self._ear.setblocking(False)
        self._ringing = False

    def post(self, function: Callable[[float], None]) -> None:
        """Run ``function(now)`` in the loop's thread, soon. Any thread (and a signal handler) may call this."""
        self._posted.append(function)
        if not self._ringing:
            self._ringing = True
            try:
                self._bell.send(b"!")
            except OSError:
                pass  # full: it rings already; closed: the loop has ended

    def run(self, is_over: Callable[[], bool]) -> None:
        """Loop until ``is_over()``. The context and the sockets live and die in this thread, hence after any fork."""
        context = zmq.Context[zmq.Socket[bytes]](io_threads=1)
        for connection in self._connections:
            connection.context = context
        self._poller.register(self._ear, zmq.POLLIN)
        next_tick = time.monotonic()
        try:
            while not is_over():
                wait_s = max(0.0, next_tick - time.monotonic())
                ready = dict(self._poller.poll(int(wait_s * 1000) + 1))
                self._run_posted(rung=self._ear.fileno() in ready)
                for connection in self._connections:
                    connection.read(ready)
                now = time.monotonic()
                if now < next_tick:
                    for connection in self._connections:
                        connection.perform(connection.machine.flush(now))
                else:
                    next_tick = now + self._tick_s
                    for connection in self._connections:
                        # Between the clock and the tick: a process that stood still (stopped, or its GIL held) would
                        # else take the messages that wait for it for the broker's silence.
                        connection.receive()
                        connection.look(now)
                        connection.perform(connection.machine.tick(now))
                    if self._ticked is not None:
                        self._ticked(now)
        finally:
            for connection in self._connections:
                connection.close()
            context.destroy(linger=0)
            self._bell.close()
            self._ear.close()

    def _run_posted(self, *, rung: bool) -> None:
        # The bell is silenced first, then ``_ringing`` lowered, then the queue read. In any other order a post in
        # between is left lying until the next tick, or its bell rings on and the loop spins.
        if rung:
            self._ear.recv(64)
        self._ringing = False
        now = time.monotonic()
        while self._posted:
            self._posted.popleft()(now)


class _Connection:
    """One machine and its socket, which is another one after each break."""

    def __init__(
        self,
        machine: Machine,
        perform: Callable[[Any], None],
        role: str,
        heartbeat_timeout_s: float,
        log: logging.Logger,
        poller: zmq.Poller,
        post: Callable[[Callable[[float], None]], None],
    ) -> None:
        self.machine = machine
        self._perform_other = perform
        self._role = role
        self._heartbeat_timeout_s = heartbeat_timeout_s
        self._log = log
        self._poller = poller
        self._post = post
        self.context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._sock: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._inflow: Inflow | None = None
        self._endpoint = ""
        self._has_keys = False
        self._shook_hands = False
        self._is_asking = False

    def read(self, ready: Mapping[Any, int]) -> None:
        """Read what has come on the sockets that are ``ready``."""
        if self._sock in ready:
            self.receive()
        if self._monitor in ready:
            self._observe()

    def receive(self) -> bool:
        """Read a burst of messages. Whether there may be more."""
        size = 0
        for number in range(_BURST):
            # A handled message may have closed the socket.
            if self._sock is None:
                return False
            # As a rule a message is alone, and to ask takes less than half the time of an exception.
            if number == 1 and not is_readable(self._sock):
                return False
            try:
                frames = receive(self._sock, zmq.NOBLOCK)
            except zmq.Again:
                return False
            now = time.monotonic()
            if self._inflow is not None:
                self._inflow.message_came()
            try:
                message = decode(frames)
            except DecodeError as error:
                self.machine.malformed(str(error), now)
                self.perform(self.machine.flush(now))
            else:
                if self._log.isEnabledFor(logging.DEBUG):
                    trace(self._log, "received", message, self.machine.row_of)
                self.machine.received(message, now)
            size += sum(map(len, frames))
            if size > BURST_BYTES:
                break
        return True

    def look(self, now: float) -> None:
        """Tell the machine if a message is arriving of which libzmq does not tell yet."""
        if self._inflow is not None and self._inflow.has_grown():
            self.machine.arriving(now)

    def _observe(self) -> None:
        if self._monitor is None:
            return
        event, value = next_event(self._monitor)
        if event == zmq.EVENT_CONNECTED:
            self._inflow = Inflow(value)
            return
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._shook_hands = True
            return
        if self._is_asking:
            return  # the end of a connection whose handshake has failed
        # A ZeroMQ socket of another type only hangs up.
        if event == zmq.EVENT_DISCONNECTED and not self._shook_hands:
            event = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        # What arrived before the break is still to be read, answers among it.
        while self.receive():
            pass
        now = time.monotonic()
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            self.machine.kept_out(_NOT_ALLOWED, now)
        elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
            self._other_mechanism(now)
        elif event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL and self._endpoint.startswith("tcp://"):
            self._is_asking = True
            self._in_thread(self._ask_mechanism, self._sock, self._endpoint)
        else:
            self.machine.broken(self._trouble(event), now)

    def _trouble(self, event: int) -> str:
        """Why a connection has ended, or was none. The broker of local LLMs, at a socket's file, starts by itself."""
        trouble = _TROUBLES.get(event, "the connection broke")
        is_users = event == zmq.EVENT_CLOSED and self._endpoint.startswith("tcp://")
        return f"{trouble}; does `genpool broker` run?" if is_users else trouble

    def _other_mechanism(self, now: float) -> None:
        self.machine.kept_out(_NEEDS_NO_KEYS if self._has_keys else _NEEDS_KEYS, now)

    def _ask_mechanism(self, sock: zmq.Socket[bytes], address: str) -> None:
        """In a thread of its own: when two ends differ about keys, the first that sees it hangs up and tells nothing.

        libzmq has the reason only where that was this end, so ask the other what it speaks.
        """
        mechanism = mechanism_at(host_of(address), int(address.rpartition(":")[2]), _GREETING_S)
        self._post(lambda now: self._asked_mechanism(sock, mechanism, now))

    def _asked_mechanism(self, sock: zmq.Socket[bytes], mechanism: str | None, now: float) -> None:
        if self._sock is not sock:
            return
        if mechanism is not None and mechanism != ("CURVE" if self._has_keys else "NULL"):
            self._other_mechanism(now)
        else:
            trouble = _OTHER_KEY if self._has_keys else _TROUBLES[zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL]
            self.machine.broken(trouble, now)

    def perform(self, effects: list[object]) -> None:
        """Do what the machine has decided."""
        for effect in effects:
            match effect:
                case Send():
                    self._send(effect.message)
                case Log():
                    level = logging.getLevelNamesMapping()[effect.level.upper()]
                    self._log.log(level, "%s", printable(effect.text), extra={"fields": effect.fields})
                case Open():
                    self._open()
                case Close():
                    self.close(effect.linger_s)
                case _:
                    self._perform_other(effect)

    def _send(self, message: Message) -> None:
        if self._sock is None:
            return
        if self._log.isEnabledFor(logging.DEBUG):
            trace(self._log, "sent", message, self.machine.row_of)
        frames = encode(message, self.machine.limits.max_frame_bytes)
        try:
            # For each frame that is not copied pyzmq wakes a thread of its own, which takes longer than to copy one
            # that is not of several.
            send(self._sock, frames, copy=len(frames) <= 2)
        except zmq.Again:
            # There is no mark to reach: libzmq has given the connection up. Its events, if there are any, say why.
            if self._monitor is None or not self._monitor.poll(0):
                self.machine.broken("the connection broke", time.monotonic())

    def _open(self) -> None:
        self.close()
        address = self.machine.address
        try:
            # Read anew each time: a broker that was started again may have written another port into its file.
            self._connect(endpoint(address), keys_for(address, self._role))
        except ConfigurationError as error:
            self.machine.broken(str(error), time.monotonic())
        except zmq.ZMQError as error:
            self.close()
            self.machine.broken(f"no socket can be opened to it: {error}", time.monotonic())

    def _connect(self, address: str, keys: PeerKeys | None) -> None:
        assert self.context is not None
        sock = self._sock = self.context.socket(zmq.DEALER)
        self._has_keys = keys is not None
        if keys is not None:
            keys.secure(sock)
        self._poller.register(sock, zmq.POLLIN)
        sock.setsockopt(zmq.LINGER, 0)
        sock.setsockopt(zmq.RECONNECT_IVL, _NO_RECONNECT_MS)
        sock.setsockopt(zmq.IPV6, 1)
        # What is sent is bounded by credit and window, in rows and bytes; a mark in messages would only block.
        sock.setsockopt(zmq.SNDHWM, 0)
        heartbeat(sock, self._heartbeat_timeout_s, is_broker=False)
        self._monitor = sock.get_monitor_socket(_EVENTS)
        self._poller.register(self._monitor, zmq.POLLIN)
        self._endpoint = address
        self._shook_hands = self._is_asking = False
        sock.connect(address)
        if address.startswith("tcp://") and not is_literal(host_of(address)):
            self._in_thread(self._look_up, sock, host_of(address))

    @staticmethod
    def _in_thread(function: Callable[..., None], *arguments: object) -> None:
        threading.Thread(target=function, args=arguments, name="genpool-asks", daemon=True).start()

    def _look_up(self, sock: zmq.Socket[bytes], host: str) -> None:
        """In a thread of its own: libzmq never says that a host's name is unknown, so ask beside it and tell."""
        try:
            socket.getaddrinfo(host, None)
        # A name with an empty or too long part is a UnicodeError.
        except (OSError, UnicodeError) as error:
            reason = f"the host name {host!r} cannot be resolved: {error}"
            self._post(lambda now: self._unresolved(sock, reason, now))

    def _unresolved(self, sock: zmq.Socket[bytes], reason: str, now: float) -> None:
        if self._sock is sock and not self._shook_hands:
            self.machine.broken(reason, now)

    def close(self, linger_s: float = 0.0) -> None:
        """Give the socket back, with so much time for what was sent last to leave."""
        if self._sock is None:
            return
        self._poller.unregister(self._sock)
        if self._monitor is not None:
            self._poller.unregister(self._monitor)
            self._sock.disable_monitor()
            self._monitor.close(linger=0)
        self._sock.close(linger=int(linger_s * 1000))
        self._sock = self._monitor = self._inflow = None
