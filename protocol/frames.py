"""Frames of a message, and large payloads that stay in them: copying a megabyte takes as long as sending it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


def in_one_piece(payload: Payload) -> Frame:
    """The bytes of ``payload``, copied only where they lie in several frames."""
    if isinstance(payload, bytes):
        return payload
    return payload.frames[0] if len(payload.frames) == 1 else bytes(payload)
