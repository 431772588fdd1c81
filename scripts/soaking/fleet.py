"""The fleet of a soak: what is done to its processes, and their supervisor, which starts again what has ended."""

from __future__ import annotations

import heapq
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from commands import Commands, until
from forwarder import Forwarder

from genpool.protocol.address import read_connection_file

from .plan import Fault, Kind

# How soon what has ended by itself is started again.
_RESTART_S = 0.3

# A worker that drains finishes its rows, and waits some seconds for a broker that is away.
_END_LIMIT_S = 60.0
_LOOK_S = 0.01
_DEAF_S = 5.0


@dataclass(slots=True, eq=False)
class Slot:
    """A place in the fleet, and the process that is there now. ``is_behind`` says that a forwarder cuts it off."""

    name: str
    llm: str
    start: Callable[[], subprocess.Popen[bytes]]
    process: subprocess.Popen[bytes]
    is_behind: bool = False
    is_frozen: bool = False
    told_to_end: bool = False
    since: float = 0.0

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_up(self) -> bool:
        """Whether it is as it should be, so that something can be done to it."""
        return self.process.poll() is None and not self.is_frozen and not self.told_to_end


@dataclass(slots=True)
class History:
    """What was done: when which process was killed or drained, when frozen, and who ended for no reason."""

    died: dict[int, float] = field(default_factory=dict[int, float])
    drained: dict[int, float] = field(default_factory=dict[int, float])
    frozen: list[tuple[int, float, float]] = field(default_factory=list[tuple[int, float, float]])
    crashed: list[str] = field(default_factory=list[str])


class SoakFleet:
    """A broker, and ``replicas`` workers of each LLM, every other one behind a forwarder."""

    def __init__(
        self, commands: Commands, llms: list[str], replicas: int, environment: Callable[[str], dict[str, str]]
    ) -> None:
        self.history = History()
        self._commands = commands
        self._file = commands.folder / "broker.json"
        first = commands.start_broker("tcp://127.0.0.1:*", self._file)
        until(self._file.exists, "the broker's connection file")
        self.address = read_connection_file(self._file).address
        self.broker = Slot("broker", "", self._start_broker, first)
        self.client_side = Forwarder(self.address)
        self._worker_side = Forwarder(self.address)
        self._environment = environment
        self.workers = [self._new_worker(llm, number) for number in range(replicas) for llm in llms]
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    def _start_broker(self) -> subprocess.Popen[bytes]:
        return self._commands.start_broker(self.address, self._file)

    def _new_worker(self, llm: str, number: int) -> Slot:
        name, is_behind = f"{llm}-{number}", bool(number % 2)
        broker = self._worker_side.address if is_behind else self.address
        arguments = (name, llm, broker, "--load", "scripted_llm:load")

        def start() -> subprocess.Popen[bytes]:
            return self._commands.start_worker(*arguments, environment=self._environment(llm))

        return Slot(name, llm, start, start(), is_behind)

    # Faults.

    def victims(self, fault: Fault) -> list[Slot] | None:
        """Whose work ``fault`` interrupts; None when it cannot happen now."""
        slot = self.workers[fault.target]
        match fault.kind:
            case Kind.WORKER_KILLED | Kind.WORKER_FROZEN | Kind.WORKER_DRAINED:
                return [slot] if slot.is_up else None
            case Kind.WORKERS_CUT:
                return [slot for slot in self.workers if slot.is_behind]
            case Kind.BROKER_KILLED | Kind.BROKER_FROZEN | Kind.BROKER_DRAINED:
                return [] if self.broker.is_up else None
            case _:
                return []

    def inflict(self, fault: Fault, now: float, healed: Callable[[], None]) -> None:
        """Do what the fault says. ``healed`` is called when its cause is over."""
        slot = self.workers[fault.target] if fault.kind.startswith("worker ") else self.broker
        match fault.kind:
            case Kind.WORKER_KILLED | Kind.BROKER_KILLED:
                slot.told_to_end = True
                slot.process.kill()
                slot.process.wait()
                self.history.died[slot.pid] = now
                self._at(now + fault.lasts_s, lambda: self._restart(slot, healed))
            case Kind.WORKER_DRAINED | Kind.BROKER_DRAINED:
                slot.told_to_end = True
                slot.process.terminate()
                self.history.drained[slot.pid] = now
                self._at(now, lambda: self._restart_when_ended(slot, now, healed))
            case Kind.WORKER_FROZEN | Kind.BROKER_FROZEN:
                slot.is_frozen = True
                os.kill(slot.pid, signal.SIGSTOP)
                self.history.frozen.append((slot.pid, now, now + fault.lasts_s))
                self._at(now + fault.lasts_s, lambda: self._thaw(slot, healed))
            case Kind.WORKERS_CUT:
                self._worker_side.cut()
                healed()
            case Kind.CLIENT_CUT:
                self.client_side.cut()
                healed()
            case Kind.POISON:
                healed()

    # Supervision.

    def supervise(self, now: float) -> None:
        """Do what is due, and have started again what has ended by itself."""
        while self._due and now >= self._due[0][0]:
            heapq.heappop(self._due)[2]()
        for slot in [self.broker, *self.workers]:
            code = slot.process.poll()
            if code is None or slot.told_to_end:
                continue
            slot.told_to_end = True
            if code == -signal.SIGKILL:
                self.history.died[slot.pid] = now  # by a poisonous row
            else:
                self.history.crashed.append(f"{slot.name} ({slot.pid}) ended by itself with {code}")
            self._at(now + _RESTART_S, lambda slot=slot: self._restart(slot))

    def heal(self) -> None:
        """End all faults now: who is frozen goes on, who is away is started."""
        due, self._due = sorted(self._due), []
        for _, _, action in due:
            action()

    @property
    def is_whole(self) -> bool:
        return all(slot.is_up for slot in [self.broker, *self.workers])

    def close(self) -> None:
        self.client_side.close()
        self._worker_side.close()

    def _at(self, at: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._due, (at, next(self._order), action))

    def _restart(self, slot: Slot, healed: Callable[[], None] = lambda: None) -> None:
        slot.process, slot.since = slot.start(), time.monotonic()
        slot.told_to_end = False
        healed()

    def _restart_when_ended(self, slot: Slot, since: float, healed: Callable[[], None]) -> None:
        now = time.monotonic()
        code = slot.process.poll()
        if code is None and now < since + _END_LIMIT_S:
            self._at(now + _LOOK_S, lambda: self._restart_when_ended(slot, since, healed))
            return
        # One that has hardly started does not listen to signals yet, and holds nothing either.
        if code != 0 and (code != -signal.SIGTERM or now > slot.since + _DEAF_S):
            what = "did not end" if code is None else f"ended with {code}"
            self.history.crashed.append(f"{slot.name} ({slot.pid}) {what} {now - since:.1f} s after SIGTERM")
            slot.process.kill()
            slot.process.wait()
        self._restart(slot, healed)

    def _thaw(self, slot: Slot, healed: Callable[[], None]) -> None:
        os.kill(slot.pid, signal.SIGCONT)
        slot.is_frozen = False
        healed()
