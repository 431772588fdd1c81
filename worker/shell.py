"""The worker's shell: loads the LLM, runs engine calls in threads, and performs what the machine decides.

Threads: the main one owns the socket (and signals), ``engine-loader`` loads the LLM, ``engine-N`` make the calls, and
``close-watch`` ends the process where the LLM's own end hangs. Engine threads never touch the network: what they have
to say is posted to the main thread's loop.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from ..protocol.codec import decode, encode
from ..protocol.dealer import SILENCE, Dealer
from ..protocol.errors import ConfigurationError, DecodeError, EngineDead, EngineUnwell
from ..protocol.logs import bind
from ..protocol.memory import keep_freed_memory
from ..protocol.messages import Hello, Role, WorkerState
from ..protocol.notify import Phase, notifier
from ..protocol.printable import plural
from ..protocol.session import SessionSettings
from ..protocol.telemetry import flush
from ..tasks.base import describe
from .call import Caller, make_room, message_of, sentence_of
from .call_queue import CallQueue
from .llm import LLM
from .machine import EXIT_ENGINE_DEAD, Exit, Guard, Load, RowResult, StartCall, StopRow, Worker
from .secret import redact_logs
from .span import call_spans

log = logging.getLogger("genpool.worker")

EXIT_REFUSED = 4

# How long the LLM may take to close. A larger value keeps a hung engine's process for longer; a smaller one leaves what
# a slow engine has started behind.
_CLOSE_S = 10.0

_STDERR = 2

# Each call has a thread. So many take three seconds to start; ten times as many, no system's usual limits let it have.
_MOST_CALLS = 10_000


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What one worker process serves, and how. Times in seconds.

    ``concurrency`` None takes what the LLM says of itself. ``wait_s`` is how long a first connection is tried for,
    and ``row_timeout_s`` how long a row may run, None for ever. ``expose_tracebacks`` sends clients the tracebacks of
    their failed rows. ``lifeline`` is a descriptor whose other end the owner holds open.
    """

    llm: str
    broker: str
    batch_size: int = 1
    concurrency: int | None = None
    wait_s: float | None = None
    heartbeat_timeout_s: float = 10.0
    row_timeout_s: float | None = None
    expose_tracebacks: bool = False
    lifeline: int | None = None
    release: str = ""


def run(
    settings: WorkerSettings, load: Callable[[], LLM], tell_owner: Callable[[BaseException | None], None] | None = None
) -> int:
    """Serve the LLM that ``load`` returns until a signal says stop. Returns the exit code.

    ``tell_owner`` is for a worker with a single client, which has started it: it hears how loading ended, from the
    thread that loads. Such a worker does not drain, because when its owner stops it, nobody waits for what runs.

    Raises:
        ConfigurationError: from ``load``, when what the user gave cannot be used and there is no owner to tell.
    """
    redact_logs()
    keep_freed_memory()
    shell = _Shell(settings, load, tell_owner)
    if settings.lifeline is not None:
        threading.Thread(target=_end_with_owner, args=(settings.lifeline,), name="lifeline", daemon=True).start()
    return shell.run()


def _end_with_owner(lifeline: int) -> None:
    """End this process, and all that its engine has started, when the one that owns it is gone, however it ended."""
    try:
        while os.read(lifeline, 64):
            pass
    except OSError:
        pass  # reset: it went without reading what we had said
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


