"""The launcher as a state machine: which processes to start, stop and replace, in which order, and whose the GPUs are.

No I/O, no clock. What happened goes in with the time; what to do comes out of ``flush`` as data.

    pending ──▶ starting ──▶ ready ──▶ draining ──▶ gone
       ▲  (a backoff)  └────────┴──▶ final: it ended in a way that another start would not mend
       └───────────────────────┘
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum, auto

from ..protocol.backoff import FINAL, Backoff
from ..protocol.lifeline import describe_exit
from .service import Fleet, Recipe, Service


class State(StrEnum):
    """Of one process."""

    PENDING = auto()
    STARTING = auto()
    READY = auto()
    DRAINING = auto()
    FINAL = auto()


@dataclass(frozen=True, slots=True)
class Start:
    """Effect: start the process."""

    process: Process


@dataclass(frozen=True, slots=True)
class Drain:
    """Effect: ask the process to end (SIGTERM)."""

    process: Process


@dataclass(frozen=True, slots=True)
class Kill:
    """Effect: end the process at once."""

    process: Process


@dataclass(frozen=True, slots=True)
class Note:
    """Effect: tell people. ``level`` is logging's."""

    level: str
    text: str


@dataclass(slots=True, eq=False)
class Process:
    """A place for one process, over all its restarts; what replaces it is another one.

    ``number`` tells those of a service apart. ``due`` is when a pending one is started, ``ready_at`` when it last
    became ready, ``kill_at`` when a draining one is ended by force.
    """

    service: str
    recipe: Recipe
    is_broker: bool
    number: int
    epoch: int
    gpus: tuple[str, ...]
    backoff: Backoff
    due: float
    state: State = State.PENDING
    ready_at: float | None = None
    kill_at: float | None = None
    restarts: int = 0

    @property
    def name(self) -> str:
        return f"{self.service}-{self.number}"


