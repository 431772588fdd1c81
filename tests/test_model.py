"""A model of the whole: hypothesis drives the three real state machines through faults, and looks after every step.

``GENPOOL_MODEL_EXAMPLES`` says how many runs of up to 50 steps are made. A failure prints the shortest run that shows
it, and a line that repeats it.

Beside the machines' own books the network keeps what really happened: who was sent what, which connections closed, what
engines finished. Who is blamed, handed out twice or beyond its credit is judged by that.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from network import Endpoint, FakeClient, FakeWorker, Network, Weather, Wire

from genpool.broker.machine import Broker
from genpool.broker.peer import LLM, Worker
from genpool.broker.row import Row as BrokerRow
from genpool.broker.row import RowState
from genpool.broker.settings import BrokerSettings
from genpool.client.row import Ending, Row, RowSpec
from genpool.client.run import Run
from genpool.protocol.errors import Closed, Expired, GenpoolError, NoBroker, RowError, UnknownLLM
from genpool.protocol.limits import Limits
from genpool.protocol.messages import Assign, Fleet, Grant, Hello, Hold, Message, Outcome, Result, Role, Settle
from genpool.protocol.session import SessionSettings, SessionState

EXAMPLES = int(os.environ.get("GENPOOL_MODEL_EXAMPLES", "50"))

# Small, so that every limit is met, and short, so that every time-out is.
LIMITS = Limits(
    max_frame_bytes=4096,
    target_message_bytes=400,
    max_row_bytes=1000,
    max_rows=5,
    max_client_rows=16,
    max_client_bytes=90,
)
BROKER = BrokerSettings(
    settle_s=1.0,
    client_grace_s=3.0,
    heartbeat_timeout_s=3.0,
    max_unread_bytes=150,
    limits=LIMITS,
)
# One whose room for rows is soon taken.
FULL_BROKER = replace(BROKER, max_rows=24, max_bytes=160)
SESSION = SessionSettings(silence_s=2.1)
WINDOW_ROWS = 12
HIGH_WATER = 6
HELD_BYTES = 300
REFUND_S = 60.0
WAIT_S = 100.0
RESTART_S = 0.3

LLMS = ("a", "a", "b")
# What an engine does with a row: an answer, a long one, one at the second or third attempt only, never one, a refusal,
# one longer than is carried. A long row is itself too long, and a poison ends the worker's process.
WORDS = (*["ok"] * 6, "big", "once", "twice", "raise", "refuse", "huge", "long", "poison")
ANSWERED = ("ok", "big", "once", "twice")

SECONDS = st.sampled_from([0.0, 0.01, 0.05, 0.2, 0.7, 1.5, 4.0, 7.0])
AWAY = st.sampled_from([0.1, 0.5, 1.5, 2.5, 4.0, 8.0])
WHICH = st.integers(0, 11)


def word_of(payload: bytes) -> str:
    return payload.split()[0].decode()


def answer(payload: bytes) -> bytes:
    size = {"big": 100, "huge": 2000}.get(word_of(payload), 0)
    return b"answer to " + payload + b"." * size


@dataclass(frozen=True)
class Kind:
    """What a worker is, so that a supervisor can start another one."""

    llm: str
    concurrency: int
    batch_size: int
    run_s: float
    aborts: bool


KINDS = st.builds(
    Kind,
    llm=st.sampled_from(LLMS),
    concurrency=st.sampled_from([1, 2, 5]),
    batch_size=st.sampled_from([1, 1, 3]),
    run_s=st.sampled_from([0.01, 0.3, 2.0, 2.0]),
    aborts=st.booleans(),
)


@dataclass(frozen=True)
class Call:
    """What a client asks for at once."""

    llm: str
    words: tuple[str, ...]
    copies: int
    n: int
    timeout_s: float | None
    wait_s: float
    hedge: float
    as_run: bool


CALLS = st.builds(
    Call,
    llm=st.sampled_from(LLMS),
    words=st.lists(st.sampled_from(WORDS), min_size=2, max_size=6).map(tuple),
    copies=st.sampled_from([1, 1, 2, 8]),
    n=st.sampled_from([1, 1, 2]),
    timeout_s=st.sampled_from([None] * 6 + [0.0, 1.0, 20.0]),
    wait_s=st.sampled_from([WAIT_S, WAIT_S, 2.0]),
    hedge=st.sampled_from([0.0, 1.0, 1.0, 3.0]),
    as_run=st.booleans(),
)


class Watched(Network):
    """The network, and what really happened in it: the machines' own books are not asked."""

    def __init__(self, broker: BrokerSettings, seed: int, delay_s: float, weather: Weather) -> None:
        self.credit: dict[Wire, int] = {}
        self.handed: Counter[Wire] = Counter()
        self.payload_of: dict[int, bytes] = {}
        # What a worker was handed and has not finished, for as long as its death would be charged to it.
        self.assigned: dict[Endpoint, dict[int, bytes]] = {}
        # Answers that this life of the broker was told of, and has not settled: where they are, and which execution
        # was the next then.
        self.told: dict[bytes, dict[int, tuple[Wire, int]]] = {}
        # What the broker was done with before it heard (again) that it was finished.
        self.settled: dict[Wire, set[int]] = {}
        # Connections of workers that closed while they were running a row: it may be blamed for these.
        self.blame: dict[bytes, dict[Endpoint, float]] = {}
        self.alone: set[bytes] = set()
        self.raised: Counter[bytes] = Counter()
        self.kinds: dict[Endpoint, Kind] = {}
        self.sick: set[Endpoint] = set()
        self.ever_sick: set[bytes] = set()
        super().__init__(broker, seed=seed, delay_s=delay_s, weather=weather, session_settings=SESSION)

    def sent_up(self, wire: Wire, message: Message) -> None:
        if isinstance(message, (Hello, Grant, Result)) and isinstance(wire.end, FakeWorker):
            self.credit[wire] = max(self.credit.get(wire, 0), message.credit)

    def sent_down(self, wire: Wire, message: Message) -> None:
        if isinstance(message, Assign):
            for run in message.runs:
                payloads = [bytes(payload) for payload in run.payloads]
                self._assigned(wire, run.first_execution, payloads)
                self._look_at_assigned(run.first_execution, payloads)
        elif isinstance(message, Settle):
            self.settled.setdefault(wire, set()).update(message.executions)
            for execution in message.executions:
                self.assigned.get(wire.end, {}).pop(execution, None)
                self.told.get(self.payload_of.get(execution, b""), {}).pop(execution, None)

    def _assigned(self, wire: Wire, first: int, payloads: list[bytes]) -> None:
        batch = wire.end.batch_size if isinstance(wire.end, BusyWorker) else 1
        self.handed[wire] += 1 if batch > 1 else len(payloads)
        assert self.handed[wire] <= self.credit.get(wire, 0), "handed out more than was granted"
        assert batch == 1 or len(payloads) <= batch, "a call is larger than a batch"
        for execution, payload in enumerate(payloads, first):
            self.payload_of[execution] = payload
            self.assigned.setdefault(wire.end, {})[execution] = payload

    def _look_at_assigned(self, first: int, payloads: list[bytes]) -> None:
        for execution, payload in enumerate(payloads, first):
            for other, next_execution in self.told.get(payload, {}).values():
                # It may have been decided before, and have waited for a full connection.
                is_late = execution < next_execution or not other.is_open or not self._is_known(other)
                assert is_late, f"{payload} has an answer and is handed out"
            assert not (self._settles and self._is_kept(payload)), (
                f"{payload} is handed out before its worker could say"
            )

    @property
    def _settles(self) -> bool:
        return self.broker is not None and self.now < self.broker.started + BROKER.settle_s

    def _is_kept(self, payload: bytes) -> bool:
        """Whether a worker that can be heard keeps the row's answer."""
        workers = [end for end in self.ends if isinstance(end, FakeWorker) and end.is_alive and not end.is_cut_off]
        kept = [one for end in workers for one in end.worker.finished.values() if one.outcome == Outcome.DONE]
        return any(one.payload == answer(payload) for one in kept)

    def _is_known(self, wire: Wire) -> bool:
        return self.broker is not None and wire.id in self.broker.peers

    def heard(self, wire: Wire, message: Message) -> None:
        if not self._is_known(wire) and not isinstance(message, Hello):
            return
        finished: list[int] = []
        if isinstance(message, Hello):
            if wire.is_open:  # else it was said before
                self._exonerate(wire.end)
        elif isinstance(message, Result):
            for number in message.executions:
                self.assigned.get(wire.end, {}).pop(number, None)
            pairs = zip(message.executions, message.outcomes, strict=True)
            finished = [number for number, outcome in pairs if outcome == Outcome.DONE]
        elif isinstance(message, Hold) and isinstance(wire.end, FakeWorker):
            kept = wire.end.worker.finished
            pairs = zip(message.executions, message.finished, strict=True)
            finished = [n for n, is_over in pairs if is_over and n in kept and kept[n].outcome == Outcome.DONE]
        for number in finished:
            self.assigned.get(wire.end, {}).pop(number, None)
            if number in self.payload_of and number not in self.settled.get(wire, ()):
                assert self.broker is not None
                told = self.told.setdefault(self.payload_of[number], {})
                told[number] = wire, self.broker.ledger._next_execution

    def finished(self, worker: FakeWorker, execution: int, payload: bytes, outcome: int) -> None:
        self.raised[payload] += outcome == Outcome.RAISED

    def closing(self, wire: Wire) -> None:
        payloads = list(self.assigned.get(wire.end, {}).values())
        if len(payloads) == 1:
            self.alone.update(payloads)
        for payload in payloads:
            self.blame.setdefault(payload, {})[wire.end] = self.now

    def start_broker(self) -> None:
        self.told.clear()
        super().start_broker()

    def _exonerate(self, end: Endpoint) -> None:
        """It lives: nobody has ended it."""
        for blamed in self.blame.values():
            if end in blamed and self.now < blamed[end] + REFUND_S / 2:
                del blamed[end]

    def may_fail(self, payload: bytes, *, by_engine: bool) -> bool:
        """Whether an innocent row looks like one that is not: it was there each time, and in the end alone."""
        is_last = self.raised[payload] > 0 if by_engine else payload in self.alone
        return is_last and self.guilt(payload) >= BROKER.max_attempts

    def guilt(self, payload: bytes) -> int:
        """How many deaths and failures a row may at most be charged with by who sees closed connections only."""
        return len(self.blame.get(payload, ())) + self.raised[payload]

    def spawn(self, kind: Kind) -> FakeWorker:
        """A worker under a supervisor: when a row ends it, another one is started."""
        worker = BusyWorker.of(self.add_worker(kind.llm, concurrency=kind.concurrency, batch_size=kind.batch_size))
        worker.run_s, worker.aborts, worker.answer = kind.run_s, kind.aborts, answer
        worker.outcome = lambda payload: self._outcome(worker, payload)
        self.kinds[worker] = kind
        return worker

    def _outcome(self, worker: FakeWorker, payload: bytes) -> int | None:
        if worker in self.sick:
            self.ever_sick.add(worker.worker.identity.instance)
            worker.worker.unwell("its server is away", self.now)
            return Outcome.RETURNED
        match word_of(payload):
            case "poison":
                self.after(RESTART_S, lambda: self.spawn(self.kinds[worker]))
                return None
            case "raise":
                return Outcome.RAISED
            case "once" | "twice" as times:
                return Outcome.DONE if self.raised[payload] >= ("once", "twice").index(times) + 1 else Outcome.RAISED
            case "refuse":
                return Outcome.FAILED
            case _:
                return Outcome.DONE


