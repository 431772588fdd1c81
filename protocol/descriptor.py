"""A connection of libzmq's by its descriptor: for what libzmq does not tell, and the system does.

libzmq may have closed it by then, and the number may be another one's, or nobody's.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress

# Where tcpi_bytes_received stands in Linux's struct tcp_info, since Linux 4.1. That only ever grows at its end.
_BYTES_RECEIVED = struct.Struct("=128xQ")

# Less than this may be libzmq's heartbeats, which come from a process whose own loop has stopped, too.
_LEAST_BYTES = 4096


@contextmanager
def borrowed(descriptor: int) -> Generator[socket.socket]:
    """The socket behind ``descriptor``, which stays libzmq's. Raises OSError where there is none."""
    connection = socket.socket(fileno=descriptor)
    try:
        yield connection
    finally:
        connection.detach()


def received_bytes(descriptor: int) -> int:
    """How many bytes have come on a TCP connection. Raises OSError where the system does not count them."""
    if sys.platform != "linux":
        raise OSError("only Linux counts them")
    with borrowed(descriptor) as connection:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED.size)
    if len(info) < _BYTES_RECEIVED.size:
        raise OSError("this kernel does not count them")
    return int(_BYTES_RECEIVED.unpack(info)[0])


class Inflow:
    """Tells a message that takes long to arrive from silence; libzmq says nothing before all of it is there."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._seen: int | None = None  # how many bytes had come; None when a message has come since

    def message_came(self) -> None:
        """A whole message is there: what comes from now on is of another one."""
        self._seen = None

    def has_grown(self) -> bool:
        """Whether a part of a message has come since the last message, or since this was last true."""
        with suppress(OSError):
            received = received_bytes(self._descriptor)
            if self._seen is None:
                self._seen = received
            elif received - self._seen >= _LEAST_BYTES:
                self._seen = received
                return True
        return False
