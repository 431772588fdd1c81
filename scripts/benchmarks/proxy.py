"""The yardstick: libzmq's own proxy in C, without any policy, that moves the same bytes one request a message.

DEALER (client, here) → ROUTER ⇄ DEALER (``zmq.proxy``, a process) → DEALER (echo workers, a process each).

And the same with texts, which both ends must pack and open, and no policy either.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from typing import Any, cast

import msgpack
import zmq

from .child import running_child

# Requests under way at once: enough that nobody waits.
_WINDOW = 800

# A ROUTER throws away what is beyond a peer's high-water mark, and counts what was read only now and then.
_NO_MARK = 0

_PATIENCE_MS = 60_000


class Proxy:
    """A client of a running proxy with echo workers behind it."""

    def __init__(self, sock: zmq.Socket[bytes], request: bytes) -> None:
        self._sock = sock
        self._request = request

    def requests_per_s(self, count: int, under_way: int = _WINDOW) -> float:
        """With up to ``under_way`` requests at once."""
        begun_at = time.perf_counter()
        sent = received = 0
        while received < count:
            while sent < count and sent - received < under_way:
                self._sock.send(self._request, copy=False)
                sent += 1
            self._sock.recv(copy=False)
            received += 1
            while cast(int, self._sock.getsockopt(zmq.EVENTS)) & zmq.POLLIN and received < sent:
                self._sock.recv(copy=False)
                received += 1
        return count / (time.perf_counter() - begun_at)

    def latencies_s(self, count: int) -> list[float]:
        """Of one request at a time."""
        times: list[float] = []
        for _ in range(count):
            begun_at = time.perf_counter()
            self._sock.send(self._request)
            self._sock.recv()
            times.append(time.perf_counter() - begun_at)
        return times


class TextProxy(Proxy):
    """A client that packs a text for each request, and opens each reply."""

    def requests_per_s(self, count: int, under_way: int = _WINDOW) -> float:
        # A loop of its own: a call for each request would slow the yardstick.
        content = {"input": self._request.decode()}
        begun_at = time.perf_counter()
        sent = received = 0
        while received < count:
            while sent < count and sent - received < under_way:
                self._sock.send(msgpack.packb(content), copy=False)
                sent += 1
            msgpack.unpackb(self._sock.recv(copy=False).buffer)
            received += 1
        return count / (time.perf_counter() - begun_at)


@contextmanager
def running_proxy(workers: int, request_bytes: int, reply_bytes: int, *, texts: bool = False) -> Generator[Proxy]:
    """A proxy and its echo workers, which open requests and pack replies where they are ``texts``."""
    context = zmq.Context[zmq.Socket[bytes]]()
    sock = context.socket(zmq.DEALER)
    sock.set_hwm(_NO_MARK)
    sock.setsockopt(zmq.LINGER, 0)
    # An error is better than a benchmark that hangs.
    sock.setsockopt(zmq.RCVTIMEO, _PATIENCE_MS)
    try:
        with ExitStack() as stack:

            def start(function: Callable[..., None], *arguments: Any) -> Any:
                return stack.enter_context(running_child(function, *arguments)).answer("a process of the proxy's")

            front, back = start(_proxy)
            for _ in range(workers):
                start(_echo_texts if texts else _echo, back, reply_bytes)
            sock.connect(front)
            proxy = (TextProxy if texts else Proxy)(sock, b"i" * request_bytes)
            proxy.requests_per_s(10 * workers)  # every worker is connected by then
            yield proxy
    finally:
        sock.close()
        context.term()


def _proxy(parent: Connection) -> None:
    context = zmq.Context[zmq.Socket[bytes]]()
    front, back = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    front.set_hwm(_NO_MARK)
    back.set_hwm(_NO_MARK)
    ports = [sock.bind_to_random_port("tcp://127.0.0.1") for sock in (front, back)]
    parent.send([f"tcp://127.0.0.1:{port}" for port in ports])
    zmq.proxy(front, back)


def _echo(parent: Connection, address: str, reply_bytes: int) -> None:
    sock = zmq.Context[zmq.Socket[bytes]]().socket(zmq.DEALER)
    sock.connect(address)
    reply = b"o" * reply_bytes
    parent.send(True)
    while True:
        client, _ = sock.recv_multipart()
        sock.send_multipart([client, reply])


def _echo_texts(parent: Connection, address: str, reply_bytes: int) -> None:
    sock = zmq.Context[zmq.Socket[bytes]]().socket(zmq.DEALER)
    sock.connect(address)
    output = {"output": "o" * reply_bytes}
    parent.send(True)
    while True:
        client, request = sock.recv_multipart(copy=False)
        msgpack.unpackb(request.buffer)
        sock.send_multipart([client, msgpack.packb(output)], copy=False)
