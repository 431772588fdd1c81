"""``genpool up --on ray``: the replicas of a fleet file as actors of a Ray cluster, which outlive this command.

Ray places each actor on a host that has what it needs, and on another when that one is lost. The actor is
``replica.Replica``; the order of starts and ends is that of ``machine.py``; this is the shell between them.
"""

from __future__ import annotations

import importlib
import logging
import os
import random
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..protocol.errors import ConfigurationError
from ..protocol.printable import printable
from .machine import Drain, Kill, Machine, Note, Process, Start, State
from .ray_file import RayFile, read_ray
from .ray_plan import Order, fingerprint_of, found, name_of, orders_of, wanted
from .replica import Replica
from .service import Fleet

log = logging.getLogger("genpool.launcher")

_NAMESPACE = "genpool"

_LOOK_S = 0.2

# An actor that answers nothing for so long has no host. A smaller value takes a slow one for such; with a larger one a
# replacement on a full cluster takes longer.
_SILENT_S = 10.0

# An actor's name is free again a moment after its end.
_NAME_S = 10.0

# For a first connection. Ray itself tries for minutes, and says little.
_CONNECT_S = 10.0

_EXIT_USELESS = 2


def bring_up(file: Path, fleet: Fleet, names: tuple[str, ...], end: float | None) -> int:
    """Bring the cluster to the state that the file describes. Returns the exit code.

    Args:
        file: the fleet file.
        fleet: what it says.
        names: the LLMs whose replicas are replaced, changed or not.
        end: when to give up, by ``time.monotonic``; None for never.
    """
    ray_file = read_ray(file, fleet)
    with _Connection(ray_file) as ray:
        cluster = Cluster(ray, ray_file.name, orders_of(fleet, ray_file), fleet.path.parent)
        return cluster.bring_up(wanted(fleet, ray_file), names, end)


def take_down(file: Path, fleet: Fleet, patience_s: float | None) -> int:
    """Drain and end all replicas of the file. Returns the exit code."""
    ray_file = read_ray(file, fleet)
    with _Connection(ray_file) as ray:
        Cluster(ray, ray_file.name, {}, fleet.path.parent).take_down(wanted(fleet, ray_file), patience_s)
    return 0


