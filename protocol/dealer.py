"""The socket shell of workers and clients: one thread that owns one DEALER at a time and performs effects."""

from __future__ import annotations

import logging
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import zmq
from zmq.utils.monitor import recv_monitor_message

from .codec import decode, encode
from .errors import DecodeError
from .limits import Limits
from .messages import Message
from .session import Close, Log, Open, Send

# How many messages are read before effects are performed: larger batches more, smaller answers sooner.
_BURST = 256

# A ZMTP heartbeat is sent this often within the silence that is tolerated.
_BEATS = 4

_EVENTS = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
_TROUBLES = {
    zmq.EVENT_DISCONNECTED: "the connection broke",
    zmq.EVENT_CLOSED: "nothing answers there",
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "it ended the handshake: no genpool broker?",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "what answers there does not speak ZeroMQ: no genpool broker",
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "it refused this peer's key",
}


class Machine(Protocol):
    """What the shell drives: see session.py."""

    limits: Limits

    def received(self, message: Message, now: float) -> None: ...
    def malformed(self, reason: str, now: float) -> None: ...
    def broken(self, reason: str, now: float) -> None: ...
    def tick(self, now: float) -> list[object]: ...
    def flush(self, now: float) -> list[object]: ...


def heartbeat(sock: zmq.Socket[bytes], timeout_s: float) -> None:
    """Have libzmq notice within ``timeout_s`` that the other end is gone. Both ends must set this."""
    sock.setsockopt(zmq.HEARTBEAT_IVL, int(timeout_s * 1000 / _BEATS))
    sock.setsockopt(zmq.HEARTBEAT_TIMEOUT, int(timeout_s * 1000))
    sock.setsockopt(zmq.HEARTBEAT_TTL, int(timeout_s * 1000))


class Dealer:
    """Runs ``machine`` against the broker at ``address``.

    Other threads speak to it through ``post`` only: a posted function runs in the loop's thread with the time, before
    the next effects are performed. Effects that are not about the socket go to ``perform``.
    """

    def __init__(
        self,
        address: str,
        machine: Machine,
        perform: Callable[[Any], None],
        *,
        heartbeat_timeout_s: float = 10.0,
        tick_s: float = 0.1,
        log: logging.Logger,
    ) -> None:
        self.machine = machine
        self._address = address
        self._perform_other = perform
        self._heartbeat_timeout_s = heartbeat_timeout_s
        self._tick_s = tick_s
        self._log = log
        self._posted: deque[Callable[[float], None]] = deque()
        self._bell, self._ear = socket.socketpair()
        self._bell.setblocking(False)
        self._ear.setblocking(False)
        self._ringing = False
        self._sock: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._poller = zmq.Poller()

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
        """Loop until ``is_over()``. The context and the socket live and die in this thread, hence after any fork."""
        context = zmq.Context[zmq.Socket[bytes]](io_threads=1)
        self._context = context
        self._poller.register(self._ear, zmq.POLLIN)
        next_tick = time.monotonic()
        try:
            while not is_over():
                now = time.monotonic()
                if now >= next_tick:
                    next_tick = now + self._tick_s
                    self._perform(self.machine.tick(now))
                ready = dict(self._poller.poll(int(max(0.0, next_tick - now) * 1000) + 1))
                self._run_posted()
                if self._sock in ready:
                    self._receive()
                if self._monitor in ready:
                    self._observe()
                self._perform(self.machine.flush(time.monotonic()))
        finally:
            self._close()
            context.destroy(linger=0)
            self._bell.close()
            self._ear.close()

    def _run_posted(self) -> None:
        if not self._posted:
            return
        # Lowered before the queue is read: a post after this rings again, so none is left lying.
        self._ringing = False
        try:
            self._ear.recv(64)
        except BlockingIOError:
            pass
        now = time.monotonic()
        while self._posted:
            self._posted.popleft()(now)

    def _receive(self) -> None:
        sock = self._sock
        for _ in range(_BURST):
            # A handled message may have closed the socket.
            if sock is None or sock is not self._sock:
                return
            try:
                frames = sock.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            now = time.monotonic()
            try:
                message = decode(frames)
            except DecodeError as error:
                self.machine.malformed(str(error), now)
                self._perform(self.machine.flush(now))
            else:
                self.machine.received(message, now)

    def _observe(self) -> None:
        if self._monitor is None:
            return
        event = recv_monitor_message(self._monitor)
        # What arrived before the break is still to be read, answers among it.
        self._receive()
        self.machine.broken(_TROUBLES.get(event["event"], "the connection broke"), time.monotonic())

    def _perform(self, effects: list[object]) -> None:
        for effect in effects:
            match effect:
                case Send():
                    self._send(effect.message)
                case Log():
                    self._log.log(logging.getLevelNamesMapping()[effect.level.upper()], "%s", effect.text)
                case Open():
                    self._open()
                case Close():
                    self._close(effect.linger_s)
                case _:
                    self._perform_other(effect)

    def _send(self, message: Message) -> None:
        if self._sock is not None:
            self._sock.send_multipart(encode(message, self.machine.limits.max_frame_bytes), copy=False)

    def _open(self) -> None:
        self._close()
        sock = self._context.socket(zmq.DEALER)
        sock.setsockopt(zmq.LINGER, 0)
        # A DEALER that reconnects by itself would deliver stale messages first.
        sock.setsockopt(zmq.RECONNECT_IVL, -1)
        sock.setsockopt(zmq.IPV6, 1)
        # What is sent is bounded by credit and window, in rows and bytes; a mark in messages would only block.
        sock.setsockopt(zmq.SNDHWM, 0)
        heartbeat(sock, self._heartbeat_timeout_s)
        self._monitor = sock.get_monitor_socket(_EVENTS)
        sock.connect(self._address)
        self._sock = sock
        self._poller.register(sock, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)

    def _close(self, linger_s: float = 0.0) -> None:
        if self._sock is None:
            return
        self._poller.unregister(self._sock)
        self._poller.unregister(self._monitor)
        self._sock.disable_monitor()
        if self._monitor is not None:
            self._monitor.close(linger=0)
        self._sock.close(linger=int(linger_s * 1000))
        self._sock = self._monitor = None
