"""msgpack packers that are used again: to make one takes longer than to pack a row."""

from __future__ import annotations

import threading
from typing import Any

import msgpack

# A packer keeps the memory of the largest value that it has packed, so one that has packed more than this is let go.
# Beyond it the time that making another takes is lost in the packing.
_KEPT_BYTES = 256 * 1024


class Packer(threading.local):
    """A ``msgpack.Packer`` for each thread, made with ``options``; it has none that call Python code."""

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._packer = msgpack.Packer(**options)

    def pack(self, value: Any) -> bytes:
        """``value`` as msgpack. Raises what msgpack raises: TypeError, ValueError or OverflowError."""
        packed = self._packer.pack(value)
        if len(packed) > _KEPT_BYTES:
            self._packer = msgpack.Packer(**self._options)
        return packed
