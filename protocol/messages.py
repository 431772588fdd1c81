"""The messages of wire version 1: plain data, made and read by the state machines.

Who writes what, and the two ledgers that make reconciliation exact::

    client ──Submit/Release──▶ broker     the ledger of rows: only the client adds (Submit) and removes (Release)
    broker ──Assign/Settle───▶ worker     the ledger of executions: only the broker adds (Assign) and removes (Settle)

A ledger has one writer and messages on a connection keep their order, so when its writer tells how many entries it
holds (Ping), the reader's count must be the same at that moment, whatever else is in flight. A difference means
that something was lost: the connection is opened anew, and both ends say what they hold (Await, Hold).

Rows that the broker has no room for (Busy) are no exception: they count in its ledger until the client, which takes
them back home, removes them with a Release as it does all others. The broker keeps no more of them than their ids.

A row is one input (or rendered prompt) for one LLM. An execution is one hand-out of a row to one worker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any

from .frames import Payload
from .limits import PROTOCOL_VERSION, Limits


class Role(StrEnum):
    """Who says hello."""

    CLIENT = "client"
    WORKER = "worker"


class RowKind(StrEnum):
    """What a row's content is: arguments for the worker's own task, or a prompt that the client has rendered."""

    INPUT = "input"
    PROMPT = "prompt"


class WorkerState(StrEnum):
    """What a worker says of itself."""

    LOADING = "loading"
    READY = "ready"
    UNWELL = "unwell"
    DRAINING = "draining"


class Outcome(IntEnum):
    """How an execution, or a row, ended."""

    DONE = 0  # its outputs follow
    FAILED = 1  # final: the row's own fault, or it was tried often enough
    RAISED = 2  # the engine raised on this row alone: the row is charged and tried again
    RETURNED = 3  # handed back without blame: a drain, an unwell LLM, an execution that never started
    EXPIRED = 4  # its deadline passed while it waited at the broker


@dataclass(slots=True)
class Hello:
    """The first message of every connection; from a worker, also each later change of what it can do.

    ``version`` and ``role`` keep their names and places in every version of the protocol, so that any two versions
    can tell each other why they part. ``instance`` is random and stays the same for the life of the process: it
    tells a connection that came back from a new process.

    The rest describes a worker: the name of the LLM it serves, its state, model and task (by names), how many rows
    it takes into one engine call (``batch_size``), how many calls it runs at once, the option names that its engine
    knows, and ``credit`` (see Grant).
    """

    role: str = ""
    instance: bytes = b""
    host: str = ""
    pid: int = 0
    version: int = PROTOCOL_VERSION
    release: str = ""
    llm: str = ""
    state: str = WorkerState.LOADING
    reason: str = ""
    model_name: str = ""
    task: dict[str, Any] = field(default_factory=dict[str, Any])
    batch_size: int = 1
    concurrency: int = 1
    options: list[str] = field(default_factory=list[str])
    credit: int = 0


@dataclass(slots=True)
class Welcome:
    """The broker's answer to a first hello. ``epoch`` is random for each life of a broker."""

    epoch: bytes
    ping_interval_s: float
    limits: Limits
    version: int = PROTOCOL_VERSION


@dataclass(slots=True)
class Refuse:
    """The broker's last word to a peer that it will not talk to; like the hello, it keeps its encoding for ever."""

    reason: str
    version: int = PROTOCOL_VERSION


@dataclass(slots=True)
class Reset:
    """Broker to peer: this connection cannot go on, open a new one and say hello."""

    reason: str


@dataclass(slots=True)
class Ping:
    """Either direction, at every interval: alive, and how many entries the ledger that I write holds now.

    None says nothing about a ledger: a worker writes none, and a broker has none before the worker's Hold. To a worker
    a broker also says how many rows wait there for its LLM, none where all wait for their clients to read on.
    """

    held: int | None
    waiting: int = 0


@dataclass(slots=True)
class Goodbye:
    """The sender ends its connection on purpose and will not come back."""

    reason: str = ""


@dataclass(slots=True)
class SubmitRun:
    """Rows of one client call that share all that a decision needs.

    ``options`` are the call's generation options as packed bytes: the broker compares them and never reads them.
    ``seconds_left`` is what remains until the caller's deadline. ``again`` marks rows that were submitted before.
    ``hedge`` is how many times its usual time a row must have run before an idle worker is given it too, 0 for never.
    ``trace`` is the span that the call is, as a W3C traceparent, "" where it is none.
    """

    llm: str
    kind: str
    num_generations: int
    options: bytes
    seconds_left: float | None
    again: bool
    ids: list[bytes]
    payloads: Sequence[Payload]
    hedge: float = 0.0
    trace: str = ""


@dataclass(slots=True)
class Submit:
    """Client to broker: new rows."""

    runs: list[SubmitRun]


@dataclass(slots=True)
class Release:
    """Client to broker: rows to forget: their answer has arrived, or they were cancelled, or were not taken (Busy)."""

    ids: list[bytes]


