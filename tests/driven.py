"""The broker's machine, driven by hand: peers by name, messages and the time go in, effects come out as lists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from itertools import count
from typing import Any

from genpool.broker.machine import Broker
from genpool.broker.outgoing import Drop, Log, Send
from genpool.broker.peer import LLM, Client, Worker
from genpool.broker.row import Execution, RowState
from genpool.broker.settings import BrokerSettings
from genpool.protocol.codec import decode, encode
from genpool.protocol.frames import Payload
from genpool.protocol.limits import Limits
from genpool.protocol.messages import (
    Answer,
    Assign,
    AssignRun,
    Grant,
    Hello,
    Hold,
    Message,
    Outcome,
    Ping,
    Refuse,
    Resend,
    Result,
    Role,
    Settle,
    Submit,
    SubmitRun,
    Welcome,
    WorkerState,
)

EPOCH = b"\x01\x02\x03" + bytes(13)
FIRST = 0x010203 << 38  # the first execution of a broker with that epoch

SETTINGS = BrokerSettings(
    settle_s=2.0,
    client_grace_s=10.0,
    worker_grace_s=0.5,
    heartbeat_timeout_s=10.0,
    ping_interval_s=1.0,
    max_attempts=3,
)

Sent = tuple[str, Message]


def ids(*names: str) -> list[bytes]:
    return [name.encode().ljust(16, b".") for name in names]


def numbered(name: str, how_many: int) -> list[str]:
    return [f"{name}{number}" for number in range(how_many)]


def submit(*names: str, **said: Any) -> Submit:
    """One run of rows whose payloads are their names."""
    defaults: dict[str, Any] = {
        "llm": "llm",
        "kind": "input",
        "num_generations": 1,
        "options": b"",
        "seconds_left": None,
        "again": False,
        "payloads": [name.encode() for name in names],
    }
    return Submit([SubmitRun(ids=ids(*names), **{**defaults, **said})])


def run_of(first: int, *names: str, **said: Any) -> AssignRun:
    defaults: dict[str, Any] = {
        "kind": "input",
        "num_generations": 1,
        "options": b"",
        "seconds_left": None,
        "charged": 0,
        "payloads": [name.encode() for name in names],
    }
    return AssignRun(first_execution=FIRST + first, ids=ids(*names), **{**defaults, **said})


def assign(first: int, *names: str, **said: Any) -> Assign:
    return Assign([run_of(first, *names, **said)])


def result(*numbers: int, credit: int, outcome: Outcome = Outcome.DONE, tokens: int = 0) -> Result:
    """Executions that ended; each payload is its number."""
    payloads = [b"answer %d" % number for number in numbers]
    return Result([FIRST + number for number in numbers], [outcome] * len(numbers), tokens, credit, payloads)


def answer(names: Iterable[str], *numbers: int, outcome: int = Outcome.DONE, attempts: int = 0) -> Answer:
    rows = ids(*names)
    payloads: list[Payload] = [b"answer %d" % number for number in numbers]
    return Answer(rows, [outcome] * len(rows), [attempts] * len(rows), payloads)


def hold(*held: tuple[int, str, bool], more: bool = False) -> Hold:
    numbers = [FIRST + number for number, _, _ in held]
    return Hold(numbers, ids(*(name for _, name, _ in held)), [finished for _, _, finished in held], more)


def settle(*numbers: int) -> Settle:
    return Settle([FIRST + number for number in numbers])


def resend(*numbers: int) -> Resend:
    return Resend([FIRST + number for number in numbers])


def grant(credit: int, state: WorkerState = WorkerState.READY, reason: str = "") -> Grant:
    return Grant(credit, state, reason)


def client_hello(name: str, **said: Any) -> Hello:
    return Hello(role=Role.CLIENT, instance=name.encode(), host=name, pid=7, **said)


def worker_hello(name: str, **said: Any) -> Hello:
    defaults: dict[str, Any] = {
        "llm": "llm",
        "state": WorkerState.READY,
        "model_name": "model",
        "concurrency": 1,
        "credit": 0,
    }
    return Hello(role=Role.WORKER, instance=name.encode(), host=name, pid=8, **{**defaults, **said})


class Bench:
    """A broker with peers by name. Every step checks that the broker's books agree, and that its messages encode."""

    def __init__(self, settings: BrokerSettings = SETTINGS, *, age: float = 100.0) -> None:
        self.broker = Broker(settings, EPOCH, 0.0)
        self.now = age
        self.broker.tick(self.now)
        self.logs: list[str] = []
        # Peers that ZeroMQ cannot send to at the moment: gone, or full.
        self.dropped: list[str] = []
        self.gone: set[str] = set()
        self.full: set[str] = set()
        self.failed = 0  # how many sends they did not take
        self._ids = count()

    # What goes in.

    def tell(self, name: str, *messages: Message) -> list[Sent]:
        """A burst of messages from one peer, and what the broker sends then."""
        for message in messages:
            self.broker.received(name.encode(), message, self.now)
        return self.flush()

    def flush(self) -> list[Sent]:
        return self._sent(self.broker.flush(self.now))

    def tick(self, seconds: float = 0.0) -> list[Sent]:
        """Time passes, and then comes a tick; pings are left out of what is returned."""
        return [(name, message) for name, message in self.tick_all(seconds) if not isinstance(message, Ping)]

    def settled(self) -> list[Sent]:
        """What workers hear with the next tick that they need keep no more."""
        return [(name, message) for name, message in self.tick() if isinstance(message, Settle)]

    def tick_all(self, seconds: float = 0.0) -> list[Sent]:
        self.now += seconds
        return self._sent(self.broker.tick(self.now))

    def client(self, name: str = "client", again: bool = False) -> str:
        self.tell(name, client_hello(name.partition("/")[0]))
        return name

    def worker(self, name: str = "worker", credit: int = 1, held: Hold | None = None, **said: Any) -> str:
        """Connects; a name like ``worker/2`` is the second connection of the process ``worker``."""
        self.tell(name, worker_hello(name.partition("/")[0], credit=credit, **said))
        self.tell(name, held or hold())
        return name

    def lose(self, *names: str, silent: bool = False) -> None:
        """The broker finds, at its next send, that these connections are gone."""
        for name in names:
            self.broker.send_failed(name.encode(), Ping(None), gone=True, silent=silent, now=self.now)
        self.flush()

    def end(self, *names: str) -> list[Sent]:
        """These processes have ended, and the grace is over."""
        self.lose(*names)
        return self.tick(SETTINGS.worker_grace_s)

    # What comes out.

    def _sent(self, effects: list[Any]) -> list[Sent]:
        sent: list[Sent] = []
        blocked: set[str] = set()
        for effect in effects:
            if isinstance(effect, Log):
                self.logs.append(effect.text)
                continue
            if isinstance(effect, Drop):
                self.dropped.append(effect.peer.decode())
                continue
            assert isinstance(effect, Send)
            name = effect.peer.decode()
            assert decode(encode(effect.message, 1 << 20)) == effect.message
            if name in self.gone or name in self.full:
                blocked.add(name)
                self.failed += 1
                self.broker.send_failed(effect.peer, effect.message, gone=name in self.gone, now=self.now)
            else:
                assert name not in blocked
                sent.append((name, effect.message))
        self.check()
        return sent

    def check(self) -> None:
        broker = self.broker
        peers = {peer for peer in broker.peers.values() if isinstance(peer, Worker)}
        peers |= {departure.worker for departure in broker._departures.values()}
        assert {n: e for peer in peers for n, e in peer.executions.items()} == broker.ledger.executions
        for number, execution in broker.ledger.executions.items():
            assert execution.worker.executions[number] is execution
            assert execution in execution.row.executions
            assert broker.ledger.rows[execution.row.id] is execution.row
        for peer in peers:
            assert peer.running == sum(not execution.finished for execution in peer.executions.values())
            assert peer.free_calls >= 0
        for row in broker.ledger.rows.values():
            assert all(broker.ledger.executions[execution.id] is execution for execution in row.executions)
            assert row.client is None or row.client.rows[row.id] is row
            assert row.client is not None or row.id in broker.ledger._orphans
        for one in broker.clients.values():
            assert all(broker.ledger.rows[row_id] is row for row_id, row in one.rows.items())
            assert one.row_bytes == sum(row.size for row in one.rows.values())
        assert broker.ledger.row_bytes == sum(row.size for row in broker.ledger.rows.values())
        for name, llm in broker.llms.items():
            states = Counter(row.state for row in broker.ledger.rows.values() if row.spec.llm == name)
            assert (len(llm.queue), len(llm.suspects)) == (states[RowState.QUEUED], states[RowState.SUSPECTED])
            assert all(worker.free_calls and worker in llm.workers for worker in llm.free)
            for number, execution in running_hedgeable(llm):
                assert broker.ledger.executions[number] is execution
                assert execution.row.spec.hedge
                assert execution.row.payload is not None
                assert not execution.finished
            assert llm.stragglers._hedges <= {number for number, _ in running_hedgeable(llm)}

    def state_of(self, name: str) -> RowState | None:
        (row_id,) = ids(name)
        row = self.broker.ledger.rows.get(row_id)
        return None if row is None else row.state

    def peer(self, name: str) -> Client | Worker:
        peer = self.broker.peers[name.encode()]
        assert isinstance(peer, (Client, Worker))
        return peer

    def picture(self) -> Any:
        """Everything that a repeated message must leave as it is."""
        broker = self.broker
        rows = {
            row_id: (row.state, row.record.charged, row.payload, len(row.executions))
            for row_id, row in broker.ledger.rows.items()
        }
        held = {name: sorted(peer.executions) for name, peer in broker.peers.items() if isinstance(peer, Worker)}
        llms = {
            name: (len(llm.queue), len(llm.suspects), [worker.id for worker in llm.free], llm.info())
            for name, llm in broker.llms.items()
        }
        return rows, held, llms, sorted(broker.clients), sorted(broker.peers)


