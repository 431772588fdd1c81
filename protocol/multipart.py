"""Messages of several frames over a ZeroMQ socket, with fewer steps and copies than pyzmq's own functions take."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import cast

import zmq

from .frames import LARGE_BYTES, Frame

# As plain numbers: to combine pyzmq's flags takes longer than to send a frame.
_NOW = int(zmq.NOBLOCK)
_NOW_AND_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
_READABLE = int(zmq.POLLIN)


def send(sock: zmq.Socket[bytes], frames: Sequence[Frame], *, copy: bool = True) -> None:
    """Send a message without waiting. Raises as ``Socket.send_multipart``, which takes twice as long."""
    for frame in frames[:-1]:
        sock.send(frame, _NOW_AND_MORE, copy)
    sock.send(frames[-1], _NOW, copy)


def receive(sock: zmq.Socket[bytes], flags: int = 0, most: int = sys.maxsize) -> list[Frame]:
    """The frames of the next message, the large ones behind the first not copied. Raises as ``Socket.recv``.

    When it gives as many as ``most``, the rest may be still to be read: ``Socket.rcvmore`` says so.
    """
    frame = sock.recv(flags, copy=False)
    frames: list[Frame] = [frame.bytes]
    while frame.more and len(frames) < most:  # which is told without a question of its own, unlike RCVMORE
        frame = sock.recv(flags, copy=False)
        # A zmq.Frame is a buffer with a length as a memoryview is, and unlike one it can be sent on without a copy.
        frames.append(cast(memoryview, frame) if len(frame) >= LARGE_BYTES else frame.bytes)
    return frames


def is_readable(sock: zmq.Socket[bytes]) -> bool:
    """Whether a message is there."""
    return bool(cast(int, sock.getsockopt(zmq.EVENTS)) & _READABLE)
