"""Target: the broker's machine, in the company of peers that say anything at any time.

Its books must agree after each step, and be empty when all have gone: then nobody can make it grow for ever.
"""

# A target looks inside what it tests.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections import Counter, deque
from typing import Any

from genpool.broker.machine import Broker
from genpool.broker.outgoing import Effect, Send
from genpool.broker.peer import LLM, Client, Worker
from genpool.broker.row import Row, RowState
from genpool.broker.settings import BrokerSettings
from genpool.protocol.errors import DecodeError
from genpool.protocol.limits import ROW_ID_BYTES, Limits
from genpool.protocol.messages import (
    Answer,
    Ask,
    Assign,
    Await,
    Busy,
    Dismiss,
    Goodbye,
    Grant,
    Hello,
    Hold,
    Message,
    Missing,
    Outcome,
    Ping,
    Release,
    Reset,
    Result,
    Settle,
    Submit,
    SubmitRun,
)

from .choices import Choices
from .garbage import MAKERS, Vocabulary, passed_on, received

# Small, so that every limit is met, and short, so that every time-out is.
_LIMITS = Limits(
    max_frame_bytes=200,
    target_message_bytes=400,
    max_row_bytes=1000,
    max_rows=3,
    max_client_rows=8,
    max_client_bytes=1500,
)
_SETTINGS = BrokerSettings(
    settle_s=1.0,
    client_grace_s=3.0,
    max_unread_bytes=150,
    max_rows=12,
    max_bytes=2000,
    max_clients=3,
    max_peers=6,
    max_llms=5,
    llm_memory_s=100.0,
    limits=_LIMITS,
)
_EPOCH = bytes(range(16))
_PEERS = tuple(bytes([number]) * 5 for number in range(6))
_CLIENT_KINDS = (Submit, Submit, Submit, Release, Release, Await, Await, Ask, Ping, Goodbye, Reset, Hello, Dismiss)
_WORKER_KINDS = (Result, Result, Result, Result, Grant, Grant, Hold, Hold, Ping, Goodbye, Reset, Hello)
_SENT_ON_DEMAND = ("Fleet", "Status", "Reset", "Welcome", "Dismissed", "Drain")
_MOST_STEPS = 200
_LAST_SENT = 8


