"""Who may not stay: connections that are no peer's for too long, and those of peers that are shown out.

libzmq accepts a connection and tells of it by its descriptor; whose it is shows only when a message comes. It gives a
number to another connection as soon as the last one is closed, but each socket has an inode of its own, by which one is
known again. There is no call to end a connection of a ROUTER, so that of the system's is made: libzmq then sees the end
of it and closes it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Container
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile

from ..protocol.descriptor import borrowed

# How long the word why may take to leave, before a peer that is shown out finds its connection ended.
_LAST_WORD_S = 0.5

# What it has sent until then may be read for so long, and is not looked at.
_LEFTOVERS_S = 10.0

# When descriptors run short, a connection that says nothing for so long is ended.
_SHORT_PATIENCE_S = 1.0


@dataclass(frozen=True, slots=True)
class _Visitor:
    """A connection: which socket it is, and when it was accepted, or was last seen to be a peer's."""

    inode: int
    since: float


@dataclass(slots=True)
class _Leaving:
    """A peer that is shown out: a handle of its connection, until that is ended, and when."""

    handle: socket.socket | None
    ends_at: float


class Visitors:
    """See the module. ``patience_s`` is how long a connection may be no peer's."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._visitors: dict[int, _Visitor] = {}  # by descriptor, the one that is due first is first
        self._leaving: dict[bytes, _Leaving] = {}  # by routing id, in this order

    def __len__(self) -> int:
        """How many connections there are, those of peers among them."""
        return len(self._visitors)

    def __contains__(self, peer: bytes) -> bool:
        """Whether this peer is shown out, so that nothing of it is to be read."""
        return peer in self._leaving

    def accepted(self, descriptor: int, now: float) -> None:
        """There is a new connection of libzmq's."""
        self._visitors.pop(descriptor, None)
        with suppress(OSError):  # closed again
            self._visitors[descriptor] = _Visitor(os.fstat(descriptor).st_ino, now)

    def closed(self, descriptor: int) -> int | None:
        """This connection was closed by libzmq. Returns its inode, if that is known."""
        visitor = self._visitors.pop(descriptor, None)
        return None if visitor is None else visitor.inode

    def show_out(self, peer: bytes, handle: socket.socket | None, now: float) -> None:
        """Let a peer hear why, and end its connection; ``handle`` is given away."""
        if peer in self._leaving:
            if handle is not None:
                handle.close()
        else:
            self._leaving[peer] = _Leaving(handle, now + _LAST_WORD_S)

    def tick(self, now: float, peers: Container[int | None], *, is_short: bool) -> int:
        """End what is due. Returns how many connections were ended that were no peer's.

        Args:
            now: the time.
            peers: the inodes of the connections of peers.
            is_short: whether descriptors run short.
        """
        for peer in [peer for peer, one in self._leaving.items() if now >= one.ends_at]:
            self._part_with(peer, now)
        patience_s = min(_SHORT_PATIENCE_S, self._patience_s) if is_short else self._patience_s
        ended = 0
        due = takewhile(lambda item: now >= item[1].since + patience_s, self._visitors.items())
        for descriptor, visitor in list(due):
            del self._visitors[descriptor]
            if visitor.inode in peers:
                self._visitors[descriptor] = _Visitor(visitor.inode, now)
            else:
                ended += _end(descriptor, visitor.inode)
        return ended

    def close(self) -> None:
        """Give back all handles."""
        for leaving in self._leaving.values():
            if leaving.handle is not None:
                leaving.handle.close()
        self._leaving.clear()

    def _part_with(self, peer: bytes, now: float) -> None:
        leaving = self._leaving[peer]
        if now >= leaving.ends_at + _LEFTOVERS_S:
            del self._leaving[peer]
        if leaving.handle is not None:
            with leaving.handle, suppress(OSError):  # it has gone by itself
                leaving.handle.shutdown(socket.SHUT_RDWR)
            leaving.handle = None


def _end(descriptor: int, inode: int) -> bool:
    """End the connection behind libzmq's descriptor, if it is still the one that is meant.

    On libzmq's own descriptor, for where they have run out there is none left for a duplicate.
    """
    try:
        if os.fstat(descriptor).st_ino != inode:
            return False
        with borrowed(descriptor) as connection:
            connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return False
    return True
