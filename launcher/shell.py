"""The launcher's shell: starts and ends processes, hears from them and from commands, and performs what the plan says.

One thread. Each process has a socket on which it says how it fares (``READY=1``, as for systemd), a log of its own,
and the lifeline: none of them outlives this process.
"""

from __future__ import annotations

import logging
import os
import random
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..protocol.errors import ConfigurationError
from ..protocol.lifeline import Lifeline, kill_session
from ..protocol.notify import VARIABLES, Notifier, Phase, notifier
from ..protocol.printable import printable
from ..protocol.signals import Signals
from .ear import EXIT_CANNOT_START, ear_folder, hear
from .gpu import VISIBLE
from .machine import Drain, Kill, Machine, Note, Process, Start
from .place import Place, Request, Status, parsed_request
from .service import Fleet

log = logging.getLogger("genpool.launcher")

# How often a service manager hears from here, where there is one.
_NOTIFY_EVERY_S = 0.5

# The kernel takes no longer time than 24 days to wait; a drain may have more.
_LONGEST_WAIT_S = 86400.0

# Who has asked looks for the answer many times a second. With fewer, one of as many who ask at once waits for ever.
_KEPT_ANSWERS = 100

# What is looked at for a process's last line.
_TAIL_BYTES = 4096

_STDERR = 2


@dataclass(slots=True, eq=False)
class _Running:
    """A process that runs. ``said`` is what it tells of itself, ``log_begin`` where its log begins in the file."""

    process: Process
    popen: subprocess.Popen[bytes]
    ear: socket.socket
    log_begin: int
    said: str = ""