class BusyWorker(FakeWorker):
    """Looks that its engine is never given more than it can do."""

    @classmethod
    def of(cls, worker: FakeWorker) -> BusyWorker:
        worker.__class__ = cls
        assert isinstance(worker, BusyWorker)
        return worker

    @property
    def batch_size(self) -> int:
        return self.worker.identity.batch_size

    def handle(self, effect: object) -> None:
        super().handle(effect)
        assert len(self.running) <= self.worker.identity.concurrency, "more calls than the engine takes"
        assert all(len(call.executions) <= self.batch_size for call in self.running.values())


class Model(RuleBasedStateMachine):
    """The rules are what may happen to a fleet, and the invariants what must hold all the while.

    Whatever breaks heals by itself after a while, so that no run is spent on a fleet that is all gone.
    """

    network: Watched

    def __init__(self) -> None:
        super().__init__()
        self.clients: list[FakeClient] = []
        self.count = 0
        self.pace_s = 0.0
        self.withdrawn: set[bytes] = set()
        self.ended_at: dict[bytes, float] = {}

    @initialize(
        broker=st.sampled_from([BROKER, BROKER, FULL_BROKER]),
        seed=st.integers(0, 2**16),
        delay_s=st.sampled_from([0.001, 0.02, 0.15]),
        lag_s=st.sampled_from([0.0, 0.05, 0.5]),
        stale=st.sampled_from([0.0, 0.5]),
        twice=st.sampled_from([0.0, 0.0, 0.1]),
        high_water=st.sampled_from([64, HIGH_WATER]),
        workers=st.lists(KINDS, max_size=4),
        calls=st.lists(CALLS, max_size=4),
        pace_s=st.sampled_from([0.05, 0.1, 0.3, 0.0]),
    )
    def begin(
        self,
        broker: BrokerSettings,
        seed: int,
        delay_s: float,
        lag_s: float,
        stale: float,
        twice: float,
        high_water: int,
        workers: list[Kind],
        calls: list[Call],
        pace_s: float,
    ) -> None:
        self.network = Watched(broker, seed, delay_s, Weather(lag_s, stale, twice, high_water))
        self.pace_s = pace_s
        for kind in workers:
            self.network.spawn(kind)
        self.add_client()
        for call in calls:
            self.submit(0, call)

    # Who is there.

    @property
    def workers(self) -> list[FakeWorker]:
        return [end for end in self.network.ends if isinstance(end, FakeWorker)]

    def _worker(self, which: int) -> FakeWorker | None:
        return self.workers[which % len(self.workers)] if self.workers else None

    def _client(self, which: int) -> FakeClient | None:
        return self.clients[which % len(self.clients)] if self.clients else None

    def _end(self, which: int) -> Endpoint | None:
        ends = self.network.ends
        return ends[which % len(ends)] if ends else None

    @rule()
    def add_client(self) -> None:
        if len(self.clients) < 3:
            self.clients.append(self.network.add_client())

    @rule(kind=KINDS)
    def add_worker(self, kind: Kind) -> None:
        if len(self.workers) < 6:
            self.network.spawn(kind)

    # What clients do.

    @rule(which=WHICH, call=CALLS)
    def submit(self, which: int, call: Call) -> None:
        client = self._client(which)
        if client is None or not client.is_alive:
            return
        payloads: list[bytes] = []
        for word in call.words * call.copies:
            self.count += 1
            payloads.append(f"{word} {self.count}".encode() + b"." * (1200 if word == "long" else 0))
        client.submit(
            *payloads,
            llm=call.llm,
            wait_s=call.wait_s,
            timeout_s=call.timeout_s,
            n=call.n,
            hedge=call.hedge,
            as_run=call.as_run,
        )

    @rule(which=WHICH, call=CALLS, seconds=SECONDS)
    def submit_and_wait(self, which: int, call: Call, seconds: float) -> None:
        self.submit(which, call)
        self.network.run(seconds)

    @rule(which=WHICH, first=st.integers(0, 50), count=st.sampled_from([1, 3, 20]))
    def withdraw(self, which: int, first: int, count: int) -> None:
        client = self._client(which)
        if client is None or not client.is_alive:
            return
        rows = [row for row in client.rows if not row.over]
        chosen = rows[first % len(rows) :][:count] if rows else []
        self.withdrawn.update(row.payload for row in chosen)
        client.withdraw(chosen)

    @rule(which=WHICH, run=st.integers(0, 50))
    def withdraw_run(self, which: int, run: int) -> None:
        client = self._client(which)
        if client is None or not client.is_alive or not client.runs:
            return
        chosen = client.runs[run % len(client.runs)]
        self.withdrawn.update(payload for payload in chosen.payloads if payload not in client.endings)
        client.withdraw(chosen)

    @rule(which=WHICH, clean=st.booleans())
    def end_client(self, which: int, clean: bool) -> None:
        client = self._client(which)
        if client is None or len(self.clients) < 2 or (clean and not client.is_alive):
            return
        self.clients.remove(client)
        if clean:
            client.machine.end("done")
            client.perform(client.machine.flush(self.network.now))
            assert all(row.over for row in client.rows)
            self._look_at_rows_of(client)
        self.network.kill(client, clean=clean)

    # What befalls anybody.

    @rule(which=WHICH)
    def cut(self, which: int) -> None:
        end = self._end(which)
        if end is not None and self._may_close(end):
            self.network.cut(end)

    @rule(which=WHICH, how=st.sampled_from(["freeze", "stall", "cut off"]), away_s=AWAY)
    def stand_still(self, which: int, how: str, away_s: float) -> None:
        end = self._end(which)
        if end is None or not end.is_alive or end.is_cut_off:
            return
        match how:
            case "freeze":
                self.network.freeze(end)
            case "stall":
                self.network.stall(end)
            case _:
                self.network.cut_off(end)
        self.network.after(away_s, lambda: self._go_on(end))

    def _go_on(self, end: Endpoint) -> None:
        if end.is_cut_off:
            self.network.join(end)
        elif not end.is_dead and not end.is_alive:
            self.network.thaw(end)

    @rule(which=WHICH, delay_s=st.sampled_from([None, 0.5]))
    def slow(self, which: int, delay_s: float | None) -> None:
        end = self._end(which)
        if end is not None:
            end.delay_s = delay_s

    @rule(which=WHICH)
    def greet_twice(self, which: int) -> None:
        end = self._end(which)
        if isinstance(end, FakeWorker) and end.is_alive and end.machine.state is SessionState.OPEN:
            end.worker.loaded(end.worker.identity, self.network.now)
            end.perform(end.machine.flush(self.network.now))
        elif isinstance(end, FakeClient) and end.is_alive:
            self.network.send_up(end, end.client.identity)

    @rule()
    def echo(self) -> None:
        self.network.echo()

    # What befalls workers.

    def _may_close(self, end: Endpoint) -> bool:
        """Whether no innocent row could be blamed for it for the last permitted time."""
        network = self.network
        return all(network.guilt(payload) < 2 for payload in network.assigned.get(end, {}).values())

    @rule(which=WHICH, again=st.booleans())
    def kill_worker(self, which: int, again: bool) -> None:
        worker = self._worker(which)
        if worker is None or not self._may_close(worker):
            return
        self.network.kill(worker)
        if again:
            self.network.after(RESTART_S, lambda: self.network.spawn(self.network.kinds[worker]))

    @rule(which=WHICH)
    def drain(self, which: int) -> None:
        worker = self._worker(which)
        if worker is not None and worker.is_alive:
            worker.worker.drain(self.network.now)
            worker.perform(worker.machine.flush(self.network.now))

    @rule(which=WHICH, away_s=AWAY)
    def fall_ill(self, which: int, away_s: float) -> None:
        worker = self._worker(which)
        if worker is not None:
            self.network.sick.add(worker)
            self.network.after(away_s, lambda: self.network.sick.discard(worker))

    # What befalls the broker.

    @rule(clean=st.booleans(), away_s=AWAY)
    def kill_broker(self, clean: bool, away_s: float) -> None:
        if clean and self.network.is_broker_up:
            self.network.stop_broker()
        else:
            self.network.kill_broker()
        self.network.after(away_s, self._start_broker)

    def _start_broker(self) -> None:
        if self.network.broker is None:
            self.network.start_broker()

    @rule(times=st.sampled_from([1, 3]))
    def restart_broker(self, times: int) -> None:
        for _ in range(times):
            self.network.kill_broker()
            self.network.run(0.2)
            self._start_broker()
            self.network.run(0.3)

    @rule(away_s=AWAY)
    def freeze_broker(self, away_s: float) -> None:
        if self.network.is_broker_up:
            self.network.freeze_broker()
            self.network.after(away_s, self._thaw_broker)

    def _thaw_broker(self) -> None:
        if self.network.is_broker_frozen:
            self.network.thaw_broker()

    @rule(seconds=SECONDS)
    def wait(self, seconds: float) -> None:
        self.network.run(seconds)

    @invariant()
    def time_passes(self) -> None:
        self.network.run(self.pace_s)

    # What must hold.

    @invariant()
    def all_is_in_order(self) -> None:
        for client in self.clients:
            self._look_at_rows_of(client)
            look_at_client(client)
        if self.network.broker is not None:
            look_at_broker(self.network.broker)
            for row in self.network.broker.ledger.rows.values():
                is_fair = row.payload is None or row.record.charged <= self.network.guilt(bytes(row.payload))
                assert is_fair, f"{row.payload} is charged {row.record.charged} times"

    def _look_at_rows_of(self, client: FakeClient) -> None:
        for row in client.rows:
            endings = client.endings.get(row.payload, [])
            if row.payload in self.withdrawn:
                assert not endings, f"{row.payload} was withdrawn and has ended"
                assert row.over
            elif row.over:
                assert len(endings) == 1, f"{row.payload} has {len(endings)} ends"
                if row.payload not in self.ended_at:
                    self.ended_at[row.payload] = self.network.now
                    self._look_at_end(row, endings[0])
            else:
                assert not endings
                assert row.taken
                assert not self._is_late(client, row.spec), f"{row.payload} is late"
        for run in client.runs:
            self._look_at_run_of(client, run)

    def _look_at_run_of(self, client: FakeClient, run: Run) -> None:
        """The rows of a run that have never been rows by themselves."""
        payloads = set(run.payloads) - {row.payload for row in run.rows or ()}
        ended = {payload for payload in payloads if client.endings.get(payload)}
        assert ended == payloads or run.rows is None, "a row of a run is nowhere"
        assert run.rows is not None or run.left == len(payloads - ended)
        for payload in ended:
            (ending,) = client.endings[payload]
            assert word_of(payload) in ANSWERED
            assert isinstance(ending, Ending)
            assert ending.payload == answer(payload)
            assert payload not in self.withdrawn
            self.ended_at.setdefault(payload, self.network.now)
        assert ended == payloads or not self._is_late(client, run.spec), "a run is late"

    def _is_late(self, client: FakeClient, spec: RowSpec) -> bool:
        return client.is_alive and spec.deadline is not None and self.network.now > spec.deadline + 0.2

    def _look_at_end(self, row: Row, ending: Ending | GenpoolError) -> None:
        word, now = word_of(row.payload), self.network.now
        if isinstance(ending, Ending):
            self._look_at_answer(row, word, ending)
        elif isinstance(ending, Expired):
            assert row.spec.deadline is not None
            assert now >= row.spec.deadline
        elif isinstance(ending, (UnknownLLM, NoBroker)):
            assert now - row.since >= row.spec.wait_s - 0.001
        elif isinstance(ending, RowError):
            assert word == "long"
        else:
            assert isinstance(ending, Closed)

    def _look_at_answer(self, row: Row, word: str, ending: Ending) -> None:
        if ending.outcome == Outcome.DONE:
            assert word in ANSWERED
            assert ending.payload == answer(row.payload)
        elif ending.outcome == Outcome.EXPIRED:
            assert row.spec.deadline is not None
            assert self.network.now >= row.spec.deadline
        else:
            assert ending.outcome == Outcome.FAILED
            assert ending.attempts <= BROKER.max_attempts + 1
            is_like_poison = self.network.may_fail(row.payload, by_engine=ending.payload == answer(row.payload))
            assert word not in ANSWERED or is_like_poison, f"{row.payload} is innocent and failed"

    # The end: everything heals, and everything is answered.

    def teardown(self) -> None:
        if sys.exc_info()[0] is not None or not hasattr(self, "network"):
            return  # a step has failed: what follows would hide it
        network = self.network
        network.weather = Weather(high_water=network.weather.high_water)
        network.sick.clear()
        for end in list(network.ends):
            end.delay_s = None
        self._thaw_broker()
        self._start_broker()
        for end in list(network.ends):
            while not end.is_dead and (end.is_cut_off or not end.is_alive):
                self._go_on(end)
        for llm in sorted(set(LLMS)):
            network.spawn(Kind(llm, 2, 1, 0.01, aborts=False))
        network.run_until(lambda: all(is_done(client) for client in self.clients), 300.0)
        for llm in sorted(set(LLMS)):
            network.add_client().submit(*(f"ok at last {llm} {number}".encode() for number in range(10)), llm=llm)
        network.run(40.0)
        self.all_is_in_order()
        assert_nothing_left(network)
        assert all(client.done == 10 for client in network.ends[-2:] if isinstance(client, FakeClient))


