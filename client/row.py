"""One row as the client keeps it until it is answered: the client owns the truth."""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass
from typing import Protocol

from ..protocol.errors import GenpoolError
from ..protocol.frames import Payload

log = logging.getLogger("genpool.client")


@dataclass(frozen=True, slots=True)
class RowSpec:
    """What the rows of one call for one LLM share.

    ``deadline`` is on the client's clock. ``wait_s`` is how long a first connection to the broker, and an LLM that
    nobody has announced, are waited for. ``lost_after_s`` is how long an LLM that nobody serves is waited for, None
    for as long as it takes. ``required`` are the names of options that the LLM must know. ``hedge``
    and ``trace`` are as in SubmitRun.
    """

    llm: str
    kind: str
    num_generations: int
    options: bytes
    deadline: float | None
    wait_s: float
    lost_after_s: float | None = None
    required: frozenset[str] = frozenset()
    hedge: float = 0.0
    trace: str = ""


@dataclass(slots=True)
class Ending:
    """How a row ended at the broker or worker: ``payload`` holds its outputs or a Failure, by ``outcome``."""

    outcome: int
    attempts: int
    payload: Payload


class Owner(Protocol):
    """Who is told of the end of rows, on the callbacks thread: of no more than ``ends_at_once`` in one call."""

    ends_at_once: int

    def ended(self, ends: list[RowEnd]) -> None: ...


@dataclass(slots=True, eq=False)
class Row:
    """One row. ``place`` tells its owner which input and share of it this is.

    The rest is the machine's: whether it has ``taken`` the row, has ``submitted`` it, had ``returned`` it from a broker
    before, and is done with it (``over``).
    """

    id: bytes
    spec: RowSpec
    payload: bytes
    owner: Owner
    place: tuple[int, int]
    since: float = 0.0
    taken: bool = False
    submitted: bool = False
    returned: bool = False
    over: bool = False


# A row and what has become of it.
RowEnd = tuple[Row, Ending | GenpoolError]


def tell_owners(ends: list[RowEnd]) -> None:
    """Tell each owner of the end of its rows, of many at once: that is cheaper than row by row."""
    owned: defaultdict[Owner, list[RowEnd]] = defaultdict(list)
    for end in ends:
        owned[end[0].owner].append(end)
    for owner, own in owned.items():
        for at in range(0, len(own), owner.ends_at_once):
            try:
                owner.ended(own[at : at + owner.ends_at_once])
            # User code runs there; what it raises, be it SystemExit, must not cost other rows their answers.
            except BaseException:
                log.exception("a callback raised")
