"""What a socket's greeting says of it, by real sockets."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
import zmq

from genpool.protocol.greeting import mechanism_at
from genpool.protocol.keys import new_pair

HOST = "127.0.0.1"
PATIENCE_S = 15.0


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server((HOST, 0)) as listener:
        yield listener


def serve(listener: socket.socket, reply: bytes) -> int:
    """Answer one connection and hang up. Gives the port."""

    def answer() -> None:
        with suppress(OSError), listener.accept()[0] as connection:
            connection.recv(64)
            connection.sendall(reply)

    threading.Thread(target=answer, daemon=True).start()
    return listener.getsockname()[1]


@pytest.mark.parametrize("mechanism", ["NULL", "CURVE"])
def test_a_zeromq_socket(mechanism: str) -> None:
    with zmq.Context[zmq.Socket[bytes]]() as context, context.socket(zmq.ROUTER) as router:
        if mechanism == "CURVE":
            router.setsockopt(zmq.CURVE_SERVER, 1)
            router.setsockopt_string(zmq.CURVE_SECRETKEY, new_pair().secret)
        port = router.bind_to_random_port(f"tcp://{HOST}")

        assert mechanism_at(HOST, port, PATIENCE_S) == mechanism


@pytest.mark.parametrize("reply", [b"", b"HTTP/1.1 400 Bad Request\r\n" * 9, b"\xff" * 64], ids=["none", "http", "ff"])
def test_something_else(listener: socket.socket, reply: bytes) -> None:
    assert mechanism_at(HOST, serve(listener, reply), PATIENCE_S) is None


def test_a_name_of_bytes_that_are_no_text(listener: socket.socket) -> None:
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"\x80\xfe".ljust(20, b"\0") + bytes(32)

    assert mechanism_at(HOST, serve(listener, greeting), PATIENCE_S) == "\ufffd\ufffd"


def test_silence_is_waited_for_no_longer_than_allowed(listener: socket.socket) -> None:
    start = time.monotonic()

    assert mechanism_at(HOST, listener.getsockname()[1], 0.1) is None
    assert time.monotonic() - start < PATIENCE_S


def test_nobody_listens_there(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    listener.close()

    assert mechanism_at(HOST, port, PATIENCE_S) is None
    assert mechanism_at("a..b", port, PATIENCE_S) is None
