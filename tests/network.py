"""An in-memory network that joins the three real state machines, with time as an argument.

Messages go through the real codec. A connection keeps their order, may be slow, and loses what is under way when it
is cut; the broker learns of a cut at its next send, as from a mandatory ROUTER.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

from genpool.broker import outgoing
from genpool.broker.machine import Broker
from genpool.broker.settings import BrokerSettings
from genpool.client.machine import Client, Ended
from genpool.client.row import Ending, Row, RowSpec
from genpool.protocol import session
from genpool.protocol.codec import decode, encode
from genpool.protocol.errors import GenpoolError
from genpool.protocol.messages import Hello, Message, Outcome, Role
from genpool.protocol.session import Session, SessionSettings
from genpool.worker.machine import Exit, Load, RowResult, StartCall, StopRow, Worker

TICK_S = 0.05
FRAME_BYTES = 4096


@dataclass(eq=False)
class Wire:
    """One connection. ``is_open`` is false once either end has closed it, or the broker has heard nothing of it."""

    id: bytes
    end: Endpoint
    is_open: bool = True
    is_silent: bool = False
    # When the last message of each direction arrives: order is kept.
    arrivals: dict[str, float] = field(default_factory=lambda: {"up": 0.0, "down": 0.0})


@dataclass(eq=False)
class Endpoint:
    """A client or worker with its machine and, while it has one, its wire."""

    network: Network
    machine: Session
    wire: Wire | None = None
    is_alive: bool = True

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
    outcome: Callable[[bytes], int] = lambda payload: Outcome.DONE
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
                self.network.computed.update(effect.payloads)
                if self.run_s is not None:
                    self.network.after(self.run_s, lambda: self.finish(effect.call))
            case Load():
                self.loads += 1
            case StopRow():
                self.stopped.append(effect.execution)
            case Exit():
                self.exit_code = effect.code
                self.network.kill(self, clean=True)
            case _:
                raise AssertionError(effect)

    def finish(self, call: int | None = None) -> None:
        """The engine is done with a call (the oldest)."""
        number = next(iter(self.running)) if call is None else call
        started = self.running.pop(number, None)
        if started is None or not self.is_alive:
            return
        for execution, payload in zip(started.executions, started.payloads, strict=True):
            result = RowResult(execution, self.outcome(payload), b"answer to " + payload, 1)
            self.worker.row_ended(result, self.network.now)
        self.worker.call_ended(number, self.network.now)
        self.perform(self.machine.flush(self.network.now))


@dataclass(eq=False)
class FakeClient(Endpoint):
    """A client that counts how each of its rows ended."""

    endings: dict[bytes, list[Ending | GenpoolError]] = field(
        default_factory=dict[bytes, "list[Ending | GenpoolError]"]
    )
    rows: list[Row] = field(default_factory=list[Row])

    @property
    def client(self) -> Client:
        assert isinstance(self.machine, Client)
        return self.machine

    def handle(self, effect: object) -> None:
        if isinstance(effect, Ended):
            for row, ending in effect.rows:
                self.endings.setdefault(row.payload, []).append(ending)

    def submit(
        self, *payloads: bytes, llm: str = "llm", wait_s: float = 60.0, timeout_s: float | None = None, n: int = 1
    ) -> list[Row]:
        deadline = None if timeout_s is None else self.network.now + timeout_s
        spec = RowSpec(llm, "input", n, b"", deadline, wait_s)
        rows = [Row(self.network.random.randbytes(16), spec, payload, self, (0, 0)) for payload in payloads]
        self.rows += rows
        self.client.submit(rows, self.network.now)
        self.perform(self.machine.flush(self.network.now))
        return rows

    def withdraw(self, rows: Iterable[Row]) -> None:
        self.client.withdraw(rows, self.network.now)
        self.perform(self.machine.flush(self.network.now))

    def ended(self, row: Row, ending: Any) -> None:
        raise AssertionError("the network reads effects instead")

    @property
    def done(self) -> int:
        return sum(
            isinstance(one, Ending) and one.outcome == Outcome.DONE for all_ in self.endings.values() for one in all_
        )


class Network:
    """A broker with the clients and workers that are added to it."""

    def __init__(self, settings: BrokerSettings | None = None, *, seed: int = 0, delay_s: float = 0.001) -> None:
        self.settings = settings or BrokerSettings()
        self.random = random.Random(seed)
        self.delay_s = delay_s
        self.now = 100.0
        self.log: list[str] = []
        self.computed: Counter[bytes] = Counter()  # payload -> how often an engine began it
        self.broker: Broker | None = None
        self.ends: list[Endpoint] = []
        self._wires: dict[bytes, Wire] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._next_tick = self.now
        self.start_broker()

    # Who is there.

    def start_broker(self) -> None:
        self.broker = Broker(self.settings, self.random.randbytes(16), self.now)

    def kill_broker(self) -> None:
        self.broker = None
        for wire in list(self._wires.values()):
            self._break(wire)
        self._wires.clear()

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
        machine = Worker("broker", identity, SessionSettings(), self.random.random, self.now)
        worker = FakeWorker(self, machine, run_s=run_s)
        self.ends.append(worker)
        if ready:
            worker.worker.loaded(replace(identity, model_name="model"), self.now)
        return worker

    def add_client(self) -> FakeClient:
        machine = Client("broker", self._hello(Role.CLIENT), SessionSettings(), self.random.random, self.now)
        client = FakeClient(self, machine)
        self.ends.append(client)
        return client

    def _hello(self, role: Role) -> Hello:
        return Hello(role=role, instance=self.random.randbytes(16), host="host", pid=1)

    def kill(self, end: Endpoint, *, clean: bool = False) -> None:
        """The process ends; its connection closes at once (with what was sent, after a clean end)."""
        end.is_alive = False
        self.ends.remove(end)
        if end.wire is not None:
            wire = end.wire
            self.after(self.delay_s * 2 if clean else 0.0, lambda: self._break(wire))

    # What happens to connections.

    def cut(self, end: Endpoint) -> None:
        """The connection breaks; both processes live. What is under way is lost."""
        if end.wire is not None:
            self._break(end.wire)

    def freeze(self, end: Endpoint) -> None:
        """The process, or its host, stands still for longer than the heartbeat timeout allows."""
        end.is_alive = False
        if end.wire is not None:
            wire = end.wire
            self.after(self.settings.heartbeat_timeout_s, lambda: self._drop_silent(wire))

    def thaw(self, end: Endpoint) -> None:
        """It goes on, and finds its connection broken if that was dropped meanwhile."""
        end.is_alive = True
        if end.wire is not None and not end.wire.is_open:
            self._break(end.wire)

    def _drop_silent(self, wire: Wire) -> None:
        if wire.is_open and not wire.end.is_alive:
            wire.is_open, wire.is_silent = False, True

    def _break(self, wire: Wire) -> None:
        wire.is_open = False
        if wire.end.wire is wire:
            wire.end.wire = None
            if wire.end.is_alive:
                wire.end.machine.broken("it was cut", self.now)
                wire.end.perform(wire.end.machine.flush(self.now))

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
        if wire is None:
            return
        frames = encode(message, FRAME_BYTES)
        self._deliver(wire, "up", lambda: self._up(wire, frames))

    def _up(self, wire: Wire, frames: list[bytes]) -> None:
        if self.broker is not None and wire.is_open and wire.id in self._wires:
            self.broker.received(wire.id, decode(frames), self.now)
            self._perform(self.broker.flush(self.now))

    def _perform(self, effects: Iterable[object]) -> None:
        assert self.broker is not None
        gone: set[bytes] = set()
        for effect in effects:
            if isinstance(effect, outgoing.Log):
                self.log.append(effect.text)
                continue
            assert isinstance(effect, outgoing.Send)
            wire = self._wires.get(effect.peer)
            if wire is None or not wire.is_open or effect.peer in gone:
                gone.add(effect.peer)
                self._wires.pop(effect.peer, None)
                silent = wire is not None and wire.is_silent
                self.broker.send_failed(effect.peer, effect.message, gone=True, silent=silent, now=self.now)
            else:
                self._send_down(wire, effect.message)

    def _send_down(self, wire: Wire, message: Message) -> None:
        frames = encode(message, FRAME_BYTES)
        self._deliver(wire, "down", lambda: self._down(wire, frames))

    def _down(self, wire: Wire, frames: list[bytes]) -> None:
        if wire.is_open and wire.end.wire is wire and wire.end.is_alive:
            wire.end.machine.received(decode(frames), self.now)
            wire.end.perform(wire.end.machine.flush(self.now))

    def _deliver(self, wire: Wire, direction: str, action: Callable[[], None]) -> None:
        at = max(wire.arrivals[direction], self.now + self.delay_s * self.random.uniform(0.5, 1.5))
        wire.arrivals[direction] = at
        heapq.heappush(self._events, (at, next(self._order), action))

    # Time.

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
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
        if self.broker is not None:
            self._perform(self.broker.tick(self.now))

    def run_until(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
        """Let time pass until ``condition`` holds; fails when it does not within ``seconds``."""
        end = self.now + seconds
        while not condition():
            assert self.now < end, "the condition did not come true; log:\n" + "\n".join(self.log[-20:])
            self.run(0.01)
