"""The broker's view of clients, workers and LLMs: their state, and the small questions one asks of it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import chain

from ..protocol.limits import MAX_COUNT
from ..protocol.messages import Hello, LLMInfo, WorkerState
from .outbox import Outbox
from .queue import FairQueue
from .row import SUSPECTED, Execution, Row
from .straggler import Stragglers
from .tally import Rate, Tally

# Replicas of one LLM say the same; many names of models are a mistake, and would only be long.
_MOST_MODEL_NAMES = 16


@dataclass(slots=True, eq=False)
class Peer:
    """One connection.

    ``key`` is the public key that the connection has proven, "" where there are none. A process keeps it.
    """

    id: bytes
    hello: Hello
    key: str
    outbox: Outbox = field(default_factory=Outbox)

    def is_same_process(self, hello: Hello) -> bool:
        """Whether another hello on this connection comes from who said the first one."""
        own = self.hello
        return (hello.role, hello.instance, hello.llm) == (own.role, own.instance, own.llm)


@dataclass(slots=True, eq=False)
class Client(Peer):
    """A client process; it outlives its connection by the grace. ``lost`` is when the connection went, if it did.

    ``unread_bytes`` counts the answers that it was sent on this connection and has not released, and ``withheld`` has
    the rows whose answers stay at their workers until it reads on, with the answers' sizes. ``reconciled`` turns true
    when it has said which rows it awaits; until then ``awaited`` has those that it has named, in its order.

    ``row_bytes`` counts the bytes of its ``rows``. ``refused`` has the ids of rows that there was no room for and
    that it has not taken home yet: its ledger counts them. It was told to wait for ``busy_s``, until ``busy_until``.
    """

    lost: float | None = None
    rows: dict[bytes, Row] = field(default_factory=dict[bytes, Row])
    row_bytes: int = 0
    refused: dict[bytes, None] = field(default_factory=dict[bytes, None])
    busy_s: float = 0.0
    busy_until: float = 0.0
    reconciled: bool = False
    awaited: dict[bytes, None] = field(default_factory=dict[bytes, None])
    answered: int = 0
    unread_bytes: int = 0
    withheld: dict[Row, int] = field(default_factory=dict[Row, int])

    @property
    def is_stalled(self) -> bool:
        """Whether it reads its answers more slowly than they come."""
        return bool(self.withheld)

    def reconnect(self, peer_id: bytes, hello: Hello) -> None:
        """It is here on a new connection, and is about to say what it awaits."""
        self.id, self.hello, self.lost = peer_id, hello, None
        self.outbox = Outbox()
        self.reconciled = False
        self.awaited.clear()
        self.refused.clear()
        self.withheld.clear()
        self.unread_bytes = 0
        for row in self.rows.values():
            row.unread_bytes = 0


@dataclass(slots=True, eq=False)
class Worker(Peer):
    """A worker process's connection.

    ``executions`` is the ledger that the worker mirrors; ``running`` counts those that are not finished. ``used`` and
    ``hello.credit`` are totals of this connection. ``reconciled`` turns true when the worker has said what it holds;
    until then ``unclaimed`` has what it inherited from its last connection and has not named.
    ``stopped`` counts the rows that were settled while they ran, until its credit shows that its engine runs none of
    them. ``since`` is when its process came, ``gone`` when its connection ended. ``outrun`` counts the rows
    that a hedge answered in its place: many are the mark of a slow worker. ``is_dismissed`` when it was told to drain.
    """

    since: float = 0.0
    gone: float = 0.0
    executions: dict[int, Execution] = field(default_factory=dict[int, Execution])
    running: int = 0
    stopped: int = 0
    used: int = 0
    reconciled: bool = False
    unclaimed: set[int] = field(default_factory=set[int])
    done: int = 0
    failed: int = 0
    outrun: int = 0
    tokens: int = 0
    rate: Rate = field(default_factory=Rate)
    is_dismissed: bool = False

    def inherit(self, former: Worker) -> None:
        """Take over the ledger of this process's last connection, until it has said what it holds."""
        self.executions, self.running = former.executions, former.running
        self.done, self.failed, self.tokens = former.done, former.failed, former.tokens
        self.since, self.stopped, self.outrun = former.since, former.stopped, former.outrun
        self.rate = former.rate
        self.is_dismissed = former.is_dismissed
        self.unclaimed = set(self.executions)
        for execution in self.executions.values():
            execution.worker = self

    @property
    def free_calls(self) -> int:
        """How many engine calls it has granted and not been given."""
        free = self.hello.credit - self.used
        return free if free > 0 and self.reconciled else 0

    @property
    def unwanted(self) -> int:
        """How many settled rows its engine works on still, at most, as far as its credit tells."""
        calls = self.hello.concurrency - self.free_calls
        return min(self.stopped, max(0, calls * self.hello.batch_size - self.running))

    @property
    def load(self) -> int:
        """How many rows its engine works on, wanted or not."""
        return self.running + self.unwanted

    @property
    def tries_suspects(self) -> bool:
        """Whether it runs rows that are suspected."""
        return any(one.row.record.suspect_group for one in self.executions.values() if not one.finished)

    @property
    def is_ready(self) -> bool:
        return self.hello.state == WorkerState.READY

    @property
    def is_busy(self) -> bool:
        """Whether it is ready and runs all that it takes at once."""
        return self.is_ready and self.running > 0 and not self.free_calls

    @property
    def is_draining(self) -> bool:
        """Whether it takes no more rows: it has said so, or was told to and may not have heard it yet."""
        state = self.hello.state
        return state == WorkerState.DRAINING or (self.is_dismissed and state != WorkerState.UNWELL)


