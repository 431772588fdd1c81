"""Target: the worker's machine, with a broker that says anything at any time, and an engine that does its part.

The engine is never given more than it takes, what is held is counted, and what is settled is forgotten.
"""

# A target looks inside what it tests.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from dataclasses import replace
from typing import Any

from genpool.protocol.errors import DecodeError
from genpool.protocol.messages import (
    Assign,
    Drain,
    Goodbye,
    Grant,
    Hello,
    Hold,
    Message,
    Outcome,
    Ping,
    Refuse,
    Resend,
    Reset,
    Result,
    Settle,
    Welcome,
)
from genpool.protocol.session import Close, Open, Send, SessionSettings, SessionState
from genpool.worker.machine import Exit, RowResult, StartCall, Worker

from .choices import Choices
from .garbage import MAKERS, Vocabulary, passed_on, received

_KINDS = (Assign, Assign, Assign, Assign, Settle, Settle, Resend, Ping, Welcome, Reset, Goodbye, Refuse, Drain)
_MOST_STEPS = 200
_ROW_TIMEOUT_S = 10.0


class _Process:
    """A worker's machine and its engine, as far as the bytes go."""

    def __init__(self, choices: Choices) -> None:
        self._choices = choices
        self._words = Vocabulary()
        self._now = 1000.0
        self._identity = Hello(role="worker", instance=b"1", host="host", pid=1, llm="a")
        self._identity.concurrency = choices.one_of((1, 2, 5))
        self._identity.batch_size = choices.one_of((1, 1, 3))
        random = lambda: choices.below(8) / 8  # noqa: E731
        settings = SessionSettings(silence_s=2.0)
        wait_s, limit_s = choices.one_of((None, 5.0)), choices.one_of((None, _ROW_TIMEOUT_S))
        self._worker = Worker("broker", self._identity, settings, random, self._now, wait_s, limit_s)
        self._is_connected = False
        self._has_ended = False
        self._running: dict[int, list[int]] = {}  # by call, the executions that the engine has not ended
        self._granted = 0

    def run(self) -> None:
        for _ in range(_MOST_STEPS):
            if self._choices.are_over or self._has_ended:
                return
            self._step()
            self._look()

    def _step(self) -> None:
        worker, now = self._worker, self._now
        match self._choices.below(16):
            case 0 | 1 | 2:
                self._now += self._choices.one_of((0.1, 0.0, 0.5, 1.5, 4.0, 50.0))
                self._perform(worker.tick(self._now))
            case 3:
                self._perform(worker.flush(now))
            case 4:
                self._end_rows()
            case 5:
                self._end_call()
            case 6 if self._choices.below(4) == 3:
                self._disturb()
            case 6 | 7:
                self._receive(MAKERS[Welcome](self._choices, self._words))
                if not worker.health.is_loaded:
                    worker.loaded(replace(self._identity, model_name="model"), now)
            case _:
                self._hear()

    def _disturb(self) -> None:
        worker, now = self._worker, self._now
        match self._choices.below(6):
            case 0:
                worker.broken("the connection broke", now)
            case 1 | 2:
                worker.unwell(self._choices.text(), now)
            case 3:
                worker.drain(now)
            case 4:
                worker.crash(now)
            case _:
                worker.malformed("garbage", now)

    def _end_rows(self) -> None:
        """The engine is done with some rows of a call."""
        if not self._running:
            return
        call = self._choices.one_of(tuple(self._running))
        left = self._running[call]
        count = self._choices.below(len(left) + 1)
        results = [
            RowResult(execution, self._choices.one_of(tuple(Outcome)[:4]), b"x" * self._choices.one_of((5, 0, 300)), 1)
            for execution in left[:count]
        ]
        del left[:count]
        self._worker.rows_ended(call, results, self._now)

    def _end_call(self) -> None:
        """The engine returns from a call, for whose rows there are results unless it was told to end."""
        if not self._running:
            return
        call = self._choices.one_of(tuple(self._running))
        left = self._running.pop(call)
        was_told_to_end = self._worker.calls[call].stopped is not None
        if not (was_told_to_end and self._choices.flag()):
            results = [RowResult(execution, Outcome.DONE, b"answer", 1) for execution in left]
            self._worker.rows_ended(call, results, self._now)
        self._worker.call_ended(call, self._now)

    def _hear(self) -> None:
        kinds: tuple[type[Any], ...] = tuple(MAKERS) if self._choices.rarely() else _KINDS
        try:
            message = received(self._choices, self._words, kinds)
        except DecodeError as error:
            self._worker.malformed(str(error), self._now)
        else:
            self._receive(message)

    def _receive(self, message: Message) -> None:
        if self._is_connected:
            self._worker.received(message, self._now)

    def _perform(self, effects: list[object]) -> None:
        for effect in effects:
            match effect:
                case Open():
                    self._is_connected, self._granted = True, 0
                case Close():
                    self._is_connected = False
                case Send():
                    assert self._is_connected, "something is sent to nobody"
                    self._look_at_sent(passed_on(effect.message, self._worker.limits.max_frame_bytes))
                case StartCall():
                    assert 0 < len(effect.executions) <= self._identity.batch_size
                    assert len(effect.executions) == len(effect.payloads)
                    self._running[effect.call] = list(effect.executions)
                    assert len(self._running) <= self._identity.concurrency, "more calls than the engine takes"
                case Exit():
                    self._has_ended = True
                case _:
                    pass

    def _look_at_sent(self, message: Message) -> None:
        most = self._worker.limits.max_rows
        if isinstance(message, (Result, Hold)):
            assert len(message.executions) <= most, "a message has too many rows"
        assert isinstance(message, (Hello, Grant, Result, Hold, Ping, Reset, Goodbye))

    def _look(self) -> None:
        worker = self._worker
        assert worker.finished.keys() <= worker.held.keys(), "an answer is kept that nobody waits for"
        assert worker.held_bytes == sum(len(result.payload) for result in worker.finished.values())
        assert set(worker.calls) >= set(self._running)
        assert len(worker.calls) <= self._identity.concurrency, "more calls than the engine takes"
        running = {number for call in worker.calls.values() for number in call.row_ids}
        # What an engine has not ended that is given up is charged by the end of the process.
        is_given_up = worker._exit_code != 0
        assert is_given_up or worker.held.keys() - worker.finished.keys() <= running, "a row is held that nobody runs"
        assert not (worker.state is SessionState.OPEN and worker.lost_at is not None)


def check(data: bytes) -> None:
    _Process(Choices(data)).run()