class _Connection:
    """To the cluster; gives the module ``ray``."""

    def __init__(self, file: RayFile) -> None:
        self._address = file.address or os.environ.get("RAY_ADDRESS") or "auto"

    def __enter__(self) -> Any:
        try:
            self._ray: Any = importlib.import_module("ray")
        except ImportError as error:
            raise ConfigurationError(
                f'--on ray needs Ray, which is not installed here ({error}): pip install "genpool[ray]"'
            ) from error
        try:
            self._look()
            self._ray.init(
                address=self._address, namespace=_NAMESPACE, log_to_driver=False, logging_level=logging.ERROR
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigurationError(
                f"no Ray cluster is reached at {self._address!r} ({_first_line(error)}): call this on one of its "
                'hosts, or name it in the fleet file, as in [ray] address = "HOST:6379"'
            ) from error
        return self._ray

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

    def _look(self) -> None:
        host, _, port = self._address.rpartition("://")[2].rpartition(":")
        if host and port.isdecimal():
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()


@dataclass(slots=True, eq=False)
class _Actor:
    """``question`` is what it was asked and has not answered, ``silent_since`` when it was asked first."""

    process: Process
    handle: Any
    silent_since: float
    is_leaving: bool = False
    is_told: bool = False  # that it has no host
    question: Any = None
    restarts: int = 0


class Cluster:
    """The actors of one fleet.

    Args:
        ray: the module, connected.
        name: the fleet's.
        orders: by fingerprint, what may be started.
        folder: where the replicas run, unless Ray brings them a folder of their own.
    """

    def __init__(self, ray: Any, name: str, orders: Mapping[str, Order], folder: Path) -> None:
        self._ray, self._name, self._orders, self._folder = ray, name, orders, folder
        self._class: Any = ray.remote(Replica)
        self._machine = Machine(random.random)
        self._actors: dict[Process, _Actor] = {}
        self._unnamed: dict[Process, float] = {}  # to be made, and when to give up

    def bring_up(self, fleet: Fleet, names: tuple[str, ...], end: float | None) -> int:
        """See the module's."""
        self._adopt(fleet)
        self._machine.want(fleet, time.monotonic())
        for name in names:
            self._machine.restart(name, time.monotonic())
        machine = self._machine
        self._loop(lambda: machine.is_settled or self._is_stuck or (end is not None and time.monotonic() >= end))
        if machine.is_settled:
            log.info("all %d are ready", len(machine.processes))
            return 0
        if failed := [one.name for one in machine.processes if one.state is State.FINAL]:
            log.error("%s ended; Ray has the logs", ", ".join(failed))
        else:
            log.warning("not all are ready yet; call `genpool up` again to go on")
        return 1

    def take_down(self, fleet: Fleet, patience_s: float | None) -> None:
        """See the module's."""
        self._adopt(fleet)
        if not self._machine.processes:
            log.info("nothing of %s runs on this cluster", fleet.path)
        self._machine.fleet = fleet
        self._machine.stop(time.monotonic(), patience_s)
        self._loop(lambda: self._machine.is_over)

    @property
    def _is_stuck(self) -> bool:
        """Whether one ended for good and nothing else is under way."""
        states = {process.state for process in self._machine.processes}
        return State.FINAL in states and states <= {State.FINAL, State.READY}

    def _adopt(self, fleet: Fleet) -> None:
        """What is there already, and how it is."""
        now = time.monotonic()
        for process in found(self._name, self._ray.util.list_named_actors()):
            try:
                handle = self._ray.get_actor(name_of(self._name, process), namespace=_NAMESPACE)
            except ValueError:
                continue  # it has gone in this moment
            self._actors[process] = _Actor(process, handle, now)
        self._ask()
        end = now + _SILENT_S
        while time.monotonic() < end and any(actor.question is not None for actor in self._actors.values()):
            for actor, answer in self._answers():
                self._place(actor, answer, fleet.drain_s)
        self._machine.processes = list(self._actors)

    def _place(self, actor: _Actor, answer: dict[str, Any] | None, drain_s: float) -> None:
        if answer is None or answer["is_over"]:
            # It serves nobody, and its name may be needed.
            self._end(actor)
        elif answer["is_leaving"]:  # by a command that was cut off
            actor.is_leaving = True
            actor.process.state, actor.process.kill_at = State.DRAINING, time.monotonic() + drain_s
        elif answer["is_ready"]:
            actor.process.state = State.READY
        actor.restarts = 0 if answer is None else answer["restarts"]

    def _loop(self, is_done: Callable[[], bool]) -> None:
        while True:
            self._perform()
            self._make_named()
            if is_done():
                return
            self._ask()
            for actor, answer in self._answers():
                self._hear(actor, answer)
            self._notice_silence()
            self._machine.tick(time.monotonic())

    # What comes in.

    def _ask(self) -> None:
        for actor in self._actors.values():
            if actor.question is None:
                actor.question = (actor.handle.leave if actor.is_leaving else actor.handle.state).remote()

    def _answers(self) -> list[tuple[_Actor, Any]]:
        """What was answered within a moment: None by an actor that is dead for good."""
        errors = self._ray.exceptions
        asked = {actor.question: actor for actor in self._actors.values() if actor.question is not None}
        end = time.monotonic() + _LOOK_S
        done: list[Any] = self._ray.wait(list(asked), num_returns=len(asked), timeout=_LOOK_S)[0] if asked else []
        answers: list[tuple[_Actor, Any]] = []
        for question in done:
            actor = asked[question]
            actor.question = None
            try:
                answers.append((actor, self._ray.get(question)))
                actor.silent_since = time.monotonic()
            except errors.ActorUnavailableError:
                pass  # Ray restarts it
            except errors.RayError as error:
                log.error("%s cannot run: %s", actor.process.name, _last_line(error))
                answers.append((actor, None))
        time.sleep(max(0.0, end - time.monotonic()))
        return answers

    def _hear(self, actor: _Actor, answer: Any) -> None:
        now, process = time.monotonic(), actor.process
        if answer is None:
            self._end(actor)
            self._machine.ended(process, _EXIT_USELESS, now)
        elif isinstance(answer, bool):
            if answer:
                self._end(actor)
                self._machine.ended(process, 0, now)
        elif answer["is_over"]:
            self._end(actor)
            self._machine.ended(process, answer["code"], now, answer["last_line"])
        elif answer["is_ready"]:
            if process.state is State.STARTING:
                log.info("%s serves on %s (pid %s)", process.name, answer["host"], answer["pid"])
            self._machine.came_up(process, now)
        elif answer["restarts"] > actor.restarts:
            log.warning("%s has ended, and is started again: %s", process.name, printable(answer["last_line"]))
            actor.restarts = answer["restarts"]

    def _notice_silence(self) -> None:
        now = time.monotonic()
        for actor in list(self._actors.values()):
            if now - actor.silent_since < _SILENT_S:
                continue
            actor.silent_since = now
            if actor.is_leaving:  # nothing runs that could drain
                self._end(actor)
                self._machine.ended(actor.process, 0, now)
            elif actor.process.state is State.STARTING:
                if not actor.is_told:
                    log.info("%s waits for a host of the cluster that has room for it", actor.process.name)
                actor.is_told = True
                self._machine.make_room(actor.process, now)

    # What goes out.

    def _perform(self) -> None:
        while effects := self._machine.flush():
            for effect in effects:
                match effect:
                    case Start(process):
                        self._unnamed[process] = time.monotonic() + _NAME_S
                    case Drain(process) if process in self._actors:
                        actor = self._actors[process]
                        actor.is_leaving, actor.question = True, None
                    case Drain(process) | Kill(process):
                        if process in self._actors:
                            self._end(self._actors[process])
                        self._unnamed.pop(process, None)
                        self._machine.ended(process, 0, time.monotonic())
                    case Note(level, text):
                        log.log(logging.getLevelNamesMapping()[level.upper()], "%s", printable(text))
                    case _:
                        pass

    def _make_named(self) -> None:
        for process, end in list(self._unnamed.items()):
            order = self._orders[fingerprint_of(process)]
            brings_folder = "working_dir" in order.options.get("runtime_env", {})
            try:
                handle = self._class.options(
                    name=name_of(self._name, process),
                    namespace=_NAMESPACE,
                    lifetime="detached",
                    max_restarts=-1,
                    **order.placement,
                ).remote(
                    order.recipe.arguments, dict(order.recipe.environment), None if brings_folder else str(self._folder)
                )
            except ValueError as error:  # its name is taken
                if time.monotonic() < end:
                    continue
                del self._unnamed[process]
                self._machine.ended(process, _EXIT_USELESS, time.monotonic(), _first_line(error))
            else:
                del self._unnamed[process]
                self._actors[process] = _Actor(process, handle, time.monotonic())
                log.info("%s is started", process.name)

    def _end(self, actor: _Actor) -> None:
        """Its process ends with it."""
        del self._actors[actor.process]
        self._ray.kill(actor.handle, no_restart=True)


def _first_line(error: Exception) -> str:
    return printable(next(iter(str(error).splitlines()), "") or type(error).__name__)


def _last_line(error: Exception) -> str:
    """Where Ray passes on a traceback of another host, its last line says why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return printable(lines[-1] if lines else type(error).__name__)