def is_done(client: FakeClient) -> bool:
    return all(row.over for row in client.rows) and all(run.rows is not None or not run.left for run in client.runs)


def look_at_client(client: FakeClient) -> None:
    machine = client.client
    client.assert_books()
    assert all(line.at_broker <= max(WINDOW_ROWS, 4 * 6 * 15) for line in machine.lines.values())
    assert machine._held() <= LIMITS.max_client_rows
    assert sum(line.bytes_at_broker for line in machine.lines.values()) <= LIMITS.max_client_bytes
    somewhere = {id(row) for line in machine.lines.values() for row in line.waiting} | {
        id(row) for row in (*machine.submitted.values(), *machine.runs.values())
    }
    assert all(row.over or id(row) in somewhere for row in client.rows), "a row is nowhere"
    assert all(run.rows is not None or not run.left or id(run) in somewhere for run in client.runs), "a run is nowhere"


def look_at_broker(broker: Broker) -> None:
    ledger = broker.ledger
    for row in ledger.rows.values():
        look_at_broker_row(broker, row)
    assert ledger.row_bytes == sum(row.size for row in ledger.rows.values()) <= broker.settings.max_bytes
    for client in broker.clients.values():
        assert all(ledger.rows.get(row.id) is row and row.client is client for row in client.rows.values())
        assert client.row_bytes == sum(row.size for row in client.rows.values()) <= LIMITS.max_client_bytes
        assert not client.rows.keys() & client.refused.keys()
        assert len(client.rows) + len(client.refused) <= LIMITS.max_client_rows
        assert client.unread_bytes == sum(row.unread_bytes for row in client.rows.values())
        assert client.unread_bytes <= BROKER.max_unread_bytes + LIMITS.max_row_bytes
        assert all(row.state in (RowState.ANSWERED, RowState.RUNNING) for row in client.withheld)
        assert sum(isinstance(one, Fleet) for one in client.outbox) <= 1, "old news is kept"
    for peer in broker.peers.values():
        assert peer.hello.role == Role.CLIENT or isinstance(peer, Worker)
        if isinstance(peer, Worker):
            look_at_broker_worker(broker, peer)
    for llm in broker.llms.values():
        look_at_llm(llm)
        look_at_stragglers(broker, llm)


