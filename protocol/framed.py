"""What a client and the worker process that it has started say over their own socket: contents, each with its length.

The client speaks first. The worker answers when it has loaded its LLM, READY, or could not, FAILED and the failure.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

READY = b"R"
FAILED = b"F"

LENGTH = struct.Struct("!Q")


def framed(content: bytes) -> bytes:
    """``content`` with its length before it."""
    return LENGTH.pack(len(content)) + content


def whole_contents(heard: bytearray) -> Iterator[bytes]:
    """The contents that are whole, each taken off the beginning of what was ``heard``."""
    while len(heard) >= LENGTH.size:
        (length,) = LENGTH.unpack_from(heard)
        end = LENGTH.size + length
        if len(heard) < end:
            return
        content = bytes(heard[LENGTH.size : end])
        del heard[:end]
        yield content
