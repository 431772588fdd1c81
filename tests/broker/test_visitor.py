"""Connections that may not stay, with real sockets in the place of libzmq's."""

from __future__ import annotations

import os
import socket
from collections.abc import Container, Iterator
from contextlib import ExitStack

import pytest

from genpool.broker.visitor import Visitors

PATIENCE_S = 10.0


class House:
    """Sockets that libzmq would have, and their peers' ends."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.visitors = Visitors(PATIENCE_S)
        self.peers: set[int] = set()

    def connect(self) -> tuple[socket.socket, socket.socket]:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        return self._stack.enter_context(ours), self._stack.enter_context(theirs)

    def accept(self, now: float) -> tuple[socket.socket, socket.socket]:
        ours, theirs = self.connect()
        self.visitors.accepted(ours.fileno(), now)
        return ours, theirs

    def tick(self, now: float, *, is_short: bool = False) -> int:
        peers: Container[int] = self.peers
        return self.visitors.tick(now, peers, is_short=is_short)


@pytest.fixture
def house() -> Iterator[House]:
    with ExitStack() as stack:
        house = House(stack)
        yield house
        house.visitors.close()


def is_ended(theirs: socket.socket) -> bool:
    try:
        return theirs.recv(1) == b""
    except BlockingIOError:
        return False


def test_a_connection_that_is_no_peers_is_ended_when_its_time_is_over(house: House) -> None:
    _, early = house.accept(0.0)
    _, late = house.accept(5.0)
    assert house.tick(9.9) == 0
    assert not is_ended(early)
    assert house.tick(10.0) == 1
    assert is_ended(early)
    assert not is_ended(late)
    assert house.tick(15.0) == 1
    assert is_ended(late)
    assert len(house.visitors) == 0


def test_a_peers_connection_stays_until_it_has_been_none_for_a_while(house: House) -> None:
    ours, theirs = house.accept(0.0)
    inode = os.fstat(ours.fileno()).st_ino
    house.peers.add(inode)
    for now in (10.0, 20.0, 30.0):
        assert house.tick(now) == 0
    house.peers.clear()
    assert house.tick(39.9) == 0
    assert not is_ended(theirs)
    assert house.tick(40.0) == 1
    assert is_ended(theirs)


def test_where_descriptors_run_short_silence_is_borne_for_a_second_only(house: House) -> None:
    ours, peer = house.accept(0.0)
    house.peers.add(os.fstat(ours.fileno()).st_ino)
    _, silent = house.accept(0.5)
    _, new = house.accept(1.0)
    assert house.tick(1.5, is_short=True) == 1
    assert [is_ended(one) for one in (peer, silent, new)] == [False, True, False]


def test_a_descriptor_that_was_given_to_another_connection_is_not_meant(house: House) -> None:
    ours, _ = house.accept(0.0)
    newer, theirs = house.connect()
    os.dup2(newer.fileno(), ours.fileno())
    assert house.tick(10.0) == 0
    assert not is_ended(theirs)


def test_a_descriptor_that_is_accepted_again_begins_anew(house: House) -> None:
    ours, _ = house.accept(0.0)
    newer, theirs = house.connect()
    os.dup2(newer.fileno(), ours.fileno())
    house.visitors.accepted(ours.fileno(), 8.0)
    assert house.tick(10.0) == 0
    assert not is_ended(theirs)
    assert house.tick(18.0) == 1
    assert is_ended(theirs)


def test_what_is_closed_already_and_what_is_no_socket_is_passed_over(house: House) -> None:
    ours, _ = house.accept(0.0)
    house.visitors.closed(ours.fileno())
    gone, _ = house.accept(0.0)
    read, write = os.pipe()
    house.visitors.accepted(read, 0.0)
    house.visitors.accepted(1 << 20, 0.0)
    gone.close()
    assert house.tick(10.0) == 0
    os.close(read)
    os.close(write)


def test_who_is_shown_out_may_hear_why_and_is_not_listened_to(house: House) -> None:
    ours, theirs = house.connect()
    house.visitors.show_out(b"peer", ours.dup(), 0.0)
    house.visitors.show_out(b"peer", ours.dup(), 0.1)
    house.visitors.show_out(b"without a handle", None, 0.0)
    house.tick(0.4)
    ours.send(b"why")
    assert theirs.recv(3) == b"why"
    assert not is_ended(theirs)
    house.tick(0.5)
    assert is_ended(theirs)
    house.tick(10.4)
    assert b"peer" in house.visitors
    assert b"another" not in house.visitors
    house.tick(10.5)
    assert b"peer" not in house.visitors
    assert b"without a handle" not in house.visitors