def running_hedgeable(llm: LLM) -> Iterable[tuple[int, Execution]]:
    return [item for kind in llm.stragglers._kinds.values() for item in kind.running.items()]


def assigned(sent: list[Sent]) -> dict[str, list[str]]:
    """Who was given which rows."""
    given: dict[str, list[str]] = {}
    for name, message in sent:
        for run in message.runs if isinstance(message, Assign) else []:
            given.setdefault(name, []).extend(bytes(payload).decode() for payload in run.payloads)
    return given


def answers(sent: list[Sent]) -> list[Answer]:
    return [message for _, message in sent if isinstance(message, Answer)]


def reasons(sent: list[Sent]) -> list[str]:
    """Why peers are turned away."""
    return [message.reason for _, message in sent if isinstance(message, Refuse)]


def welcomed(sent: list[Sent]) -> bool:
    assert bool(reasons(sent)) is not any(isinstance(message, Welcome) for _, message in sent)
    return not reasons(sent)


def limited(**said: Any) -> Bench:
    limits = {name: value for name, value in said.items() if name.startswith("max_client")}
    rest = {name: value for name, value in said.items() if name not in limits}
    bench = Bench(replace(SETTINGS, limits=Limits(**limits), **rest))
    bench.client("one")
    bench.client("two")
    return bench


def last_attempt(bench: Bench, survivor: str, **said: Any) -> None:
    """Row ``row`` has one attempt left, and ``survivor``, which came before, has a row that does not end."""
    bench.client()
    bench.worker(survivor, credit=8, concurrency=8)
    bench.tell("client", submit("endless"))
    bench.tell(survivor, grant(1, **said))
    bench.tell("client", submit("row"))
    for life in ("bad1", "bad2"):
        bench.worker(life)
        assert bench.state_of("row") is RowState.RUNNING
        bench.end(life)
        bench.tick(1.0)
    assert bench.state_of("row") is RowState.SUSPECTED
