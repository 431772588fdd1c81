"""An in-memory network that joins the three real state machines, with time as an argument.

Messages go through the real codec. A connection keeps their order, may be slow, and loses what is under way when it
is cut; the broker learns of a cut at its next send, as from a mandatory ROUTER. What a process that stands still was
sent waits for it, up to the high-water mark. ``Weather`` makes it worse.
"""

from __future__ import annotations

import copy
import heapq
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

from genpool.broker import outgoing
from genpool.broker.machine import Broker
from genpool.broker.settings import BrokerSettings
from genpool.client.machine import Client, Ended, RunEnded
from genpool.client.row import Ending, Row, RowSpec
from genpool.client.run import Run
from genpool.protocol import session
from genpool.protocol.codec import decode, encode
from genpool.protocol.errors import GenpoolError
from genpool.protocol.frames import Payload
from genpool.protocol.messages import Hello, Message, Outcome, Role
from genpool.protocol.session import Session, SessionSettings
from genpool.worker.machine import Exit, Load, RowResult, StartCall, StopRow, Worker

TICK_S = 0.05
FRAME_BYTES = 4096

# How many broken connections can be heard of again.
_REMEMBERED = 4


@dataclass(frozen=True, slots=True)
class Weather:
    """What a network may do beyond delay and loss. Nothing by default.

    Attributes:
        lag_s: each end learns of a break within so long, and what it sends until then is lost.
        stale: how likely it is that the first of what was under way at a break arrives after all: at the broker
            perhaps behind the hello of the next connection, at a peer before it learns of the break.
        twice: how likely it is that a message arrives twice.
        high_water: how many messages that a peer has not read yet the broker may send.
    """

    lag_s: float = 0.0
    stale: float = 0.0
    twice: float = 0.0
    high_water: int = 64


@dataclass(eq=False)
class Mail:
    """One direction of a connection: when each message arrives, in order."""

    waiting: deque[tuple[float, list[bytes]]] = field(default_factory=deque[tuple[float, list[bytes]]])
    last: float = 0.0

    def put(self, at: float, frames: list[bytes]) -> float:
        self.last = max(self.last, at)
        self.waiting.append((self.last, frames))
        return self.last

    def take(self, now: float) -> Message | None:
        if not self.waiting or self.waiting[0][0] > now:
            return None
        return decode(self.waiting.popleft()[1])

    def keep(self, count: int) -> None:
        """All but the first ``count`` are lost."""
        while len(self.waiting) > count:
            self.waiting.pop()


@dataclass(eq=False)
class Wire:
    """One connection. ``is_open`` is what the broker thinks of it, ``end.wire is wire`` what the peer does.

    ``is_broken`` when nothing passes any more, ``is_silent`` when the broker gave it up because it heard nothing.
    """

    id: bytes
    end: Endpoint
    is_open: bool = True
    is_broken: bool = False
    is_silent: bool = False
    hello: Message | None = None
    up: Mail = field(default_factory=Mail)
    down: Mail = field(default_factory=Mail)


@dataclass(eq=False)
class Endpoint:
    """A client or worker with its machine and, while it has one, its wire.

    ``is_alive`` is false while the process stands still and when it is over (``is_dead``); ``is_cut_off`` is true
    while its host's network passes nothing on. ``delay_s`` is its own, where it is slower than the others.
    """

    network: Network
    machine: Session
    wire: Wire | None = None
    is_alive: bool = True
    is_dead: bool = False
    is_cut_off: bool = False
    delay_s: float | None = None
    unheard: int = 0  # how often it stood still or was cut off
    put_off: list[Callable[[], None]] = field(default_factory=list[Callable[[], None]])

    def perform(self, effects: Iterable[object]) -> None:
        for effect in effects:
            match effect:
                case session.Open():
                    self.network.open(self)
                case session.Close():
                    self.network.close(self, effect.linger_s)
                case session.Send():
                    self.network.send_up(self, effect.message)
                case session.Log():
                    self.network.log.append(effect.text)
                case _:
                    self.handle(effect)

    def handle(self, effect: object) -> None:
        raise NotImplementedError


