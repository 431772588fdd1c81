"""What the system tells of a connection, on real sockets; and when that counts as traffic."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from genpool.protocol import descriptor as descriptor_module
from genpool.protocol.descriptor import Inflow, borrowed, received_bytes

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Both ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    with near, far:
        yield near, far


def send(pair: Pair, size: int) -> None:
    """From the first to the second, and wait until it is there."""
    near, far = pair
    near.sendall(b"x" * size)
    assert len(far.recv(size, socket.MSG_WAITALL)) == size


def test_the_bytes_of_a_connection_are_counted_unread_ones_too(pair: Pair) -> None:
    assert received_bytes(pair[1].fileno()) == 0
    send(pair, 10_000)
    pair[0].sendall(b"xy")
    assert pair[1].recv(2, socket.MSG_PEEK | socket.MSG_WAITALL) == b"xy"
    assert received_bytes(pair[1].fileno()) == 10_002
    assert received_bytes(pair[0].fileno()) == 0


def test_a_borrowed_socket_stays_open(pair: Pair) -> None:
    with borrowed(pair[1].fileno()) as connection:
        assert connection.getsockname() == pair[1].getsockname()
    send(pair, 1)


@pytest.mark.parametrize("kind", ["file", "closed", "not TCP"])
def test_of_what_is_no_tcp_connection_nothing_is_known(tmp_path: Path, kind: str) -> None:
    with (tmp_path / "file").open("w") as file, socket.socket(socket.AF_UNIX) as other:
        descriptors = {"file": file.fileno(), "not TCP": other.fileno(), "closed": 1 << 20}
        with pytest.raises(OSError, match=r"Errno|not supported"):
            received_bytes(descriptors[kind])
        assert not Inflow(descriptors[kind]).has_grown()
        os.fstat(file.fileno())  # it was not closed


@pytest.mark.parametrize(("platform", "info"), [("darwin", b""), ("linux", bytes(104))], ids=["macOS", "Linux 4.0"])
def test_where_the_system_does_not_count_nothing_is_known(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, platform: str, info: bytes
) -> None:
    monkeypatch.setattr(descriptor_module.sys, "platform", platform)
    monkeypatch.setattr(descriptor_module.socket.socket, "getsockopt", lambda *_: info)
    send(pair, 10_000)
    inflow = Inflow(pair[1].fileno())
    assert not inflow.has_grown()
    assert not inflow.has_grown()


def test_what_comes_behind_the_last_message_counts_once_it_is_more_than_heartbeats(pair: Pair) -> None:
    inflow = Inflow(pair[1].fileno())
    send(pair, 10_000)
    assert not inflow.has_grown()  # who looks for the first time knows of no change
    send(pair, 4095)
    assert not inflow.has_grown()
    send(pair, 1)
    assert inflow.has_grown()
    assert not inflow.has_grown()


def test_a_message_begins_the_count_anew(pair: Pair) -> None:
    inflow = Inflow(pair[1].fileno())
    assert not inflow.has_grown()
    send(pair, 10_000)
    inflow.message_came()
    assert not inflow.has_grown()
    send(pair, 4095)
    assert not inflow.has_grown()
    inflow.message_came()
    send(pair, 4096)
    assert not inflow.has_grown()
    send(pair, 4096)
    assert inflow.has_grown()
