"""The end of ZAP (ZeroMQ's RFC 27) that says which keys may finish a handshake: asked by libzmq for each connection."""

from __future__ import annotations

import zmq
from zmq.utils import z85

from .access import Access

DOMAIN = "genpool"
_ENDPOINT = "inproc://zeromq.zap.01"


class Doorman:
    """Answers libzmq by ``access``, which may be replaced at any time. Its ``socket`` is to be polled."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], access: Access) -> None:
        """To be made before the broker's socket is bound: without it, libzmq lets every key in."""
        self.access = access
        self.socket = context.socket(zmq.REP)
        self.socket.bind(_ENDPOINT)

    def answer(self) -> None:
        """Answer the question that has come. The key goes on as the connection's user id."""
        version, request, *_, mechanism, key = [*self.socket.recv_multipart(), b""][:7]
        public = z85.encode(key).decode() if mechanism == b"CURVE" and len(key) == 32 else ""
        is_allowed = public in self.access.permissions
        status = [b"200", b"welcome"] if is_allowed else [b"400", b"this key is not allowed"]
        self.socket.send_multipart([version, request, *status, public.encode(), b""])

    def close(self) -> None:
        """Give the socket back."""
        self.socket.close(linger=0)
