"""One row as the client keeps it until it is answered: the client owns the truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ..protocol.errors import GenpoolError
from ..protocol.frames import Payload


@dataclass(frozen=True, slots=True)
class RowSpec:
    """What the rows of one call for one LLM share.

    ``deadline`` is on the client's clock. ``wait_s`` is how long a first connection to the broker, and an LLM that
    nobody has announced, are waited for. ``lost_after_s`` is how long an LLM that nobody serves is waited for, None
    for as long as it takes. ``required`` are the names of options that the LLM must know. ``hedge`` is as in SubmitRun.
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


@dataclass(slots=True)
class Ending:
    """How a row ended at the broker or worker: ``payload`` holds its outputs or a Failure, by ``outcome``."""

    outcome: int
    attempts: int
    payload: Payload


class Owner(Protocol):
    """Who is told of a row's end, on the callbacks thread."""

    def ended(self, row: Row, ending: Ending | GenpoolError) -> None: ...


@dataclass(slots=True, eq=False)
class Row:
    """One row. ``place`` tells its owner which input and share of it this is.

    The rest is the machine's: whether it has ``taken`` the row, has ``submitted`` it, and is done with it (``over``).
    """

    id: bytes
    spec: RowSpec
    payload: bytes
    owner: Owner
    place: tuple[int, int]
    since: float = 0.0
    taken: bool = False
    submitted: bool = False
    over: bool = False
