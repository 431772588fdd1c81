"""The rows that wait for one LLM, turn by turn between its clients."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .row import QUEUED, RUNNING, Row, RowSpec, RowState

if TYPE_CHECKING:
    from .peer import Client


class FairQueue:
    """First come, first served within a client; one turn each between clients.

    A withdrawn row stays as a dead entry until it is met or until dead entries outnumber the living, so that
    withdrawing costs O(1) and memory stays in proportion to what waits. Rows whose deadline has passed when their
    turn comes are put into ``expired`` instead of being taken.
    """

    def __init__(self) -> None:
        self._turns: OrderedDict[Client, deque[Row]] = OrderedDict()
        self._living = 0
        self._entries = 0
        self.expired: list[Row] = []

    def __len__(self) -> int:
        return self._living

    def push(self, row: Row, *, front: bool = False) -> None:
        """Queue ``row`` behind its client's other rows, or before them."""
        assert row.client is not None
        line = self._line_of(row.client)
        row.state = QUEUED
        line.appendleft(row) if front else line.append(row)
        self._living += 1
        self._entries += 1

    def push_new(self, client: Client, rows: list[Row]) -> None:
        """Queue rows that were just made, all of one client, behind its others."""
        self._line_of(client).extend(rows)
        self._living += len(rows)
        self._entries += len(rows)

    def withdraw(self, row: Row, state: RowState) -> None:
        """Take a waiting row out; it goes on to ``state``."""
        row.state = state
        self._living -= 1
        if self._entries > 2 * self._living + 64:
            self._compact()

    def first_rows(self) -> Iterator[Row]:
        """Of each client the row whose turn comes next: none of its others has been in the queue for longer."""
        for client, line in list(self._turns.items()):
            self._bury(line)
            if line:
                yield line[0]
            else:
                del self._turns[client]

    def take(self, count: int, now: float) -> list[Row]:
        """Up to ``count`` rows, one from each client in turn."""
        taken: list[Row] = []
        while len(taken) < count and (client := self._next_client()) is not None:
            alone = len(self._turns) == 1
            taken += self._take_from(client, count - len(taken) if alone else 1, now)
        return taken

    def take_run(self, count: int, now: float, most_bytes: int) -> list[Row]:
        """Up to ``count`` rows of the client whose turn it is that may share an engine call, and a message."""
        client = self._next_client()
        return [] if client is None else self._take_from(client, count, now, most_bytes)

    def _next_client(self) -> Client | None:
        """The first client in turn that has a living row and reads its answers."""
        for _ in range(len(self._turns)):
            client, line = next(iter(self._turns.items()))
            self._bury(line)
            if not line:
                del self._turns[client]
            elif client.is_stalled:
                self._turns.move_to_end(client)
            else:
                return client
        return None

    def _bury(self, line: deque[Row]) -> None:
        """Take out the dead entries at the head of a line."""
        while line and line[0].state is not QUEUED:
            line.popleft()
            self._entries -= 1

    def _line_of(self, client: Client) -> deque[Row]:
        line = self._turns.get(client)
        if line is None:
            line = self._turns[client] = deque()
        return line

    def _take_from(self, client: Client, count: int, now: float, most_bytes: int | None = None) -> list[Row]:
        """The client's next rows; with ``most_bytes``, only such as fit together, and no more than that in all."""
        line = self._turns[client]
        before = len(line)
        taken: list[Row] = []
        expired = size = 0
        spec: RowSpec | None = None  # the last row's: rows of one run share it, so that it is judged once
        is_over = fits = False
        while line and len(taken) < count:
            row = line[0]
            if row.state is QUEUED:
                if row.spec is not spec:
                    spec = row.spec
                    is_over = spec.is_over(now)
                    fits = most_bytes is None or not taken or spec.fits_with(taken[0].spec)
                if is_over:
                    self.expired.append(row)
                    expired += 1
                else:
                    size += len(row.payload or b"")
                    if taken and most_bytes is not None and (size > most_bytes or not fits):
                        break
                    taken.append(row)
                row.state = RUNNING
            line.popleft()
        self._living -= len(taken) + expired
        self._entries -= before - len(line)
        if line:
            self._turns.move_to_end(client)
        else:
            del self._turns[client]
        return taken

    def _compact(self) -> None:
        for client, line in list(self._turns.items()):
            # A row that was withdrawn and came back has two entries; the first is its place.
            living = deque(dict.fromkeys(row for row in line if row.state is QUEUED))
            if living:
                self._turns[client] = living
            else:
                del self._turns[client]
        self._entries = self._living
