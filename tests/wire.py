"""The ends of a real connection, in a test's own hands: a peer of a broker, and a broker to a peer."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

import zmq
from fleet import PATIENCE_S

from genpool.protocol.codec import decode, encode
from genpool.protocol.keys import PeerKeys
from genpool.protocol.limits import Limits
from genpool.protocol.messages import Hello, Message, Role, Welcome

T = TypeVar("T")
FRAME_BYTES = 1 << 20


class _End:
    """A socket whose receives fail rather than hang."""

    def __init__(self, kind: int) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self._context.socket(kind)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVTIMEO, int(PATIENCE_S * 1000))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()
        self._context.term()


class Peer(_End):
    """A DEALER at the broker at ``address`` that says only what it is told to.

    ``mark`` is how many frames may wait for it here; more stay on their way. ``keys`` are its own, and ``routing_id``
    is one that it sets, as nobody should.
    """

    def __init__(
        self,
        address: str,
        hello: Hello | None = None,
        *,
        mark: int = 1000,
        keys: PeerKeys | None = None,
        routing_id: bytes = b"",
    ) -> None:
        super().__init__(zmq.DEALER)
        if keys is not None:
            keys.secure(self.socket)
        if routing_id:
            self.socket.setsockopt(zmq.ROUTING_ID, routing_id)
        # Before it connects: libzmq may stall on a mark that is lowered later.
        self.socket.setsockopt(zmq.RCVHWM, mark)
        self.socket.connect(address)
        if hello is not None:
            self.send(hello)
            self.wait_for(Welcome)

    def send(self, *messages: Message) -> None:
        for message in messages:
            self.socket.send_multipart(encode(message, FRAME_BYTES))

    def send_frames(self, *frames: bytes) -> None:
        self.socket.send_multipart(frames)

    def receive(self) -> Message:
        return decode(self.socket.recv_multipart())

    def wait_for(self, kind: type[T], condition: Callable[[T], object] = lambda _: True) -> T:
        """The next message of this kind for which ``condition`` holds; what comes before it is dropped."""
        while True:
            message = self.receive()
            if isinstance(message, kind) and condition(message):
                return message


class HandBroker(_End):
    """A ROUTER for one peer at a time, that says only what it is told to."""

    def __init__(self, address: str = "tcp://127.0.0.1:*") -> None:
        super().__init__(zmq.ROUTER)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.socket.bind(address)
        self.address = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.peer = b""
        self.epoch = bytes(16)

    def receive(self) -> Message:
        self.peer, *frames = self.socket.recv_multipart()
        return decode(frames)

    def wait_for(self, kind: type[T], condition: Callable[[T], object] = lambda _: True) -> T:
        """The next message of this kind for which ``condition`` holds; what comes before it is dropped."""
        while True:
            message = self.receive()
            if isinstance(message, kind) and condition(message):
                return message

    def send(self, *messages: Message) -> None:
        """To the peer that was heard last."""
        for message in messages:
            self.socket.send_multipart([self.peer, *encode(message, FRAME_BYTES)])

    def welcome(self, limits: Limits | None = None) -> Hello:
        """Take a peer in; returns its hello."""
        hello = self.wait_for(Hello)
        self.send(Welcome(self.epoch, 1.0, limits or Limits()))
        return hello


def client_hello(name: str = "client") -> Hello:
    return Hello(role=Role.CLIENT, instance=name.encode(), host=name, pid=1)


def worker_hello(name: str = "worker", **said: Any) -> Hello:
    hello = Hello(role=Role.WORKER, instance=name.encode(), host=name, pid=2, llm="llm", state="ready")
    for key, value in said.items():
        setattr(hello, key, value)
    return hello