def look_at_broker_worker(broker: Broker, worker: Worker) -> None:
    assert worker.running == sum(not execution.finished for execution in worker.executions.values())
    assert worker.running <= worker.hello.concurrency * worker.hello.batch_size
    for number, execution in worker.executions.items():
        assert broker.ledger.executions.get(number) is execution
        assert execution.worker is worker
        assert execution in execution.row.executions
        assert broker.ledger.rows.get(execution.row.id) is execution.row, "an execution of a row that is gone"


def look_at_broker_row(broker: Broker, row: BrokerRow) -> None:
    assert all(broker.ledger.executions.get(one.id) is one for one in row.executions)
    assert row.client is None or row.client.rows.get(row.id) is row
    assert len({one.worker.hello.instance for one in row.executions}) == len(row.executions), "twice on one worker"
    assert 0 <= row.record.charged <= BROKER.max_attempts + 2
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
            pass  # where its worker is gone since, it runs again unless the client has the answer
        case RowState.GONE:
            raise AssertionError("a row is gone and known")


def look_at_llm(llm: LLM) -> None:
    assert all(row.state is RowState.SUSPECTED and row.record.suspect_group for row in llm.suspects)
    assert len(set(map(id, llm.suspects))) == len(llm.suspects)
    waiting = {id(row) for line in llm.queue._turns.values() for row in line if row.state is RowState.QUEUED}
    assert len(llm.queue) == len(waiting)
    for worker in llm.workers:
        assert (worker in llm.free) == bool(worker.free_calls)


