"""What libzmq tells of a socket's connections, on the socket that ``get_monitor_socket`` returns."""

from __future__ import annotations

import struct

import zmq

# The event and a value that depends on it, as libzmq writes them; the connection's address is in a second frame.
_EVENT = struct.Struct("=hi")


def next_event(monitor: zmq.Socket[bytes]) -> tuple[int, int]:
    """The event that has come, as one of ``zmq.EVENT_…``, and its value: for most, the connection's descriptor.

    pyzmq has this in ``zmq.utils.monitor``, but importing that imports asyncio, which takes as long as all of zmq.
    """
    event, value = _EVENT.unpack(monitor.recv_multipart()[0])
    return event, value
