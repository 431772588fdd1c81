"""What a second handle of a connection tells of its end."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

import pytest

from genpool.broker.connections import Connections

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture(params=["tcp", "ipc"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """libzmq's end at the broker, and the peer's."""
    if request.param == "ipc":
        ours, theirs = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            theirs = socket.create_connection(listener.getsockname())
            ours, _ = listener.accept()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def connections() -> Iterator[Connections]:
    connections = Connections()
    yield connections
    connections.close()


def test_a_peer_that_closed_its_end_was_not_silent(pair: Pair, connections: Connections) -> None:
    ours, theirs = pair
    connections.note(b"peer", ours.fileno())
    theirs.close()
    ours.close()
    assert b"peer" in connections
    assert not connections.was_silent(b"peer")
    assert b"peer" not in connections


def test_a_peer_whose_connection_was_reset_was_not_silent(connections: Connections) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    connections.note(b"peer", ours.fileno())
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()
    ours.close()
    assert not connections.was_silent(b"peer")


@pytest.mark.parametrize("unread", [b"", b"not read any more"])
def test_a_peer_that_was_dropped_with_its_end_open_was_silent(
    pair: Pair, connections: Connections, unread: bytes
) -> None:
    ours, theirs = pair
    connections.note(b"peer", ours.fileno())
    theirs.send(unread)
    ours.close()
    assert connections.was_silent(b"peer")


def test_what_is_not_known_was_not_silent(connections: Connections) -> None:
    assert not connections.was_silent(b"peer")


def test_a_connection_that_is_gone_already_is_not_noted(connections: Connections) -> None:
    read, write = os.pipe()
    connections.note(b"no socket", read)
    os.close(read)
    os.close(write)
    connections.note(b"closed", read)
    assert b"no socket" not in connections
    assert b"closed" not in connections


def test_handles_of_peers_that_are_gone_are_given_back_so_that_they_see_the_end(
    pair: Pair, connections: Connections
) -> None:
    ours, theirs = pair
    connections.note(b"gone", ours.fileno())
    connections.note(b"here", ours.fileno())
    connections.keep_only([b"here"])
    assert b"gone" not in connections
    assert b"here" in connections
    ours.close()
    connections.close()
    theirs.settimeout(10)
    assert theirs.recv(1) == b""