def look_at_stragglers(broker: Broker, llm: LLM) -> None:
    watched = [execution for kind in llm.stragglers._kinds.values() for execution in kind.running.values()]
    assert len(set(map(id, watched))) == len(watched)
    for execution in watched:
        assert broker.ledger.executions.get(execution.id) is execution
        assert not execution.finished
    assert llm.stragglers.hedged >= llm.stragglers.hedges_won


def assert_nothing_left(network: Watched) -> None:
    """Once all is answered, no ledger holds anything, and every worker's whole credit is there."""
    broker = network.broker
    assert broker is not None
    assert not broker.ledger.rows
    assert not broker.ledger.executions
    for llm in broker.llms.values():
        assert not len(llm.queue)
        assert not llm.suspects
        for worker in llm.workers:
            assert not worker.running
            assert not worker.executions
            is_tried = worker.hello.instance in network.ever_sick  # with one call, until it has done one
            assert worker.free_calls == worker.hello.concurrency or is_tried
    for end in network.ends:
        assert end.machine.state is SessionState.OPEN
        assert_idle(end)


def assert_idle(end: Endpoint) -> None:
    if isinstance(end, FakeClient):
        assert not end.client.submitted
        assert not end.client.runs
        assert not end.client.lines
    elif isinstance(end, FakeWorker):
        assert not end.worker.held
        assert not end.worker.finished
        assert not end.worker.calls


@pytest.mark.timeout(60 + 2 * EXAMPLES)
def test_whatever_happens_no_row_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genpool.client.machine._LEAST_WINDOW_ROWS", WINDOW_ROWS)
    monkeypatch.setattr("genpool.worker.machine.MAX_HELD_BYTES", HELD_BYTES)
    monkeypatch.setattr("network.TICK_S", 0.1)
    monkeypatch.setattr("genpool.broker.straggler._LEAST_DURATIONS", 1)
    monkeypatch.setattr("genpool.broker.straggler._FIRST_ALLOWANCE", 5.0)
    run_state_machine_as_test(
        Model,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=50,
            deadline=None,
            database=None,
            print_blob=True,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
        ),
    )
