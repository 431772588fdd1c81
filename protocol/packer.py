"""msgpack packers that are used again: to make one takes longer than to pack a row."""

from __future__ import annotations

import threading
from collections.abc import Sequence
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

    def pack_each(self, values: Sequence[Any]) -> list[bytes]:
        """``pack`` for each of ``values``, which need not look for this thread's packer each time."""
        packed: list[bytes] = list(map(self._packer.pack, values))
        if max(map(len, packed), default=0) > _KEPT_BYTES:
            self._packer = msgpack.Packer(**self._options)
        return packed