@dataclass(slots=True)
class Await:
    """Client to broker after a welcome: every row that it has submitted and still awaits (``more`` follow or not)."""

    ids: list[bytes]
    more: bool


@dataclass(slots=True)
class Missing:
    """Broker to client: awaited rows that nobody holds; submit them again."""

    ids: list[bytes]


@dataclass(slots=True)
class Busy:
    """Broker to client: submitted rows that it has no room for. Release them, and submit no row for so many seconds."""

    ids: list[bytes]
    seconds: float


@dataclass(slots=True)
class Answer:
    """Broker to client: finished rows. ``attempts`` counts the charged executions of each, the last included."""

    ids: list[bytes]
    outcomes: list[int]
    attempts: list[int]
    payloads: list[Payload]


@dataclass(slots=True)
class LLMInfo:
    """One LLM of the fleet as clients see it: ``capacity`` is how many rows its ready workers run at once in all."""

    name: str
    model_names: list[str]
    task: dict[str, Any]
    options: list[str]
    ready: int
    loading: int
    unwell: int
    capacity: int
    reason: str = ""


@dataclass(slots=True)
class Fleet:
    """Broker to clients, after the welcome and whenever it changes: every LLM that somebody has announced."""

    llms: list[LLMInfo]


@dataclass(slots=True)
class Ask:
    """Client to broker: send a Status."""


@dataclass(slots=True)
class Status:
    """Broker to client: the fleet in detail, for people and for ``genpool status --json``."""

    report: dict[str, Any]


@dataclass(slots=True)
class Dismiss:
    """An admin's client to broker: have workers drain, or end the sessions of clients for good; ``role`` says which.

    ``name`` is HOST:PID, a process id that nobody else has or, for workers, a host. ``llm`` leaves out workers of
    others, "" of none.
    """

    role: str
    name: str
    llm: str = ""


@dataclass(slots=True)
class PeerInfo:
    """A client or worker as people name it, with how many rows it has at the broker, or runs."""

    host: str
    pid: int
    llm: str
    rows: int


@dataclass(slots=True)
class Dismissed:
    """Broker to who said Dismiss: whom it has dismissed. With a ``reason`` it was nobody, and that is why.

    ``is_refused`` when the reason is that who asked is no admin.
    """

    peers: list[PeerInfo]
    reason: str = ""
    is_refused: bool = False


@dataclass(slots=True)
class Drain:
    """Broker to worker: take no more rows, finish what runs, say goodbye and end."""

    reason: str


@dataclass(slots=True)
class AssignRun:
    """Rows handed to a worker that may share an engine call; row ``k`` is execution ``first_execution + k``.

    For a worker with a ``batch_size`` above 1, a run is one engine call. ``charged`` is the highest count of charged
    attempts among its rows. ``are_suspects`` marks rows that are to show whether they end workers: no other broker's
    row may run beside them. ``trace`` is as in SubmitRun.
    """

    kind: str
    num_generations: int
    options: bytes
    seconds_left: float | None
    charged: int
    first_execution: int
    ids: list[bytes]
    payloads: Sequence[Payload]
    are_suspects: bool = False
    trace: str = ""


@dataclass(slots=True)
class Assign:
    """Broker to worker: rows to run."""

    runs: list[AssignRun]


@dataclass(slots=True)
class Settle:
    """Broker to worker: executions that nobody waits for any more. Stop what still runs, forget what is finished."""

    executions: list[int]


@dataclass(slots=True)
class Resend:
    """Broker to worker: send the answers of these finished executions (again)."""

    executions: list[int]


@dataclass(slots=True)
class Result:
    """Worker to broker: executions that have ended. ``tokens`` counts what the engine generated for them, if it says.

    ``credit`` as in Grant.
    """

    executions: list[int]
    outcomes: list[int]
    tokens: int
    credit: int
    payloads: Sequence[Payload]


@dataclass(slots=True)
class Grant:
    """Worker to broker: its credit and state.

    ``credit`` is cumulative, as flow control in QUIC is: how many engine calls the broker may have handed out on
    this connection *in all* since its hello (a row each, or a run of up to ``batch_size`` rows). It may fall below
    what was already handed out, which grants nothing. Being a total, it can neither leak nor be counted twice,
    whatever is in flight in the other direction.
    """

    credit: int
    state: str
    reason: str = ""


@dataclass(slots=True)
class Hold:
    """Worker to broker after a welcome: every execution it holds, running or ``finished``, with its row's id."""

    executions: list[int]
    ids: list[bytes]
    finished: list[bool]
    more: bool


Message = (
    Hello
    | Welcome
    | Refuse
    | Reset
    | Ping
    | Goodbye
    | Submit
    | Release
    | Await
    | Missing
    | Busy
    | Answer
    | Fleet
    | Ask
    | Status
    | Dismiss
    | Dismissed
    | Drain
    | Assign
    | Settle
    | Resend
    | Result
    | Grant
    | Hold
)
