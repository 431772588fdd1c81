"""Many simulated workers in a process of their own: real state machines with a socket each, and no engine.

What they say on the wire (hello, holds, credit, pings, results) is what `genpool.worker` says. Only the engine is not
there: a row is answered at once, or after a time that the benchmark decides, with the same text.
"""

from __future__ import annotations

import functools
import logging
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from genpool import LLMOutput, TextGenerationTask
from genpool.protocol.content import pack
from genpool.protocol.dealer import SILENCE
from genpool.protocol.messages import Hello, Outcome
from genpool.protocol.session import SessionSettings, SessionState
from genpool.tasks.base import describe
from genpool.worker.machine import RowResult, StartCall, StopRow, Worker

from . import noop
from .child import Child, running_child
from .loop import HEARTBEAT_TIMEOUT_S, Loop, Peer, unknown_effect

# How long a row takes: ``seconds(worker_number, payload)``. It goes to another process: a function of a module, or a
# functools.partial of one.
Seconds = Callable[[int, bytes], float]


@dataclass(frozen=True)
class CrowdSettings:
    """Who serves what, and how.

    Attributes:
        address: the broker's.
        llm: the name that all of them serve.
        workers: how many; they are numbered from 0.
        batch_size, concurrency: of each worker. The rows of a call run side by side.
        seconds: how long a row takes; None answers it at once.
        output_bytes: the length of each output.
    """

    address: str
    llm: str
    workers: int
    batch_size: int = 1
    concurrency: int = 1
    seconds: Seconds | None = None
    output_bytes: int = noop.OUTPUT_BYTES


@dataclass
class Work:
    """What one worker has done: rows it began and ended, and what it took.

    ``busy_s`` is how long its rows took in all, and no more: the time until this process noticed that one had ended
    (a millisecond, or what a busy machine takes) is not in it. ``last_at`` is when the last one ended, by
    time.monotonic, which is the same in all processes. ``spans`` has, for each row that takes time, when it began, how
    long it took, and when it was noticed that it had ended.
    """

    begun: int = 0
    ended: int = 0
    busy_s: float = 0.0
    last_at: float | None = None
    spans: list[tuple[float, float, float]] = field(default_factory=list[tuple[float, float, float]])


class Crowd:
    """A running crowd, seen from the benchmark."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self.pid = child.pid

    def work(self) -> list[Work]:
        """What each worker has done since the last time that it was asked."""
        self._child.pipe.send(None)
        return self._child.answer("the crowd's answer")

    def wait_until_ready(self) -> None:
        """Wait until all workers are connected."""
        self._child.answer("a connection of every worker of the crowd")


@contextmanager
def running_crowd(settings: CrowdSettings) -> Generator[Crowd]:
    """The workers, connected and ready; they end with the block, and with this process.

    Raises:
        ScriptError: when they do not all get a connection.
    """
    with running_child(_serve, settings) as child:
        crowd = Crowd(child)
        crowd.wait_until_ready()
        yield crowd


@dataclass(eq=False)
class _Call:
    """A call under way: when it began, and its executions that have not ended, with how long each takes."""

    number: int
    began: float
    left: dict[int, float]


@dataclass
class _Engine:
    """What stands in the place of one worker's engine."""

    number: int
    machine: Worker
    work: Work = field(default_factory=Work)
    calls: dict[int, _Call] = field(default_factory=dict[int, _Call])  # by execution


class _Engines:
    """The engines of all workers, in one loop."""

    def __init__(self, settings: CrowdSettings, loop: Loop) -> None:
        self._settings = settings
        self._loop = loop
        self.engines = [_Engine(number, _worker(settings)) for number in range(settings.workers)]
        loop.add([Peer(one.machine, functools.partial(self._perform, one)) for one in self.engines])

    def are_ready(self) -> bool:
        return all(one.machine.state is SessionState.OPEN for one in self.engines)

    def take_work(self) -> list[Work]:
        work = [one.work for one in self.engines]
        for one in self.engines:
            one.work = Work()
        return work

    def _perform(self, engine: _Engine, peer: Peer, effect: Any, now: float) -> None:
        match effect:
            case StartCall():
                self._start(engine, peer, effect, now)
            case StopRow():
                call = engine.calls.get(effect.execution)
                if call is not None:
                    self._end(engine, call, effect.execution, Outcome.RETURNED, now - call.began, now)
            case _:
                unknown_effect(peer, effect, now)

    def _start(self, engine: _Engine, peer: Peer, call: StartCall, now: float) -> None:
        engine.work.begun += len(call.executions)
        output = _outputs(self._settings.llm, self._settings.output_bytes, call.num_generations)
        if self._settings.seconds is None:
            results = [RowResult(execution, Outcome.DONE, output) for execution in call.executions]
            engine.machine.rows_ended(call.call, results, now)
            engine.work.ended += len(call.executions)
            engine.work.last_at = now
            engine.machine.call_ended(call.call, now)
            return
        times = {
            execution: self._settings.seconds(engine.number, bytes(payload))
            for execution, payload in zip(call.executions, call.payloads, strict=True)
        }
        running = _Call(call.call, now, times)
        for execution, seconds in times.items():
            engine.calls[execution] = running
            self._loop.later(now + seconds, peer, functools.partial(self._ended, engine, execution, output))

    def _ended(self, engine: _Engine, execution: int, output: bytes, now: float) -> None:
        call = engine.calls.get(execution)
        if call is not None:  # else it was stopped
            self._end(engine, call, execution, Outcome.DONE, call.left[execution], now, output)

    def _end(
        self,
        engine: _Engine,
        call: _Call,
        execution: int,
        outcome: Outcome,
        took_s: float,
        now: float,
        output: bytes = b"",
    ) -> None:
        del engine.calls[execution], call.left[execution]
        engine.work.ended += 1
        engine.work.busy_s += took_s
        engine.work.last_at = now
        engine.work.spans.append((call.began, took_s, now))
        engine.machine.rows_ended(call.number, [RowResult(execution, outcome, output)], now)
        if not call.left:
            engine.machine.call_ended(call.number, now)


@functools.cache
def _outputs(llm: str, size: int, num_generations: int) -> bytes:
    output = LLMOutput(model_name=llm, prompt_used=None, raw_output="o" * size, parsed_output=None)
    return pack([output] * num_generations)


def _worker(settings: CrowdSettings) -> Worker:
    """The machine of one worker whose LLM is loaded."""
    identity = Hello(
        role="worker",
        instance=os.urandom(16),
        host=socket.gethostname(),
        pid=os.getpid(),
        llm=settings.llm,
        model_name=settings.llm,
        task=describe(TextGenerationTask()),
        batch_size=settings.batch_size,
        concurrency=settings.concurrency,
    )
    session = SessionSettings(silence_s=SILENCE * HEARTBEAT_TIMEOUT_S)
    now = time.monotonic()
    machine = Worker(settings.address, identity, session, random.random, now)
    machine.loaded(identity, now)
    return machine


def _serve(parent: Connection, settings: CrowdSettings) -> None:
    """The process."""
    # Ctrl-C reaches the parent too, which ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A thousand that come at once wait for a second or two, and each would say so.
    logging.getLogger("genpool").setLevel(logging.ERROR)
    loop = Loop(settings.address)
    engines = _Engines(settings, loop)

    def answer() -> None:
        try:
            parent.recv()
        except EOFError:
            os._exit(0)  # the parent is gone, were it by kill -9
        parent.send(engines.take_work())

    loop.watch(parent, answer)
    loop.run(engines.are_ready)
    parent.send(True)
    loop.run(lambda: False)
