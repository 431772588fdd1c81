"""Many peers of one broker in one thread: a real state machine and a socket for each.

It does what `protocol.dealer` does for one of them, but for watching how connections fail. A poller asks every socket
at every turn, and would cost more with each that is idle; here their descriptors wake the loop.
"""

from __future__ import annotations

import heapq
import logging
import resource
import select
import selectors
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

import zmq

from genpool.protocol.codec import decode, encode
from genpool.protocol.dealer import heartbeat
from genpool.protocol.session import Close, Log, Open, Send, Session

HEARTBEAT_TIMEOUT_S = 10.0

# Pings go out twice a second; with a smaller value a thousand idle machines would keep this process busy.
_TICK_S = 0.2

# The queue of a listening socket holds a hundred connections, and one that finds it full tries again after a second.
_CONNECTIONS_PER_S = 2000

_log = logging.getLogger("genpool.bench")


def unknown_effect(_: Peer, effect: Any, __: float) -> None:
    """For effects that nobody performs here."""
    raise AssertionError(f"an effect that nobody performs: {effect}")


@dataclass(eq=False)
class Peer:
    """A machine, its socket, and who performs its other effects: ``perform(peer, effect, now)``."""

    machine: Session
    perform: Callable[[Peer, Any, float], None] = unknown_effect
    sock: zmq.Socket[bytes] | None = None


class Loop:
    """Drives the machines of its peers against the broker at ``address``."""

    def __init__(self, address: str) -> None:
        self.address = address
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        self._context = zmq.Context[zmq.Socket[bytes]]()
        self._context.set(zmq.MAX_SOCKETS, self._context.get(zmq.SOCKET_LIMIT))
        self._selector = selectors.DefaultSelector()
        self._ticks: deque[tuple[float, Peer]] = deque()
        self._timers: list[tuple[float, int, Peer, Callable[[float], None]]] = []
        self._order = count()

    def add(self, peers: list[Peer]) -> None:
        """Have these connect, one soon after the other, and stay connected."""
        now = time.monotonic()
        self._ticks.extend((now + number / _CONNECTIONS_PER_S, peer) for number, peer in enumerate(peers))

    def watch(self, file: Any, function: Callable[[], None]) -> None:
        """Call ``function()`` whenever ``file`` can be read."""
        self._selector.register(file, selectors.EVENT_READ, function)

    def later(self, at: float, peer: Peer, function: Callable[[float], None]) -> None:
        """Call ``function(now)`` at a time (of time.monotonic), and then perform what ``peer`` makes of it."""
        heapq.heappush(self._timers, (at, next(self._order), peer, function))

    def run(self, is_over: Callable[[], bool]) -> None:
        """Loop until ``is_over()``; it may be run again."""
        while not is_over():
            for key, _ in self._selector.select(self._wait()):
                if isinstance(key.data, Peer):
                    self.turn(key.data)
                else:
                    key.data()
            now = time.monotonic()
            self._run_timers(now)
            while self._ticks and self._ticks[0][0] <= now:
                _, peer = self._ticks.popleft()
                self._ticks.append((now + _TICK_S, peer))
                self._perform(peer, peer.machine.tick(now), now)
                self.turn(peer)

    def turn(self, peer: Peer) -> None:
        """Read all that has come for a peer, and perform all that follows."""
        now = time.monotonic()
        # Again after each send, for a send takes in the signal that something has come, and the selector is silent.
        while self._receive(peer, now) or self._perform(peer, peer.machine.flush(now), now):
            pass

    def close(self) -> None:
        """Hang up."""
        self._context.destroy(linger=0)
        self._selector.close()

    def _wait(self) -> float:
        """Wait for what comes next, or return how long the selector shall."""
        if not self._timers:
            return self._wait_s()
        # A selector counts in milliseconds and rounds up; this does not, and a row's end would be noticed late.
        select.select([self._selector], [], [], self._wait_s())
        return 0.0

    def _wait_s(self) -> float:
        moments = [queue[0][0] for queue in (self._timers, self._ticks) if queue]
        return max(0.0, min(moments, default=time.monotonic() + _TICK_S) - time.monotonic())

    def _run_timers(self, now: float) -> None:
        due: dict[Peer, None] = {}
        while self._timers and self._timers[0][0] <= now:
            _, _, peer, function = heapq.heappop(self._timers)
            function(now)
            due[peer] = None
        for peer in due:
            self.turn(peer)

    def _receive(self, peer: Peer, now: float) -> bool:
        received = False
        # What a machine makes of a message is performed after the burst, so nothing closes the socket meanwhile.
        while peer.sock is not None and int(peer.sock.get(zmq.EVENTS)) & zmq.POLLIN:
            peer.machine.received(decode(peer.sock.recv_multipart(zmq.NOBLOCK)), now)
            received = True
        return received

    def _perform(self, peer: Peer, effects: list[object], now: float) -> bool:
        for effect in effects:
            match effect:
                case Send() if peer.sock is not None:
                    frames = encode(effect.message, peer.machine.limits.max_frame_bytes)
                    peer.sock.send_multipart(frames, zmq.NOBLOCK, copy=False)
                case Open():
                    self._open(peer)
                case Close():
                    self._close(peer, effect.linger_s)
                case Log():
                    _log.log(logging.getLevelNamesMapping()[effect.level.upper()], "%s", effect.text)
                case _:
                    peer.perform(peer, effect, now)
        return bool(effects)

    def _open(self, peer: Peer) -> None:
        self._close(peer)
        sock = peer.sock = self._context.socket(zmq.DEALER)
        sock.setsockopt(zmq.LINGER, 0)
        sock.setsockopt(zmq.SNDHWM, 0)
        heartbeat(sock, HEARTBEAT_TIMEOUT_S, is_broker=False)
        sock.connect(self.address)
        self._selector.register(sock.fileno(), selectors.EVENT_READ, peer)

    def _close(self, peer: Peer, linger_s: float = 0.0) -> None:
        if peer.sock is not None:
            self._selector.unregister(peer.sock.fileno())
            peer.sock.close(linger=int(1000 * linger_s))
            peer.sock = None