@dataclass(eq=False)
class FakeWorker(Endpoint):
    """A worker whose engine takes ``run_s`` for a call, or runs until ``finish`` when that is None."""

    run_s: float | None = 0.01
    running: dict[int, StartCall] = field(default_factory=dict[int, StartCall])
    started: list[int] = field(default_factory=list[int])
    stopped: list[int] = field(default_factory=list[int])
    # An outcome of None is the end of the process.
    outcome: Callable[[bytes], int | None] = lambda payload: Outcome.DONE
    answer: Callable[[bytes], bytes] = lambda payload: b"answer to " + payload
    aborts: bool = False
    loads: int = 0
    exit_code: int | None = None

    @property
    def worker(self) -> Worker:
        assert isinstance(self.machine, Worker)
        return self.machine

    def handle(self, effect: object) -> None:
        match effect:
            case StartCall():
                self.running[effect.call] = effect
                self.started += effect.executions
                self.network.computed.update(map(bytes, effect.payloads))
                if self.run_s is not None:
                    self.network.after(self.run_s, lambda: self.finish(effect.call))
            case Load():
                self.loads += 1
            case StopRow():
                self.stopped.append(effect.execution)
                if self.aborts:
                    self.network.after(0.0, lambda: self._abort(effect.execution))
            case Exit():
                self.exit_code = effect.code
                self.network.kill(self, clean=True)
            case _:
                raise AssertionError(effect)

    def finish(self, call: int | None = None) -> None:
        """The engine is done with a call (the oldest)."""
        number = next(iter(self.running)) if call is None else call
        if not self.is_alive:
            self.put_off.append(lambda: self.finish(number))
            return
        started = self.running.pop(number, None)
        if started is None or self.is_dead:
            return
        results: list[RowResult] = []
        for execution, payload in zip(started.executions, map(bytes, started.payloads), strict=True):
            outcome = self.outcome(payload)
            if outcome is None:
                self.network.kill(self)
                return
            self.network.finished(self, execution, payload, outcome)
            results.append(RowResult(execution, outcome, self.answer(payload), 1))
        self.worker.rows_ended(number, results, self.network.now)
        self.worker.call_ended(number, self.network.now)
        self.perform(self.machine.flush(self.network.now))

    def _abort(self, execution: int) -> None:
        """A call that nobody wants anything of ends at once."""
        for number, call in list(self.running.items()):
            if execution in call.executions and not any(one in self.worker.held for one in call.executions):
                self.finish(number)


