"""Why a connection broke: libzmq says that it did, but not whether the peer has closed it or fell silent."""

from __future__ import annotations

import os
import socket
from collections.abc import Container
from contextlib import suppress


class Connections:
    """A second handle of each peer's connection, kept beside libzmq's own until the peer is gone.

    The kernel closes the connections of a process that ends, which then shows on the handle. A peer that was dropped
    because nothing came from it (its host froze, or the network between was cut) has not closed anything.
    """

    def __init__(self) -> None:
        self._handles: dict[bytes, socket.socket] = {}
        self._peers: dict[int, bytes] = {}  # by the inode of the connection's socket

    def __contains__(self, peer: bytes) -> bool:
        return peer in self._handles

    def __len__(self) -> int:
        return len(self._handles)

    @property
    def inodes(self) -> Container[int | None]:
        """What tells the connections from all others that there are."""
        return self._peers

    def note(self, peer: bytes, descriptor: int) -> None:
        """A peer has come; ``descriptor`` is libzmq's, which may be closed by now."""
        with suppress(OSError):
            handle = os.dup(descriptor)
            try:
                self._handles[peer] = socket.socket(fileno=handle)
                self._peers[os.fstat(handle).st_ino] = peer
            except OSError:
                os.close(handle)
                raise

    def take(self, peer: bytes) -> socket.socket | None:
        """The peer's handle, if there is one, as the caller's own from now on."""
        handle = self._handles.pop(peer, None)
        if handle is not None:
            inode = os.fstat(handle.fileno()).st_ino
            if self._peers.get(inode) == peer:
                del self._peers[inode]
        return handle

    def was_silent(self, peer: bytes) -> bool:
        """Whether a peer whose connection broke has left its own end open. The handle is given back."""
        handle = self.take(peer)
        if handle is None:
            return False
        with handle:
            try:
                return bool(handle.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
            except BlockingIOError:
                return True
            except OSError:
                return False

    def keep_only(self, peers: Container[bytes]) -> None:
        """Give back the handles of all others: while one is open, its peer does not see that libzmq has closed."""
        for peer in [peer for peer in self._handles if peer not in peers]:
            if (handle := self.take(peer)) is not None:
                handle.close()

    def close(self) -> None:
        """Give back all handles."""
        self.keep_only(())
