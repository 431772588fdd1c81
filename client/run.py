"""Rows of one call that travel together: a long list is few objects, for as long as nothing sets one row apart."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from ..protocol.frames import Payload
from ..protocol.limits import ROW_ID_BYTES
from ..protocol.messages import Outcome
from .row import Ending, Owner, Row, RowSpec

log = logging.getLogger("genpool.client")

# The last byte of a row's id is its number in the run.
MOST_ROWS = 256
_NUMBERS = [bytes((number,)) for number in range(MOST_ROWS)]

_DONE: int = Outcome.DONE


class Run:
    """Up to MOST_ROWS rows of one ``spec``, for the inputs from ``start`` on: ``payloads`` are what they carry.

    It is kept as one by the client's machine, which counts in ``left`` how many have not ended. What happens to one
    row alone (it fails, is missed by the broker, or wanted no more) makes Rows of all that are left: see ``split``.

    ``key`` begins the ids of its rows, and those of no others. ``size`` and ``longest`` are bytes, of all of its rows
    and of one. ``rows`` are what it was split into. The others are as in Row, ``place`` that of all its rows.
    """

    __slots__ = (
        "_has_ended",
        "ids",
        "key",
        "left",
        "longest",
        "over",
        "owner",
        "payloads",
        "place",
        "rows",
        "since",
        "size",
        "spec",
        "start",
    )

    def __init__(self, spec: RowSpec, owner: Owner, start: int, payloads: Sequence[bytes], place: int = 0) -> None:
        self.spec = spec
        self.owner = owner
        self.start = start
        self.payloads = payloads
        self.place = place
        self.key = os.urandom(ROW_ID_BYTES - 1)
        self.ids = [self.key + number for number in _NUMBERS[: len(payloads)]]
        sizes = list(map(len, payloads))
        self.size, self.longest = sum(sizes), max(sizes)
        self.left = len(payloads)
        self.since = 0.0
        self.over = False
        self.rows: list[Row] | None = None
        self._has_ended = bytearray(len(payloads))

    def __len__(self) -> int:
        return len(self.ids)

    @staticmethod
    def key_of(row_id: bytes) -> bytes:
        """The key of the run that a row with this id is of, if it is of one."""
        return row_id[:-1]

    def answered(self, ids: Sequence[bytes], outcomes: Sequence[int], at: int) -> tuple[int, int]:
        """Which rows ``ids`` tells of from ``at`` on: the number of the first, and how many follow each other.

        None, where one of them has not just come to outputs.
        """
        first = ids[at][-1]
        most = min(len(self.ids) - first, len(ids) - at)
        if most > 0 and ids[at : at + most] != self.ids[first : first + most]:
            pairs = zip(ids[at : at + most], self.ids[first : first + most], strict=True)
            most = next(count for count, (one, other) in enumerate(pairs) if one != other)
        if most < 1 or outcomes[at : at + most].count(_DONE) < most or any(self._has_ended[first : first + most]):
            return first, 0
        return first, most

    def end(self, first: int, count: int) -> int:
        """So many rows are over. Returns how many bytes they have."""
        self._has_ended[first : first + count] = b"\1" * count
        self.left -= count
        return sum(map(len, self.payloads[first : first + count]))

    def split(self) -> list[Row]:
        """Make Rows of those that are not over: each goes its own way from now on."""
        self.rows = [self.row(number) for number, has_ended in enumerate(self._has_ended) if not has_ended]
        return self.rows

    def ended(self, first: int, payloads: Sequence[Payload]) -> list[Row]:
        """The rows from ``first`` on, which are over with ``payloads``, one by one."""
        rows = [self.row(number) for number in range(first, first + len(payloads))]
        for row, payload in zip(rows, payloads, strict=True):
            row.over, row.ending = True, Ending(_DONE, 1, payload)
        return rows

    def row(self, number: int) -> Row:
        """One of its rows, by itself."""
        row = Row(self.ids[number], self.spec, self.payloads[number], self.owner, self.start + number, self.place)
        row.since, row.taken, row.over = self.since, True, self.over
        return row


def tell_run(run: Run, first: int, payloads: Sequence[Payload]) -> None:
    """Tell the owner of a run that its rows from ``first`` on are over, with ``payloads``."""
    try:
        run.owner.run_ended(run, first, payloads)
    # As in row.tell.
    except BaseException:
        log.exception("a callback raised")