@dataclass(slots=True, eq=False)
class LLM:
    """All workers of one name, and what waits for them.

    ``free`` holds the workers with credit, the one whose turn is next first. ``quarantine`` is the worker that
    tries suspects, if one does, and ``judge_missed_since`` is since when those that wait have found none that might.
    ``last_death`` is when a worker last ended with rows that were charged for it.
    ``stragglers`` knows how long the rows take whose calls want them hedged, and ``tally`` what has become of all rows.
    """

    name: str
    announced: bool = False
    queue: FairQueue = field(default_factory=FairQueue)
    suspects: deque[Row] = field(default_factory=deque[Row])
    quarantine: Worker | None = None
    judge_missed_since: float | None = None
    stragglers: Stragglers = field(default_factory=Stragglers)
    tally: Tally = field(default_factory=Tally)
    workers: dict[Worker, None] = field(default_factory=dict[Worker, None])
    free: dict[Worker, None] = field(default_factory=dict[Worker, None])
    unserved_since: float = 0.0
    last_death: float = float("-inf")
    last_hello: Hello = field(default_factory=Hello)

    def note_credit(self, worker: Worker) -> None:
        """Enter ``worker`` among the free ones, or take it out, by the credit that it has now."""
        if worker.stopped:
            worker.stopped = worker.unwanted
        if worker.free_calls and worker in self.workers:
            self.free.setdefault(worker)
        else:
            self.free.pop(worker, None)

    def remove(self, worker: Worker, now: float) -> None:
        """``worker`` is gone."""
        self.workers.pop(worker, None)
        self.free.pop(worker, None)
        worker.gone = self.unserved_since = now
        if self.quarantine is worker:
            self.quarantine = None

    def suspect(self, row: Row) -> None:
        """``row`` waits among the suspects."""
        if not self.suspects:
            self.judge_missed_since = None
        row.state = SUSPECTED
        self.suspects.append(row)

    def survivors(self) -> list[Worker]:
        """The workers that take rows, run some or could, and were there before the last death."""
        takes_rows = [one for one in self.workers if one.is_ready and not one.is_draining]
        return [one for one in takes_rows if one.since < self.last_death and (one.running or one in self.free)]

    def is_forgotten(self, unserved_since: float) -> bool:
        """Whether nobody serves it or waits for it, and nobody has served it since then, or ever."""
        is_idle = not self.workers and not len(self.queue) and not self.suspects
        return is_idle and (self.unserved_since <= unserved_since or not self.announced)

    def waiting(self) -> int:
        """How many rows wait: none where all are of clients that must read on before.

        Else workers would keep free places for them, which rows at other brokers could have.
        """
        rows = chain(self.queue.first_rows(), self.suspects)
        is_any = any(row.client is None or not row.client.is_stalled for row in rows)
        return len(self.queue) + len(self.suspects) if is_any else 0

    def waiting_since(self) -> float | None:
        """When the row was submitted that has waited longest; None when none waits."""
        times = [row.spec.submitted for row in (*self.queue.first_rows(), *self.suspects)]
        return min(times, default=None)

    def info(self) -> LLMInfo:
        """What clients are told of it."""
        states = [worker.hello.state for worker in self.workers]
        ready = [worker.hello for worker in self.workers if worker.is_ready]
        reasons = [worker.hello.reason for worker in self.workers if worker.hello.state == WorkerState.UNWELL]
        return LLMInfo(
            self.name,
            sorted({hello.model_name for hello in ready if hello.model_name})[:_MOST_MODEL_NAMES]
            or [self.last_hello.model_name],
            self.last_hello.task,
            sorted(self.last_hello.options),
            len(ready),
            states.count(WorkerState.LOADING),
            states.count(WorkerState.UNWELL),
            min(MAX_COUNT, sum(hello.batch_size * hello.concurrency for hello in ready)),
            reasons[0] if reasons else "",
        )