class _Shell:
    def __init__(
        self,
        settings: WorkerSettings,
        load: Callable[[], LLM],
        tell_owner: Callable[[BaseException | None], None] | None,
    ) -> None:
        self._settings = settings
        self._load = load
        self._tell_owner = tell_owner
        bind(worker=f"{socket.gethostname()}:{os.getpid()}", host=socket.gethostname(), llm=settings.llm)
        identity = Hello(
            role="worker",
            instance=os.urandom(16),
            host=socket.gethostname(),
            pid=os.getpid(),
            release=settings.release,
            llm=settings.llm,
            batch_size=settings.batch_size,
            concurrency=settings.concurrency or 1,
        )
        session = SessionSettings(silence_s=SILENCE * settings.heartbeat_timeout_s)
        self._machine = Worker(
            settings.broker,
            identity,
            session,
            random.Random().random,
            time.monotonic(),
            settings.wait_s,
            settings.row_timeout_s,
        )
        self._dealer = Dealer(
            self._machine.desks,
            self._perform,
            Role.WORKER,
            heartbeat_timeout_s=settings.heartbeat_timeout_s,
            log=log,
            ticked=self._notify,
        )
        # Before anything is loaded that may start processes. A client's own worker has no other manager.
        found = notifier()
        self._notifier = found if tell_owner is None else None
        self._was_ready = False
        self._llm: LLM | None = None
        self._caller: Caller | None = None
        self._calls = CallQueue[tuple[StartCall, list[threading.Event]]]()
        # The flags of each running call by execution.
        self._flags: dict[int, dict[int, threading.Event]] = {}
        # To make an event takes longer than all else that a row costs here. Engines look at none after its call.
        self._spare_flags: list[threading.Event] = []
        self._exit: int | None = None
        self._load_error: BaseException | None = None
        self._signalled = False

    def run(self) -> int:
        former = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        # Processes that an engine forks would drain in the worker's place, and heed no terminate().
        os.register_at_fork(after_in_child=lambda: _put_back(former, self._on_signal))
        try:
            self._start_loading()
            self._dealer.run(self._is_over)
        # No broker's word and no want of memory may leave a process that neither works nor ends.
        except BaseException as error:
            try:
                log.error("the worker cannot go on (%s); this process ends", sentence_of(error))
                log.debug("where that was", exc_info=True)
            finally:
                _leave(EXIT_ENGINE_DEAD)
        return self._finish()

    def _notify(self, now: float) -> None:
        """Tell the service manager, if there is one, how it goes."""
        if self._notifier is None or self._exit:
            return
        machine = self._machine
        self._was_ready |= machine.health.is_loaded and machine.is_open
        is_stopping = machine.health.state is WorkerState.DRAINING
        phase = Phase.STOPPING if is_stopping else Phase.SERVING if self._was_ready else Phase.STARTING
        away = "" if machine.is_open else f", waiting for the broker: {machine.trouble}"
        reason = f" ({machine.health.reason})" if machine.health.reason else ""
        status = f"{self._settings.llm!r} is {machine.health.state}{reason}, {machine.running} rows running{away}"
        self._notifier.tick(now, phase, status, is_healthy=not machine.is_dying)

    def _is_over(self) -> bool:
        return self._exit is not None or self._machine.is_refused

    def _finish(self) -> int:
        code = self._exit or 0
        if code == 0 and self._machine.health.state is WorkerState.DRAINING:
            self._notify(time.monotonic())  # it may have had nothing to wait for
        if self._notifier is not None:
            self._notifier.close()
        if self._machine.is_refused:
            for desk in self._machine.desks:
                log.error("the broker at %s refused this worker: %s", desk.address, desk.trouble)
            code = EXIT_REFUSED
        if self._load_error is not None and self._tell_owner is not None:
            return code
        if isinstance(self._load_error, ConfigurationError):
            raise self._load_error
        if self._load_error is not None:
            log.error("the LLM could not be loaded: %s", sentence_of(self._load_error), exc_info=self._load_error)
        if self._machine.calls or (self._llm is None and self._load_error is None):
            # An engine thread is busy, perhaps in C code for good, and the interpreter would wait for it.
            flush()
            _leave(code)
        if self._llm is not None:
            _close(self._llm, code)
        return code

    def _on_signal(self, number: int, _: object) -> None:
        if self._signalled:
            # With an owner, one order may come twice: Slurm and systemd tell every process of a job, and the owner
            # passes it on. It is also the owner who ends this process by force.
            if self._settings.lifeline is None:
                os._exit(128 + number)
            return
        self._signalled = True
        if self._tell_owner is None:
            self._dealer.post(self._machine.drain)
        else:
            self._dealer.post(lambda now: self._end(0, "its client is done with it"))

    # Loading.

    def _start_loading(self) -> None:
        threading.Thread(target=self._load_llm, name="engine-loader", daemon=True).start()

    def _load_llm(self) -> None:
        try:
            then = self._try_to_load()
            try:
                if self._tell_owner is not None:
                    self._tell_owner(self._load_error)
            finally:
                self._dealer.post(then)
        except BaseException:
            os._exit(EXIT_ENGINE_DEAD)  # as in _make_calls

    def _try_to_load(self) -> Callable[[float], None]:
        """What the main thread shall do then: say that it is ready or unwell, or end."""
        try:
            llm = self._load()
            identity = self._describe(llm)
        # Whatever a loader raises ends the process with a sentence; SystemExit and KeyboardInterrupt among it.
        except BaseException as error:
            if isinstance(error, EngineUnwell) and self._tell_owner is None:
                reason = message_of(error)
                return lambda now: self._machine.unwell(reason, now)
            make_room(error)
            self._load_error = error
            code = 2 if isinstance(error, ConfigurationError) else EXIT_ENGINE_DEAD
            told = message_of(error) if isinstance(error, ConfigurationError) else sentence_of(error)
            goodbye = f"its LLM could not be loaded: {told}"
            return lambda now: self._end(code, goodbye)
        self._llm = llm
        return lambda now: self._loaded(identity, now)

    def _describe(self, llm: LLM) -> Hello:
        spans = call_spans(llm, self._settings.llm, self._settings.batch_size)
        self._caller = Caller(
            llm,
            str(os.getpid()),
            socket.gethostname(),
            self._on_unwell,
            expose_tracebacks=self._settings.expose_tracebacks,
            spans=spans,
        )
        identity = replace(
            self._machine.identity,
            model_name=llm.model_name,
            task=describe(llm.task),
            batch_size=1 if self._caller.by_row else self._settings.batch_size,
            concurrency=self._settings.concurrency or llm.concurrency,
            options=sorted(llm.option_names),
        )
        try:
            decode(encode(identity, self._machine.limits.max_frame_bytes))
        except (DecodeError, TypeError, ValueError, OverflowError) as error:
            raise ConfigurationError(
                f"{type(llm).__name__} does not say of itself what a broker can use: {error}"
            ) from error
        if identity.concurrency > _MOST_CALLS:
            raise ConfigurationError(
                f"a worker makes {_MOST_CALLS} calls at once at most, and not {identity.concurrency}"
            )
        return identity

    def _loaded(self, identity: Hello, now: float) -> None:
        # All at once and before any call, for a thread that cannot begin because memory is short hangs who starts it.
        for number in range(identity.concurrency):
            threading.Thread(target=self._make_calls, name=f"engine-{number}", daemon=True).start()
        rows = plural(identity.batch_size * identity.concurrency, "row")
        log.info("%r is ready: %s, %s at once", identity.llm, identity.model_name, rows)
        self._machine.loaded(identity, now)

    # Effects.

    def _perform(self, effect: Any) -> None:
        match effect:
            case StartCall():
                self._start(effect)
            case Load():
                self._start_loading()
            case StopRow():
                for flags in self._flags.values():
                    if effect.execution in flags:
                        flags[effect.execution].set()
            case Guard(limit_s=None):
                faulthandler.cancel_dump_traceback_later()
            case Guard():
                # A thread in C, which needs no interpreter. It also ends a process that was stopped for so long.
                faulthandler.dump_traceback_later(effect.limit_s or 0.0, exit=True, file=_STDERR)
            case Exit():
                self._exit = effect.code
            case _:
                raise AssertionError(f"an effect that the worker does not know: {effect}")

    def _start(self, call: StartCall) -> None:
        count = len(call.executions)
        flags = self._spare_flags[-count:]
        del self._spare_flags[-count:]
        flags += [threading.Event() for _ in range(count - len(flags))]
        self._flags[call.call] = dict(zip(call.executions, flags, strict=True))
        self._calls.put((call, flags))

    def _make_calls(self) -> None:
        """In an engine thread: make one call after the other, and post what comes of it."""
        try:
            while True:
                self._dealer.post(self._try_to_call(*self._calls.get()))
        except BaseException:
            # Without memory it cannot even say so; and a thread that ends in silence leaves its call running for ever.
            os._exit(EXIT_ENGINE_DEAD)

    def _try_to_call(self, call: StartCall, flags: list[threading.Event]) -> Callable[[float], None]:
        """Post what is known while the call goes on. Returns what the main thread shall do at its end."""
        assert self._caller is not None
        machine, post = self._machine, self._dealer.post

        def tell(results: list[RowResult]) -> None:
            post(lambda now: machine.rows_ended(call.call, results, now))

        try:
            last = self._caller.run(call, flags, tell)
        except EngineDead as error:
            log.error("the engine is dead: %s", error)
            return machine.crash
        except BaseException as error:
            log.error(
                "an engine call ended in a way that no row can be answered with (%s); this process ends",
                sentence_of(error),
            )
            log.debug("where that was", exc_info=True)
            return machine.crash
        return lambda now: self._call_ended(call.call, last, now)

    def _call_ended(self, call: int, last: list[RowResult], now: float) -> None:
        # Together, so that one message carries both the last results and the credit for the place that is free.
        if last:
            self._machine.rows_ended(call, last, now)
        self._machine.call_ended(call, now)
        self._spare_flags += [flag for flag in self._flags.pop(call).values() if not flag.is_set()]

    def _on_unwell(self, reason: str) -> None:
        self._dealer.post(lambda now: self._machine.unwell(reason, now))

    def _end(self, code: int, goodbye: str) -> None:
        self._exit = code
        self._machine.end(goodbye)


def _put_back(former: Mapping[signal.Signals, Any], ours: Callable[[int, object], None]) -> None:
    """Have signals handled as they were formerly, where that is still ours to say."""
    for number, handler in former.items():
        if signal.getsignal(number) == ours:
            signal.signal(number, handler)


def _close(llm: LLM, code: int) -> None:
    """Close the LLM; whatever becomes of that, this process ends with ``code``."""
    watch = threading.Timer(_CLOSE_S, _leave_unclosed, [code])
    watch.name, watch.daemon = "close-watch", True
    watch.start()
    try:
        llm.close()
    except BaseException as error:
        log.error("the LLM could not be closed: %s", sentence_of(error))
        log.debug("where that was", exc_info=True)
    finally:
        watch.cancel()


def _leave_unclosed(code: int) -> None:
    log.error("the LLM was not closed within %g s: this process ends without that", _CLOSE_S)
    flush()
    _leave(code)


def _leave(code: int) -> NoReturn:
    """End the process now, whatever its other threads do."""
    try:
        logging.shutdown()
    finally:
        os._exit(code)
