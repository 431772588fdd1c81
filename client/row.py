"""One row as the client keeps it until it is answered: the client owns the truth."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ..protocol.errors import GenpoolError
from ..protocol.frames import Frames, Payload

if TYPE_CHECKING:
    from .run import Run

log = logging.getLogger("genpool.client")


@dataclass(frozen=True, slots=True)
class RowSpec:
    """What the rows of one call for one LLM share.

    ``deadline`` is on the client's clock. ``wait_s`` is how long a first connection to the broker, and an LLM that
    nobody has announced, are waited for. ``lost_after_s`` is how long an LLM that nobody serves is waited for, None
    for as long as it takes. ``required`` are the names of options that the LLM must know. ``hedge``
    and ``trace`` are as in SubmitRun. ``since`` is since when all rows of the call wait, for some are begun later; None
    where each waits from when it was sent.
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
    since: float | None = None


@dataclass(slots=True)
class Ending:
    """How a row ended at the broker or worker: ``payload`` holds its outputs or a Failure, by ``outcome``."""

    outcome: int
    attempts: int
    payload: Payload


class Owner(Protocol):
    """Who is told of the end of rows: of no more than ``ends_at_once`` in one call.

    On the callbacks thread where that ``runs_user_code``, which may take long, or the rows are large; else in the I/O
    thread itself, for to wake another thread takes longer than to tell.
    """

    ends_at_once: int
    runs_user_code: bool

    def ended(self, rows: list[Row]) -> None: ...
    def run_ended(self, run: Run, first: int, payloads: Sequence[Payload]) -> None: ...


@dataclass(slots=True, eq=False)
class Row:
    """One row. ``index`` and ``place`` tell its owner of which input it is and which share of that.

    The rest is the machine's: whether it has ``taken`` the row, has ``submitted`` it, had ``returned`` it from a broker
    before, is done with it (``over``), and how it has ended.
    """

    id: bytes
    spec: RowSpec
    payload: bytes
    owner: Owner
    index: int
    place: int
    since: float = 0.0
    taken: bool = False
    submitted: bool = False
    returned: bool = False
    over: bool = False
    ending: Ending | GenpoolError | None = None


def by_owner(rows: list[Row]) -> Mapping[Owner, list[Row]]:
    """Each owner's rows: to tell it of many at once is cheaper than row by row."""
    owned: defaultdict[Owner, list[Row]] = defaultdict(list)
    for row in rows:
        owned[row.owner].append(row)
    return owned


def is_large(rows: list[Row]) -> bool:
    """Whether to read what these rows were answered with takes longer than to wake a thread for it."""
    ending = rows[0].ending
    return isinstance(ending, Ending) and isinstance(ending.payload, Frames)  # a large one comes alone


def tell(owner: Owner, rows: list[Row]) -> None:
    """Tell an owner of the end of its rows."""
    for at in range(0, len(rows), owner.ends_at_once):
        try:
            owner.ended(rows[at : at + owner.ends_at_once])
        # User code runs there; what it raises, be it SystemExit, must not cost other rows their answers.
        except BaseException:
            log.exception("a callback raised")