class Launcher:
    """Runs what a fleet file asks for, until it is told to stop.

    Args:
        place: where to log, and to tell what runs.
        pipe: what ``Place.occupy`` gave.
        read: reads the fleet file as it is now. Raises ConfigurationError.
    """

    def __init__(self, place: Place, pipe: int, read: Callable[[], Fleet]) -> None:
        self._place, self._pipe, self._read = place, pipe, read
        self._machine = Machine(random.random)
        self._running: dict[Process, _Running] = {}
        self._heard = bytearray()
        self._answers: dict[str, str] = {}
        self._told: Status | None = None
        self._stopped_by: int | None = None
        self._is_forced = False
        self._next_socket = 0

    def run(self) -> int:
        """Returns the exit code."""
        fleet = self._read()
        manager = notifier()
        with ExitStack() as stack:
            stack.callback(os.close, self._pipe)
            stack.callback(self._place.leave)
            self._lifeline = stack.enter_context(Lifeline())
            self._signals = stack.enter_context(Signals(*_stops(), signal.SIGCHLD))
            self._selector = stack.enter_context(selectors.DefaultSelector())
            self._sockets = Path(stack.enter_context(ear_folder()))
            self._log_to_file(stack)
            self._selector.register(self._signals, selectors.EVENT_READ, self._on_signals)
            self._selector.register(self._pipe, selectors.EVENT_READ, self._on_requests)
            self._machine.want(fleet, time.monotonic())
            self._loop(manager)
        return 128 + (self._stopped_by or 0) if self._is_forced else 0

    def _log_to_file(self, stack: ExitStack) -> None:
        """For ``genpool up`` and ``down`` elsewhere, which show what happens here."""
        path = self._place.own_log
        path.touch()
        if os.path.samestat(os.fstat(_STDERR), path.stat()):
            return
        handler = logging.FileHandler(path)
        handler.setFormatter(next((one.formatter for one in logging.getLogger().handlers), None))
        log.addHandler(handler)
        stack.callback(handler.close)
        stack.callback(log.removeHandler, handler)

    def _loop(self, manager: Notifier | None) -> None:
        was_ready = False
        while True:
            self._perform()
            self._tell()
            if self._machine.is_over:
                return
            now = time.monotonic()
            if not was_ready and self._machine.is_settled:
                was_ready = True
                log.info("all are ready")
            next_at = self._machine.next_at()
            timeout_s = None if next_at is None else min(max(0.0, next_at - now), _LONGEST_WAIT_S)
            if manager is not None:
                self._notify(manager, now, was_ready=was_ready)
                timeout_s = _NOTIFY_EVERY_S if timeout_s is None else min(timeout_s, _NOTIFY_EVERY_S)
            for key, _ in self._selector.select(timeout_s):
                key.data()
            self._machine.tick(time.monotonic())

    def _notify(self, manager: Notifier, now: float, *, was_ready: bool) -> None:
        phase = Phase.STOPPING if self._machine.is_stopping else Phase.SERVING if was_ready else Phase.STARTING
        states = Counter(str(process.state) for process in self._machine.processes)
        manager.tick(now, phase, ", ".join(f"{count} {state}" for state, count in states.items()))

    # What comes in.

    def _on_signals(self) -> None:
        for number in self._signals.read():
            if number == signal.SIGCHLD:
                self._reap()
            elif self._stopped_by is None:
                self._stopped_by = number
                log.info("%s: all are asked to end", signal.Signals(number).name)
                self._machine.stop(time.monotonic())
            else:
                self._stopped_by, self._is_forced = number, True
                self._machine.kill()

    def _reap(self) -> None:
        for running in list(self._running.values()):
            code = running.popen.poll()
            if code is None:
                continue
            # What its engine has started must not outlive it, and may hold its memory or its GPU.
            kill_session(running.popen.pid)
            del self._running[running.process]
            self._selector.unregister(running.ear)
            running.ear.close()
            last_line = _last_line(self._place.log_of(running.process.name), running.log_begin)
            self._machine.ended(running.process, code, time.monotonic(), last_line)

    def _on_notice(self, running: _Running) -> None:
        if self._running.get(running.process) is not running:
            return  # its end was heard in the same moment, before this
        try:
            is_ready, said = hear(running.ear)
        except BlockingIOError:
            return
        running.said = running.said if said is None else said
        if is_ready:
            self._machine.came_up(running.process, time.monotonic())

    def _on_requests(self) -> None:
        self._heard += os.read(self._pipe, 1 << 16)
        while b"\n" in self._heard:
            line, _, self._heard = self._heard.partition(b"\n")
            request = parsed_request(bytes(line))
            if request is not None:
                self._answer(request)

    def _answer(self, request: Request) -> None:
        self._answers[request.token] = self._do(request, time.monotonic())
        if len(self._answers) > _KEPT_ANSWERS:
            del self._answers[next(iter(self._answers))]

    def _do(self, request: Request, now: float) -> str:
        """Do what is asked for. Returns why it is not done, and nothing where it is."""
        if request.what == "down":
            log.info("all are asked to end")
            self._machine.stop(now, request.timeout_s)
        elif self._machine.is_stopping:
            return "it is ending; call `genpool up` when it is gone"
        else:
            try:
                self._machine.want(self._read(), now)
            except ConfigurationError as error:
                log.error("nothing is changed: %s", error)
                return str(error)
            for name in request.restart:
                self._machine.restart(name, now)
        return ""

    # What goes out.

    def _perform(self) -> None:
        while effects := self._machine.flush():
            for effect in effects:
                match effect:
                    case Start(process):
                        self._start(process)
                    case Drain(process) if process in self._running:
                        self._running[process].popen.terminate()
                    case Kill(process) if process in self._running:
                        kill_session(self._running[process].popen.pid)
                    case Note(level, text):
                        log.log(logging.getLevelNamesMapping()[level.upper()], "%s", printable(text))
                    case _:
                        pass  # it has ended meanwhile, which will be heard

    def _start(self, process: Process) -> None:
        fleet = self._machine.fleet
        assert fleet is not None
        ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        # A new one for each start: what the last process said must not be taken for the next one's.
        path = self._sockets / str(self._next_socket)
        self._next_socket += 1
        try:
            ear.bind(str(path))
            with self._place.log_of(process.name).open("ab") as stream:
                log_begin = stream.tell()
                popen = self._lifeline.start(
                    [sys.executable, "-m", "genpool.cli", *process.recipe.arguments],
                    cwd=fleet.path.parent,
                    env=self._environment(process, path),
                    stdout=stream,
                    stderr=stream,
                )
        except (OSError, ValueError) as error:  # the latter of what no process can be given
            ear.close()
            self._machine.ended(process, EXIT_CANNOT_START, time.monotonic(), f"it cannot be started: {error}")
            return
        ear.setblocking(False)
        running = self._running[process] = _Running(process, popen, ear, log_begin)
        self._selector.register(ear, selectors.EVENT_READ, lambda: self._on_notice(running))
        gpus = f", GPU {','.join(process.gpus)}" if process.gpus else ""
        log.info("%s is started (pid %d%s)", process.name, popen.pid, gpus)

    @staticmethod
    def _environment(process: Process, path: Path) -> dict[str, str]:
        environment = {**os.environ, **dict(process.recipe.environment)}
        if process.recipe.gpus is not None:
            environment[VISIBLE] = ",".join(process.gpus)
        return {**environment, VARIABLES[0]: str(path)}

    def _tell(self) -> None:
        """Write down what there is, where it has changed."""
        fleet = self._machine.fleet
        assert fleet is not None
        status = Status(
            pid=os.getpid(),
            fleet=str(fleet.path),
            answers=dict(self._answers),
            is_settled=self._machine.is_settled,
            processes=[self._described(process) for process in self._machine.processes],
        )
        if status != self._told:
            self._told = status
            try:
                self._place.tell(status)
            except ConfigurationError as error:  # a full disk, say
                log.warning("%s", error)

    def _described(self, process: Process) -> dict[str, Any]:
        running = self._running.get(process)
        return {
            "name": process.name,
            "service": process.service,
            "state": str(process.state),
            "pid": None if running is None else running.popen.pid,
            "gpus": list(process.gpus),
            "restarts": process.restarts,
            "says": "" if running is None else running.said,
        }


def _stops() -> list[signal.Signals]:
    """The signals that drain: the end of the terminal is one, unless ``nohup`` says that it is none."""
    stops = [signal.SIGTERM, signal.SIGINT]
    return stops if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [*stops, signal.SIGHUP]


def _last_line(path: Path, begin: int) -> str:
    """What was logged last, from ``begin`` of the file on."""
    try:
        with path.open("rb") as file:
            file.seek(max(begin, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
