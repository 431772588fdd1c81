"""Frames of ZeroMQ, and large payloads that stay in them: copying a megabyte takes as long as sending it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import zmq

Frame = bytes | memoryview

# From this size on a copy costs more than to keep a frame of libzmq's, and to send it on as one.
LARGE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Frames:
    """A large payload as ``frames`` that follow each other. Passed on as it is, and joined by ``bytes()``."""

    frames: Sequence[Frame]

    def __len__(self) -> int:
        return sum(map(len, self.frames))

    def __bytes__(self) -> bytes:
        return b"".join(self.frames)


# What a row or an answer carries: who only passes it on need not know which of them it is.
Payload = bytes | Frames


# As plain numbers: to combine pyzmq's flags takes longer than to send a frame.
_NOW = int(zmq.NOBLOCK)
_NOW_AND_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
_READABLE = int(zmq.POLLIN)


def send(sock: zmq.Socket[bytes], frames: Sequence[Frame], *, copy: bool = True) -> None:
    """Send a message without waiting. Raises as ``Socket.send_multipart``, which takes twice as long."""
    for frame in frames[:-1]:
        sock.send(frame, _NOW_AND_MORE, copy)
    sock.send(frames[-1], _NOW, copy)


def receive(sock: zmq.Socket[bytes], flags: int = 0) -> list[Frame]:
    """The frames of the next message, the large ones behind the first not copied. Raises as ``Socket.recv``."""
    frame = sock.recv(flags, copy=False)
    frames: list[Frame] = [frame.bytes]
    while frame.more:  # which is told without a question of its own, unlike RCVMORE
        frame = sock.recv(flags, copy=False)
        # A zmq.Frame is a buffer with a length as a memoryview is, and unlike one it can be sent on without a copy.
        frames.append(cast(memoryview, frame) if len(frame) >= LARGE_BYTES else frame.bytes)
    return frames


def is_readable(sock: zmq.Socket[bytes]) -> bool:
    """Whether a message is there."""
    return bool(cast(int, sock.getsockopt(zmq.EVENTS)) & _READABLE)
