"""Rows, what they have in common, and their executions: plain state without behaviour."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from ..protocol.frames import Payload

if TYPE_CHECKING:
    from .peer import Client, Worker


class RowState(Enum):
    """Where a row is."""

    QUEUED = auto()  # in its LLM's queue
    SETTLING = auto()  # kept back until the workers have said what they hold
    SUSPECTED = auto()  # among its LLM's suspects
    RUNNING = auto()  # at least one execution is under way
    ANSWERED = auto()  # sent to its client, which has not released it yet
    MISSING = auto()  # awaited by its client, held by nobody: it was asked for
    GONE = auto()  # released, expired or failed: nothing refers to it but perhaps a queue's dead entry


# The states as plain names: up to CPython 3.11 each ``RowState.QUEUED`` calls Python code, which takes 0.1 µs, and a
# row is asked for its state a dozen times.
QUEUED, SETTLING, SUSPECTED, RUNNING, ANSWERED, MISSING, GONE = RowState


# Never changed, but not frozen: that would take 0.6 µs more of a run, which may be a single row.
@dataclass(slots=True)
class RowSpec:
    """What the rows of one submitted run share.

    ``deadline`` and ``submitted``, when they came, are on the broker's clock; ``hedge`` and ``trace`` are as in
    SubmitRun.
    """

    llm: str
    kind: str
    num_generations: int
    options: bytes
    deadline: float | None
    hedge: float = 0.0
    submitted: float = 0.0
    trace: str = ""

    def fits_with(self, other: RowSpec) -> bool:
        """Whether rows of both may share an engine call."""
        return self is other or (
            self.kind == other.kind
            and self.num_generations == other.num_generations
            and self.options == other.options
            and self.trace == other.trace
        )

    def is_over(self, now: float) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and now >= self.deadline


@dataclass(frozen=True, slots=True)
class Record:
    """What few rows have: something is held against them, or was decided about them.

    ``charged`` counts the executions it was blamed for. ``suspect_group`` is how many suspects it may be tried with
    next, or 0 when it is not suspected. ``raised`` has the executions that count in ``charged`` because the engine
    raised. ``verdict`` is an answer (outcome, payload) that the broker gave by itself.
    ``resumed`` when it was submitted again to a broker that had just started. ``requeued`` when it was handed out and
    that came to nothing, ``failed`` when its last answer, by a worker, was that it fails.
    """

    charged: int = 0
    suspect_group: int = 0
    raised: tuple[int, ...] = ()
    verdict: tuple[int, Payload] | None = None
    resumed: bool = False
    requeued: bool = False
    failed: bool = False


CLEAN = Record()
RESUMED = Record(resumed=True)
REQUEUED = Record(requeued=True)


@dataclass(slots=True, eq=False)
class Row:
    """One row. ``payload`` is None for a row known only from the worker that holds it, after a broker's restart.

    ``unread_bytes`` is the size of its answer while its client has been sent it and has not released it.

    A million may wait, so it is kept small: nearly all share one ``record``, and ``executions`` is a tuple, for the
    empty one takes no memory.
    """

    id: bytes
    spec: RowSpec
    client: Client | None
    payload: Payload | None
    state: RowState = QUEUED
    executions: tuple[Execution, ...] = ()
    unread_bytes: int = 0
    record: Record = CLEAN

    @property
    def size(self) -> int:
        """How many bytes its payload and its options have: rows of one run share these, and may be a single one."""
        return len(self.payload or b"") + len(self.spec.options)


@dataclass(slots=True, eq=False)
class Execution:
    """One hand-out of a row to a worker, from Assign until Settle. ``since`` is when it was handed out, or claimed."""

    id: int
    row: Row
    worker: Worker
    since: float
    finished: bool = False