class _Fleet:
    """A broker and its peers, as far as the bytes go."""

    def __init__(self, choices: Choices) -> None:
        self._choices = choices
        self._words = Vocabulary()
        self._now = 1000.0
        self._broker = Broker(_SETTINGS, _EPOCH, self._now)
        self._sent: deque[Send] = deque(maxlen=_LAST_SENT)
        self._ran: dict[bytes, list[int]] = {}  # by peer, what it was assigned and has not answered

    def run(self) -> None:
        for _ in range(_MOST_STEPS):
            if self._choices.are_over:
                break
            self._step()
        self._perform(self._broker.flush(self._now))
        self._end()

    def _step(self) -> None:
        match self._choices.below(16):
            case 0 | 1:
                self._perform(self._broker.flush(self._now))
            case 2 | 3:
                self._now += self._choices.one_of((0.0, 0.05, 0.5, 1.0, 3.0, 20.0, 1e5))
                self._perform(self._broker.tick(self._now))
            case 4:
                self._fail_to_send()
            case 5:
                self._greet()
            case 6 | 7:
                self._answer()
            case 8:
                self._befall()
            case 9:
                self._die()
            case 10 if self._choices.below(4) == 3:
                self._work()
            case _:
                self._speak()

    def _greet(self) -> None:
        """A worker that is ready, or a client, and in order."""
        number = self._choices.below(len(_PEERS))
        role = "client" if number % 2 else "worker"
        llm, credit = "" if number % 2 else "ab"[number // 4], 1 + self._choices.below(4)
        hello = Hello(
            role=role,
            instance=b"%d" % number,
            llm=llm,
            state="ready",
            model_name="m",
            credit=credit,
            concurrency=credit,
        )
        hello.batch_size = self._choices.one_of((1, 1, 3))
        self._receive(number, hello)
        self._receive(number, Await([], False) if number % 2 else Hold([], [], [], False))

    def _receive(self, number: int, message: Message) -> None:
        self._broker.received(_PEERS[number], message, self._now)

    def _speak(self) -> None:
        """Somebody says something that is for him to say, or not."""
        peer_id = self._choices.one_of(_PEERS)
        peer = self._broker.peers.get(peer_id)
        kinds: tuple[type[Any], ...] = (Hello,)
        if isinstance(peer, Client):
            kinds = _CLIENT_KINDS
        elif isinstance(peer, Worker):
            kinds = _WORKER_KINDS
        if self._choices.rarely():
            kinds = tuple(MAKERS)
        try:
            message = received(self._choices, self._words, kinds)
        except DecodeError as error:
            self._broker.malformed(peer_id, str(error))
        else:
            self._broker.received(peer_id, message, self._now)

    def _answer(self) -> None:
        """A worker answers what it was given, all with one outcome."""
        outcome = self._choices.one_of((Outcome.DONE, Outcome.DONE, Outcome.DONE, *Outcome))
        self._answer_all(self._choices.below(len(_PEERS)), outcome, self._choices.one_of((b"answer", b"a" * 100)))

    def _answer_all(self, number: int, outcome: Outcome, payload: bytes) -> None:
        executions = self._ran.pop(_PEERS[number], [])
        if executions:
            count = len(executions)
            peer = self._broker.peers.get(_PEERS[number])
            credit = peer.hello.credit + count if peer is not None else 0
            self._receive(number, Result(executions, [outcome] * count, 1, min(credit, 2**63 - 1), [payload] * count))

    def _befall(self) -> None:
        """Something that its host does to the broker."""
        match self._choices.below(8):
            case 0:
                gap_s = self._choices.one_of((1.5, 60.0))
                self._now += gap_s
                self._broker.stood_still(gap_s, self._now)
            case 1:
                self._perform(self._broker.stop("it was stopped"))
            case _:
                self._broker.connection_broke(self._now)

    def _die(self) -> None:
        """A process ends, and is not waited for any longer, or for that long at least."""
        self._broker.send_failed(self._choices.one_of(_PEERS), Ping(None), gone=True, now=self._now)
        self._now += self._choices.one_of((0.5, 0.5, 0.5, 0.1))
        self._perform(self._broker.tick(self._now))

    def _work(self) -> None:
        """A client has rows done, enough for the usual time of such rows to be known, and some that may straggle."""
        client = next((number for number in (1, 3, 5) if _PEERS[number] in self._broker.peers), None)
        if client is None:
            return
        for batch in range(5):
            ids = [b"%d %d" % (int(self._now * 1000), number) for number in range(2)]
            ids = [one.rjust(ROW_ID_BYTES, b"%d" % batch) for one in ids]
            run = SubmitRun("a", "input", 1, b"", None, False, ids, [b"row"] * 2, 1.0)
            self._receive(client, Submit([run]))
            self._perform(self._broker.flush(self._now))
            if batch == 4:
                break
            self._now += 0.1
            for number in range(len(_PEERS)):
                self._answer_all(number, Outcome.DONE, b"")
            self._receive(client, Release(ids))
            self._perform(self._broker.flush(self._now))

    def _fail_to_send(self) -> None:
        """One of the last messages could not be sent: its peer is gone, or does not read."""
        if self._sent:
            send = self._choices.one_of(self._sent)
            gone, silent = self._choices.one_of(((False, False), (True, False), (True, True)))
            self._broker.send_failed(send.peer, send.message, gone=gone, silent=silent, now=self._now)

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                self._sent.append(effect)
                self._note(effect, passed_on(effect.message, _LIMITS.max_frame_bytes))
        look_at(self._broker)

    def _note(self, effect: Send, message: Message) -> None:
        match message:
            case Assign():
                rows = 0
                for run in message.runs:
                    executions = list(range(run.first_execution, run.first_execution + len(run.ids)))
                    self._words.executions += executions
                    self._ran.setdefault(effect.peer, []).extend(executions)
                    rows += len(run.ids)
                assert rows <= _LIMITS.max_rows, "a message has too many rows"
            case Answer() | Missing() | Busy():
                assert len(message.ids) <= _LIMITS.max_rows, "a message has too many rows"
            case Settle():
                assert len(message.executions) <= _LIMITS.max_rows, "a message has too many rows"
            case _:
                pass

    def _end(self) -> None:
        """All go without a word, and time passes: nothing is left of them."""
        broker = self._broker
        for peer_id in list(broker.peers):
            broker.send_failed(peer_id, Ping(None), gone=True, now=self._now)
        for seconds in (0.5, 5.0, 70.0, 101.0, 1.0):
            self._now += seconds
            for effect in broker.tick(self._now):
                assert not isinstance(effect, Send), "somebody is spoken to, and nobody is there"
        ledger = broker.ledger
        left = (
            broker.peers,
            broker.clients,
            broker.workers,
            broker.llms,
            broker._departures,
            broker._announced,
            broker._asking,
            ledger.rows,
            ledger.executions,
            ledger._orphans,
            ledger._settling,
            ledger._stalled,
            ledger._charges,
        )
        assert not any(left), f"all have gone, and this is left: {[one for one in left if one]}"


def look_at(broker: Broker) -> None:
    """The books agree with each other."""
    assert sum(map(len, (broker.clients, broker.workers, broker._departures))) <= _SETTINGS.max_peers
    for peer_id, peer in broker.peers.items():
        assert peer.id == peer_id
        _look_at_outbox(Counter(type(message) for message in peer.outbox))
    _look_at_rows(broker)
    executions = 0
    for worker in [*broker.workers.values(), *(departure.worker for departure in broker._departures.values())]:
        _look_at_worker(broker, worker)
        executions += len(worker.executions)
    assert len(broker.ledger.executions) == executions, "an execution is of nobody"
    announced = sum(llm.announced for llm in broker.llms.values())
    assert broker._announced == announced <= _SETTINGS.max_llms
    assert len(broker.llms) - announced <= _SETTINGS.max_llms
    for llm in broker.llms.values():
        _look_at_llm(broker, llm)


def _look_at_outbox(kinds: Counter[type[Any]]) -> None:
    once = [kind.__name__ for kind, count in kinds.items() if count > 1 and kind.__name__ in _SENT_ON_DEMAND]
    assert not once, f"old news is kept: {once}"


def _look_at_rows(broker: Broker) -> None:
    ledger = broker.ledger
    owned = 0
    for client in broker.clients.values():
        assert all(ledger.rows.get(row.id) is row and row.client is client for row in client.rows.values())
        assert client.unread_bytes == sum(row.unread_bytes for row in client.rows.values())
        assert all(row.state in (RowState.ANSWERED, RowState.RUNNING) for row in client.withheld)
        assert client.row_bytes == sum(row.size for row in client.rows.values()) <= _LIMITS.max_client_bytes
        assert not client.rows.keys() & client.refused.keys()
        assert len(client.rows) + len(client.refused) <= _LIMITS.max_client_rows
        owned += len(client.rows)
    orphans = [row for row in ledger.rows.values() if row.client is None]
    assert {row.id for row in orphans} == set(ledger._orphans)
    assert len(ledger.rows) == owned + len(orphans), "a row is of nobody"
    assert ledger.row_bytes == sum(row.size for row in ledger.rows.values()) <= _SETTINGS.max_bytes
    assert len(ledger.rows) <= _SETTINGS.max_rows
    for row in ledger.rows.values():
        _look_at_row(broker, row)


def _look_at_row(broker: Broker, row: Row) -> None:
    assert all(broker.ledger.executions.get(one.id) is one for one in row.executions)
    assert 0 <= row.record.charged <= _SETTINGS.max_attempts + len(_PEERS)
    match row.state:
        case RowState.RUNNING:
            assert row.executions, "a row runs nowhere"
        case RowState.QUEUED | RowState.SUSPECTED | RowState.SETTLING:
            assert row.payload is not None
            assert row.client is not None
            assert not row.executions, "a row waits and runs"
        case RowState.MISSING:
            assert row.client is not None
            assert not row.executions, "a row is asked for and runs"
        case RowState.ANSWERED:
            pass
        case RowState.GONE:
            raise AssertionError("a row is gone and known")


def _look_at_worker(broker: Broker, worker: Worker) -> None:
    assert worker.running == sum(not execution.finished for execution in worker.executions.values())
    for number, execution in worker.executions.items():
        assert broker.ledger.executions.get(number) is execution
        assert execution.worker is worker
        assert execution in execution.row.executions
        assert broker.ledger.rows.get(execution.row.id) is execution.row, "an execution of a row that is gone"


def _look_at_llm(broker: Broker, llm: LLM) -> None:
    assert all(row.state is RowState.SUSPECTED and row.record.suspect_group for row in llm.suspects)
    assert len(set(map(id, llm.suspects))) == len(llm.suspects)
    waiting = {id(row) for line in llm.queue._turns.values() for row in line if row.state is RowState.QUEUED}
    assert len(llm.queue) == len(waiting)
    known = [row for row in broker.ledger.rows.values() if row.spec.llm == llm.name]
    assert sum(row.state is RowState.QUEUED for row in known) == len(waiting), "a row waits in no queue"
    assert sum(row.state is RowState.SUSPECTED for row in known) == len(llm.suspects)
    assert not llm.queue.expired
    for worker in llm.workers:
        assert (worker in llm.free) == bool(worker.free_calls)
    for kind in llm.stragglers._kinds.values():
        assert all(broker.ledger.executions.get(number) is one for number, one in kind.running.items())


def check(data: bytes) -> None:
    _Fleet(Choices(data)).run()