@dataclass(eq=False)
class FakeClient(Endpoint):
    """A client that counts how each of its rows ended."""

    ends_at_once = 1
    runs_user_code = True
    endings: dict[bytes, list[Ending | GenpoolError]] = field(
        default_factory=dict[bytes, "list[Ending | GenpoolError]"]
    )
    runs: list[Run] = field(default_factory=list[Run])
    _rows: list[Row] = field(default_factory=list[Row])

    @property
    def rows(self) -> list[Row]:
        """Every row that is or was one by itself."""
        return [*self._rows, *(row for run in self.runs for row in run.rows or ())]

    @property
    def client(self) -> Client:
        assert isinstance(self.machine, Client)
        return self.machine

    def handle(self, effect: object) -> None:
        if isinstance(effect, Ended):
            for row in effect.rows:
                assert row.ending is not None
                self.endings.setdefault(row.payload, []).append(row.ending)
        elif isinstance(effect, RunEnded):
            for row in effect.run.ended(effect.first, effect.payloads):
                assert row.ending is not None
                self.endings.setdefault(row.payload, []).append(row.ending)

    def submit(
        self,
        *payloads: bytes,
        llm: str = "llm",
        wait_s: float = 60.0,
        timeout_s: float | None = None,
        n: int = 1,
        hedge: float = 0.0,
        as_run: bool = False,
    ) -> list[Row]:
        deadline = None if timeout_s is None else self.network.now + timeout_s
        spec = RowSpec(llm, "input", n, b"", deadline, wait_s, hedge=hedge)
        rows = [Row(self.network.random.randbytes(16), spec, payload, self, 0, 0) for payload in payloads]
        if as_run:
            self.runs.append(Run(spec, self, 0, payloads))
            self.client.submit(self.runs[-1], self.network.now)
        else:
            self._rows += rows
            self.client.submit(rows, self.network.now)
        self.perform(self.machine.flush(self.network.now))
        return rows

    def withdraw(self, rows: Iterable[Row] | Run) -> None:
        self.client.withdraw(rows, self.network.now)
        self.perform(self.machine.flush(self.network.now))

    def ended(self, rows: list[Row]) -> None:
        raise AssertionError("the network reads effects instead")

    def run_ended(self, run: Run, first: int, payloads: Sequence[Payload]) -> None:
        raise AssertionError("the network reads effects instead")

    def assert_books(self) -> None:
        """What the machine counts is what there is."""
        machine = self.client
        assert {row.id for row in self.rows if row.submitted and not row.over} == set(machine.submitted)
        left = {run: [one for one in run.payloads if one not in self.endings] for run in machine.runs.values()}
        assert all(run.left == len(payloads) for run, payloads in left.items())
        assert machine._held() == len(machine.submitted) + sum(map(len, left.values()))
        for line in machine.lines.values():
            here = [row.payload for row in machine.submitted.values() if row.spec.llm == line.llm]
            here += [payload for run, payloads in left.items() if run.spec.llm == line.llm for payload in payloads]
            assert (line.at_broker, line.bytes_at_broker) == (len(here), sum(map(len, here)))
            rows = [row for row in line.waiting if isinstance(row, Row)]
            assert line.dead == sum(row.over for row in rows)
            runs = [run for run in line.waiting if isinstance(run, Run)]
            assert line.at_home == len(rows) - line.dead + sum(map(len, runs))

    @property
    def done(self) -> int:
        return sum(
            isinstance(one, Ending) and one.outcome == Outcome.DONE for all_ in self.endings.values() for one in all_
        )


