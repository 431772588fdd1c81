"""msgpack packers that are used again: to make one takes longer than to pack a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgpack

# A packer keeps the memory of the largest value that it has packed, so one that has packed more than this is let go.
# Beyond it the time that making another takes is lost in the packing.
_KEPT_BYTES = 256 * 1024


class Packer:
    """Packs with ``options``, among which are none that call Python code. Any thread may use it.

    A msgpack.Packer serves one thread at a time, so each is taken out of ``_spare`` while it packs.
    """

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._spare: list[msgpack.Packer] = []

    def pack(self, value: Any) -> bytes:
        """``value`` as msgpack. Raises what msgpack raises: TypeError, ValueError or OverflowError."""
        packer = self._take()
        packed = packer.pack(value)
        if len(packed) <= _KEPT_BYTES:
            self._spare.append(packer)
        return packed

    def pack_each(self, values: Sequence[Any]) -> list[bytes]:
        """``pack`` for each of ``values``, with one packer for all."""
        packer = self._take()
        packed: list[bytes] = list(map(packer.pack, values))
        if max(map(len, packed), default=0) <= _KEPT_BYTES:
            self._spare.append(packer)
        return packed

    def _take(self) -> msgpack.Packer:
        try:
            return self._spare.pop()
        except IndexError:  # rather than a look before: another thread may take the last one
            return msgpack.Packer(**self._options)
