"""Rows that are over here and that the broker still counts, until it is told."""

from __future__ import annotations

from collections.abc import Sequence

from ..protocol.frames import Payload

# Beyond so many rows, or bytes that are kept of them, the broker is told at once: a larger value leaves more memory
# with what nobody wants until the next tick, a smaller one wakes the broker more often for rows that come one by one.
_MOST_ROWS = 64
_MOST_BYTES = 256 * 1024


class Releases:
    """What the next Release tells.

    That a row was answered can wait for the next tick: to wake the broker for it takes a tenth of all that a row costs
    that is alone.

    Attributes:
        ids: of the rows.
        size: how many bytes the rows have.
        are_due: whether to tell now.
    """

    def __init__(self) -> None:
        self.ids: list[bytes] = []
        self.size = 0
        self.are_due = False
        self._kept = 0  # bytes of rows at the broker and of answers at its workers

    def answered(self, ids: Sequence[bytes], size: int, payloads: Sequence[Payload]) -> None:
        """Rows of ``size`` bytes in all have come to these answers."""
        self.ids += ids
        self.size += size
        if not self.are_due:
            self._kept += size + sum(map(len, payloads))
            self.are_due = len(self.ids) >= _MOST_ROWS or self._kept > _MOST_BYTES

    def unwanted(self, row_id: bytes, size: int) -> None:
        """Nobody wants a row of ``size`` bytes: it may run, and is to be stopped now."""
        self.ids.append(row_id)
        self.size += size
        self.are_due = True

    def hasten(self) -> None:
        """Tell now."""
        self.are_due = True

    def take(self) -> list[bytes]:
        """The ids, which are told now, or need not be."""
        ids = self.ids
        self.ids, self.size, self.are_due, self._kept = [], 0, False, 0
        return ids