class Network:
    """A broker with the clients and workers that are added to it."""

    def __init__(
        self,
        settings: BrokerSettings | None = None,
        *,
        seed: int = 0,
        delay_s: float = 0.001,
        weather: Weather | None = None,
        session_settings: SessionSettings | None = None,
    ) -> None:
        self.settings = settings or BrokerSettings()
        self.session_settings = session_settings or SessionSettings()
        self.weather = weather or Weather()
        self.random = random.Random(seed)
        self.delay_s = delay_s
        self.now = 100.0
        self.log: list[str] = []
        self.computed: Counter[bytes] = Counter()  # payload -> how often an engine began it
        self.broker: Broker | None = None
        self.ends: list[Endpoint] = []
        self._stood_still_since: float | None = None
        self._wires: dict[bytes, Wire] = {}
        self._past: deque[Wire] = deque(maxlen=_REMEMBERED)
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._order = count()
        self._next_tick = self.now
        self.start_broker()

    # What a test may look at, by overriding it.

    def sent_down(self, wire: Wire, message: Message) -> None:
        """The broker has sent this, and the connection is sound as far as it knows."""

    def sent_up(self, wire: Wire, message: Message) -> None:
        """A peer has sent this."""

    def heard(self, wire: Wire, message: Message) -> None:
        """The broker is about to receive this."""

    def finished(self, worker: FakeWorker, execution: int, payload: bytes, outcome: int) -> None:
        """An engine is done with a row."""

    def closing(self, wire: Wire) -> None:
        """The broker is about to see, or could see, that this connection is closed."""

    # Who is there.

    def start_broker(self) -> None:
        self.broker = Broker(self.settings, self.random.randbytes(16), self.now)
        self._stood_still_since = None

    def kill_broker(self) -> None:
        self.broker = self._stood_still_since = None
        wires, self._wires = list(self._wires.values()), {}
        for wire in wires:
            self._break(wire)

    def stop_broker(self) -> None:
        """It ends with a last word."""
        assert self.broker is not None
        self._perform(self.broker.stop("it was stopped"))
        self.broker = None
        wires, self._wires = list(self._wires.values()), {}
        for wire in wires:
            self.after(self.delay_s * 2, lambda wire=wire: self._break(wire))

    def freeze_broker(self) -> None:
        """Its process stands still; what it is sent waits."""
        self._stood_still_since = self.now

    def thaw_broker(self) -> None:
        """It goes on: it sees that it stood still, ticks, and only then reads what waits."""
        assert self.broker is not None
        assert self._stood_still_since is not None
        gap_s, self._stood_still_since = self.now - self._stood_still_since, None
        if gap_s > 1.0:
            self.broker.stood_still(gap_s, self.now)
        self.broker.connection_broke(self.now)
        self._perform(self.broker.tick(self.now))
        self._poll()

    @property
    def is_broker_up(self) -> bool:
        return self.broker is not None and self._stood_still_since is None

    @property
    def is_broker_frozen(self) -> bool:
        return self._stood_still_since is not None

    def add_worker(
        self,
        llm: str = "llm",
        *,
        concurrency: int = 1,
        batch_size: int = 1,
        run_s: float | None = 0.01,
        ready: bool = True,
    ) -> FakeWorker:
        identity = self._hello(Role.WORKER)
        identity.llm, identity.concurrency, identity.batch_size = llm, concurrency, batch_size
        machine = Worker("broker", identity, self.session_settings, self.random.random, self.now)
        worker = FakeWorker(self, machine, run_s=run_s)
        self.ends.append(worker)
        if ready:
            worker.worker.loaded(replace(identity, model_name="model"), self.now)
        return worker

    def add_client(self) -> FakeClient:
        machine = Client("broker", self._hello(Role.CLIENT), self.session_settings, self.random.random, self.now)
        client = FakeClient(self, machine)
        self.ends.append(client)
        return client

    def _hello(self, role: Role) -> Hello:
        return Hello(role=role, instance=self.random.randbytes(16), host="host", pid=1)

    def kill(self, end: Endpoint, *, clean: bool = False) -> None:
        """The process ends; its connection closes at once (with what was sent, after a clean end)."""
        end.is_alive, end.is_dead = False, True
        self.ends.remove(end)
        wire, end.wire = end.wire, None
        if wire is not None:
            leave_s = max(0.0, wire.up.last - self.now) + self.delay_s if clean else 0.0
            self.after(leave_s, lambda: self._break(wire))

    # What happens to connections.

    def cut(self, end: Endpoint) -> None:
        """The connection breaks; both processes live. What is under way is lost."""
        if end.wire is not None:
            self._break(end.wire)

    def freeze(self, end: Endpoint) -> None:
        """The process stands still, and the broker drops it when that lasts longer than the heartbeat timeout."""
        end.is_alive = False
        self._listen_for(end)

    def stall(self, end: Endpoint) -> None:
        """The process reads and does nothing, but libzmq in it answers heartbeats: something holds the GIL."""
        end.is_alive = False

    def thaw(self, end: Endpoint) -> None:
        """It goes on, reads what waits, and finds its connection broken if that was dropped meanwhile."""
        end.is_alive = True
        end.unheard += 1
        wire = end.wire
        if wire is not None:
            self._read(wire)
            if wire.is_broken:
                self._break_here(wire)
        put_off, end.put_off = end.put_off, []
        for action in put_off:
            action()
        if end.is_alive:
            end.perform(end.machine.tick(self.now))

    def cut_off(self, end: Endpoint) -> None:
        """Its host's network passes nothing on, in either direction, and says nothing of it."""
        end.is_cut_off = True
        self._listen_for(end)

    def join(self, end: Endpoint) -> None:
        """The network is back. TCP sends what waited, unless the connection was given up meanwhile."""
        end.is_cut_off = False
        end.unheard += 1
        wire = end.wire
        if wire is not None and wire.is_broken:
            self._break_here(wire)
        elif wire is not None:
            self._read(wire)
        self._poll()

    def _listen_for(self, end: Endpoint) -> None:
        end.unheard += 1
        wire, token = end.wire, end.unheard
        if wire is not None:
            self.after(self.settings.heartbeat_timeout_s, lambda: self._drop_silent(wire, token))

    def echo(self) -> None:
        """The hello of an old connection comes once more, behind whatever has come since."""
        if self._past and self.broker is not None and self.is_broker_up:
            wire = self._past.popleft()
            if wire.hello is not None:
                self.heard(wire, wire.hello)
                self.broker.received(wire.id, wire.hello, self.now)
            self.closing(wire)  # it has taken the place of the present one, and is found closed
            self._perform(self.broker.flush(self.now))

    def _drop_silent(self, wire: Wire, token: int) -> None:
        end = wire.end
        if end.unheard != token or wire.is_broken:
            return
        if self.is_broker_frozen:
            self.after(TICK_S, lambda: self._drop_silent(wire, token))
            return
        wire.is_broken = wire.is_silent = True
        wire.is_open = False
        if end.is_cut_off:
            wire.up.keep(0)
            wire.down.keep(0)
        self._broker_sees_a_break()

    def _break(self, wire: Wire) -> None:
        if wire.is_broken:
            return
        wire.is_broken = True
        self._past.append(wire)
        for mail in (wire.up, wire.down):
            is_kept = not wire.end.is_cut_off and self.random.random() < self.weather.stale
            mail.keep(self.random.randint(0, len(mail.waiting)) if is_kept else 0)
        self._after_lag(lambda: self._break_there(wire))
        self._after_lag(lambda: self._break_here(wire))

    def _after_lag(self, action: Callable[[], None]) -> None:
        if self.weather.lag_s:
            self.after(self.random.uniform(0.0, self.weather.lag_s), action)
        else:
            action()

    def _break_there(self, wire: Wire) -> None:
        """The broker's end sees it; that of a host which is cut off only by its silence."""
        if wire.end.is_cut_off and wire.is_open:
            self.after(self.settings.heartbeat_timeout_s, lambda: self._silence_there(wire))
        elif wire.is_open:
            self.closing(wire)
            wire.is_open = False
            self._broker_sees_a_break()

    def _silence_there(self, wire: Wire) -> None:
        wire.is_silent = wire.is_silent or wire.is_open
        wire.is_open = False
        self._broker_sees_a_break()

    def _broker_sees_a_break(self) -> None:
        if self.broker is not None and self.is_broker_up:
            self.broker.connection_broke(self.now)

    def _break_here(self, wire: Wire) -> None:
        """The peer sees it, behind what had arrived."""
        end = wire.end
        if end.wire is not wire or not end.is_alive or end.is_cut_off:
            return
        wire.down.waiting = deque((self.now, frames) for _, frames in wire.down.waiting)
        self._read(wire)
        if end.wire is wire:
            end.wire = None
            end.machine.broken("it was cut", self.now)
            end.perform(end.machine.flush(self.now))

    def close(self, end: Endpoint, linger_s: float) -> None:
        """One end closes the connection itself; with a linger, what it has sent still arrives."""
        wire, end.wire = end.wire, None
        if wire is not None:
            self.after(linger_s, lambda: self._break(wire)) if linger_s else self._break(wire)

    def open(self, end: Endpoint) -> None:
        wire = Wire(self.random.randbytes(5), end)
        end.wire = wire
        if self.broker is None:
            self.after(self.delay_s, lambda: self._break(wire))
        else:
            self._wires[wire.id] = wire

    def send_up(self, end: Endpoint, message: Message) -> None:
        wire = end.wire
        if wire is not None:
            self.sent_up(wire, message)
            wire.hello = wire.hello or copy.deepcopy(message)
            self._deliver(wire, wire.up, message, self._poll)

    def _poll(self) -> None:
        """The broker reads all that is there, from each connection in turn, and then acts."""
        if not self.is_broker_up or self.broker is None:
            return
        is_any = False
        while ready := [(wire, message) for wire in list(self._wires.values()) if (message := self._next_up(wire))]:
            is_any = True
            for wire, message in ready:
                self.heard(wire, message)
                self.broker.received(wire.id, message, self.now)
        if is_any:
            self._perform(self.broker.flush(self.now))

    def _next_up(self, wire: Wire) -> Message | None:
        return None if wire.end.is_cut_off else wire.up.take(self.now)

    def _perform(self, effects: Iterable[object]) -> None:
        assert self.broker is not None
        blocked: dict[bytes, bool] = {}
        for effect in effects:
            if isinstance(effect, outgoing.Log):
                self.log.append(effect.text)
                continue
            assert isinstance(effect, outgoing.Send), "nobody here is to be dropped"
            wire = self._wires.get(effect.peer)
            if effect.peer not in blocked and wire is not None and wire.is_open:
                if len(wire.down.waiting) < self.weather.high_water:
                    self._send_down(wire, effect.message)
                    continue
                blocked[effect.peer] = False
            is_first = effect.peer not in blocked
            gone = blocked.setdefault(effect.peer, True)
            silent = gone and is_first and wire is not None and wire.is_silent
            self.broker.send_failed(effect.peer, effect.message, gone=gone, silent=silent, now=self.now)

    def _send_down(self, wire: Wire, message: Message) -> None:
        self.sent_down(wire, message)
        self._deliver(wire, wire.down, message, lambda: self._read(wire))

    def _read(self, wire: Wire) -> None:
        """The peer reads all that is there, and then acts."""
        end = wire.end
        if end.wire is not wire or not end.is_alive or end.is_cut_off:
            return
        is_any = False
        while message := wire.down.take(self.now):
            is_any = True
            end.machine.received(message, self.now)
        if is_any:
            end.perform(end.machine.flush(self.now))

    def _deliver(self, wire: Wire, mail: Mail, message: Message, arrive: Callable[[], None]) -> None:
        if wire.is_broken:
            return
        frames = [bytes(frame) for frame in encode(message, FRAME_BYTES)]
        for _ in range(2 if self.random.random() < self.weather.twice else 1):
            delay_s = self.delay_s if wire.end.delay_s is None else wire.end.delay_s
            at = mail.put(self.now + delay_s * self.random.uniform(0.5, 1.5), frames)
            heapq.heappush(self._events, (at, next(self._order), arrive))

    # Time.

    def after(self, delay_s: float, action: Callable[[], object]) -> None:
        heapq.heappush(self._events, (self.now + delay_s, next(self._order), action))

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while True:
            next_event = self._events[0][0] if self._events else end
            self.now = max(self.now, min(next_event, self._next_tick, end))
            if self._events and self._events[0][0] <= self.now:
                heapq.heappop(self._events)[2]()
            elif self._next_tick <= self.now:
                self._next_tick += TICK_S
                self._tick()
            elif self.now >= end:
                return

    def _tick(self) -> None:
        for end in list(self.ends):
            if end.is_alive:
                end.perform(end.machine.tick(self.now))
        if self.broker is not None and self.is_broker_up:
            self._perform(self.broker.tick(self.now))
            for wire in [wire for wire in self._wires.values() if not wire.is_open and not wire.up.waiting]:
                del self._wires[wire.id]

    def run_until(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
        """Let time pass until ``condition`` holds; fails when it does not within ``seconds``."""
        end = self.now + seconds
        while not condition():
            assert self.now < end, "the condition did not come true; log:\n" + "\n".join(self.log[-20:])
            self.run(0.01)