@dataclass(slots=True)
class Machine:
    """See the module. ``draw`` gives numbers from 0 to 1, for the jitter of restarts."""

    draw: Callable[[], float]
    fleet: Fleet | None = None
    processes: list[Process] = field(default_factory=list[Process])
    is_stopping: bool = False
    _services: dict[str, Service] = field(default_factory=dict[str, Service])
    _epochs: Counter[str] = field(default_factory=Counter[str])
    _effects: list[object] = field(default_factory=list[object])

    # What goes in.

    def want(self, fleet: Fleet, now: float) -> None:
        """Bring everything to this state from now on. What had ended for good is tried once more."""
        self.fleet = fleet
        self._services = {service.name: service for service in fleet.services}
        for process in self._of(State.FINAL):
            self.processes.remove(process)
        self._reconcile(now)

    def restart(self, name: str, now: float) -> None:
        """Replace every process of the service, one by one."""
        self._epochs[name] += 1
        self._reconcile(now)

    def came_up(self, process: Process, now: float) -> None:
        """It serves."""
        if process.state is State.STARTING:
            process.state, process.ready_at = State.READY, now
            self._note("info", f"{process.name} is ready")
            self._reconcile(now)

    def make_room(self, process: Process, now: float) -> None:
        """There is no room for it as long as those that it replaces are there: one of them goes first."""
        mine = [one for one in self.processes if one.service == process.service]
        stale = [one for one in mine if one.state is State.READY and not self._is_current(one)]
        if stale and not any(one.state is State.DRAINING for one in mine):
            self._let_go(_least(stale), now)

    def ended(self, process: Process, code: int, now: float, last_line: str = "") -> None:
        """Its process is gone. ``last_line`` is what it logged last."""
        why = f"{process.name} ended ({describe_exit(code)})" + (f": {last_line}" if code and last_line else "")
        if process.state is State.DRAINING:
            self.processes.remove(process)
            self._note("info", f"{process.name} is stopped")
        elif code in FINAL:
            process.state = State.FINAL
            self._note("info" if code == 0 else "error", f"{why}; `genpool up` starts it again")
        else:
            pause_s = process.backoff.pause_s(0.0 if process.ready_at is None else now - process.ready_at)
            process.state, process.due = State.PENDING, now + pause_s
            process.restarts += 1
            self._note("warning", f"{why}; it is started again in {pause_s:.1f} s")
        process.ready_at = None
        self._reconcile(now)

    def stop(self, now: float, patience_s: float | None = None) -> None:
        """Drain everything, the broker last, and kill what is not gone after ``patience_s``."""
        assert self.fleet is not None
        self.is_stopping = True
        patience_s = self.fleet.drain_s if patience_s is None else patience_s
        self.fleet = Fleet(self.fleet.path, drain_s=patience_s)
        self._services = {}
        for process in self._of(State.DRAINING):
            process.kill_at = min(process.kill_at or now + patience_s, now + patience_s)
        self._reconcile(now)

    def kill(self) -> None:
        """End everything at once. Only after ``stop``."""
        self._effects += [Kill(one) for one in self.processes if one.state not in (State.PENDING, State.FINAL)]

    def tick(self, now: float) -> None:
        """Time has passed."""
        for process in self._of(State.DRAINING):
            if process.kill_at is not None and now >= process.kill_at:
                process.kill_at = None
                self._note("warning", f"{process.name} did not end in time; it is killed")
                self._effects.append(Kill(process))
        self._reconcile(now)

    # What comes out.

    def flush(self) -> list[object]:
        """What is to be done, in order, since the last call."""
        effects, self._effects = self._effects, []
        return effects

    def next_at(self) -> float | None:
        """When the next ``tick`` is due; None when nothing waits for time to pass."""
        times = [process.due for process in self._of(State.PENDING)]
        times += [process.kill_at for process in self._of(State.DRAINING) if process.kill_at is not None]
        return min(times, default=None)

    @property
    def is_settled(self) -> bool:
        """Whether everything is as the fleet file says, and ready."""
        ready = Counter(process.service for process in self.processes if self._is_current(process))
        wanted = Counter({service.name: service.replicas for service in self._services.values()})
        return ready == wanted and all(process.state is State.READY for process in self.processes)

    @property
    def is_over(self) -> bool:
        """Whether it was told to stop and nothing is left."""
        return self.is_stopping and not self.processes

    # The plan.

    def _reconcile(self, now: float) -> None:
        for service in self._services.values():
            while self._step(service, now):
                pass
        for process in [one for one in self.processes if one.service not in self._services]:
            if not process.is_broker:
                self._let_go(process, now)
        # Workers hand over what they finish while they drain: the broker goes when none is left that does.
        if not any(self._is_leaving(one) for one in self.processes if not one.is_broker):
            for process in [one for one in self.processes if one.is_broker and one.service not in self._services]:
                self._let_go(process, now)
        self._start_due(now)

    def _step(self, service: Service, now: float) -> bool:
        """Do the next thing that brings the service nearer to what is wanted. False when there is none for now."""
        mine = [one for one in self.processes if one.service == service.name and one.state is not State.DRAINING]
        stale = [one for one in mine if not self._is_current(one)]
        current = [one for one in mine if self._is_current(one)]
        # Those serve nobody.
        if idle := next((one for one in stale if one.state is not State.READY), None):
            return self._let_go(idle, now)
        if len(mine) < service.replicas:
            if self._add(service, now):
                return True
            # Without this, each look would take one old replica more away, while one still makes room.
            if any(one.state is State.DRAINING and one.gpus for one in self.processes):
                return False
        if not stale:
            return len(mine) > service.replicas and self._let_go(_least(current), now)
        # Rolling: one after the other, and the next when the new one is ready, so that somebody serves at all times.
        if any(one.state is not State.READY for one in current):
            return False
        if len(mine) > service.replicas:
            return self._let_go(_least(stale), now)
        # The new one comes first where there is room for both; two brokers cannot have one address.
        if not service.is_broker and self._add(service, now):
            return True
        return self._let_go(_least(stale), now)

    def _add(self, service: Service, now: float) -> bool:
        """A place for one process more, if its GPUs are free and no broker is in its way."""
        if service.is_broker and any(one.is_broker for one in self.processes):
            return False
        count = service.recipe.gpus or 0
        free = self._free_gpus()
        if len(free) < count:
            return False
        numbers = {one.number for one in self.processes if one.service == service.name}
        number = next(number for number in range(1, len(numbers) + 2) if number not in numbers)
        self.processes.append(
            Process(
                service=service.name,
                recipe=service.recipe,
                is_broker=service.is_broker,
                number=number,
                epoch=self._epochs[service.name],
                gpus=free[:count],
                backoff=Backoff(self.draw),
                due=now,
            )
        )
        return True

    def _free_gpus(self) -> tuple[str, ...]:
        assert self.fleet is not None
        taken = {gpu for process in self.processes for gpu in process.gpus}
        return tuple(gpu for gpu in self.fleet.gpus if gpu not in taken)

    def _let_go(self, process: Process, now: float) -> bool:
        assert self.fleet is not None
        if process.state in (State.PENDING, State.FINAL):  # nothing runs
            self.processes.remove(process)
        elif process.state is not State.DRAINING:
            process.state, process.kill_at = State.DRAINING, now + self.fleet.drain_s
            self._note("info", f"{process.name} is asked to end")
            self._effects.append(Drain(process))
        return True

    def _start_due(self, now: float) -> None:
        for process in self._of(State.PENDING):
            if now >= process.due:
                process.state = State.STARTING
                self._effects.append(Start(process))

    def _is_current(self, process: Process) -> bool:
        """Whether it is as the fleet file says."""
        assert self.fleet is not None
        service = self._services.get(process.service)
        return (
            service is not None
            and process.recipe == service.recipe
            and process.epoch == self._epochs[process.service]
            and set(process.gpus) <= set(self.fleet.gpus)
        )

    def _is_leaving(self, process: Process) -> bool:
        return process.state is State.DRAINING or not self._is_current(process)

    def _of(self, state: State) -> list[Process]:
        return [process for process in self.processes if process.state is state]

    def _note(self, level: str, text: str) -> None:
        self._effects.append(Note(level, text))


def _least(processes: list[Process]) -> Process:
    """The one that is missed least: it does not serve, or it came last."""
    return max(processes, key=lambda one: (one.state is not State.READY, one.number))
