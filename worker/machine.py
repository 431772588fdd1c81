"""The worker as a state machine: what it holds, what it runs, and how much more it grants.

It mirrors the broker's ledger of executions: only an Assign adds to ``held`` and only a Settle removes, so an answer
is kept here until the client has it. No I/O, no clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum, auto

from ..protocol.content import Failure, pack_failure
from ..protocol.messages import (
    Assign,
    AssignRun,
    Grant,
    Hello,
    Hold,
    Message,
    Outcome,
    Ping,
    Resend,
    Result,
    Settle,
    WorkerState,
)
from ..protocol.session import Log, Send, Session, SessionSettings, SessionState

# Finished answers that wait for their clients: beyond this many bytes no more work is asked for.
MAX_HELD_BYTES = 256 * 1024 * 1024

# An unwell LLM is tried with one call after the first delay, and then after ever longer ones up to the longest.
_FIRST_PROBE_S = 1.0
_LONGEST_PROBE_S = 30.0

EXIT_NO_BROKER = 3

# How long a draining worker waits, once it is idle, for clients to take their answers.
_LAST_ANSWERS_S = 5.0


@dataclass(frozen=True, slots=True)
class Load:
    """Effect: try to load the LLM again."""


@dataclass(frozen=True, slots=True)
class StartCall:
    """Effect: give these rows to the engine in one call."""

    call: int
    kind: str
    num_generations: int
    options: bytes
    executions: list[int]
    payloads: list[bytes]


@dataclass(frozen=True, slots=True)
class StopRow:
    """Effect: nobody wants this row any more; abort it where the engine can."""

    execution: int


@dataclass(frozen=True, slots=True)
class Exit:
    """Effect: end the process."""

    code: int


@dataclass(frozen=True, slots=True)
class RowResult:
    """How the engine's work on one execution ended."""

    execution: int
    outcome: int
    payload: bytes
    tokens: int = 0


class _Stage(Enum):
    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


@dataclass(slots=True)
class _Held:
    execution: int
    row_id: bytes
    stage: _Stage = _Stage.WAITING
    outcome: int = 0
    payload: bytes = b""
    tokens: int = 0


class Worker(Session):
    """The machine.

    ``identity`` is the hello without state and credit, which it keeps itself. ``wait_s`` is how long a first
    connection is tried for, None for ever.
    """

    def __init__(
        self,
        address: str,
        identity: Hello,
        settings: SessionSettings,
        random: Callable[[], float],
        now: float,
        wait_s: float | None = None,
    ) -> None:
        super().__init__(address, settings, random, now)
        self._give_up_at = None if wait_s is None else now + wait_s
        self.identity = identity
        self.worker_state = WorkerState.LOADING
        self.is_loaded = False
        self.reason = ""
        self.held: dict[int, _Held] = {}
        self.calls: set[int] = set()  # running engine calls
        self._waiting: deque[AssignRun] = deque()  # one engine call each
        self._used = 0
        # What the broker was told last, and whether there is more to say than a Grant can.
        self._hello_due = False
        self._granted = 0
        self._said_state = (self.worker_state, self.reason)
        self._next_call = 0
        self._results: list[_Held] = []
        self._held_bytes = 0
        self._probe_at: float | None = None
        self._probe_delay_s = _FIRST_PROBE_S
        self._on_probation = False
        self._idle_since: float | None = None

    # What goes in, beside what Session takes.

    def loaded(self, identity: Hello, now: float) -> None:
        """The LLM is there: say so, with credit."""
        self.identity, self.is_loaded = identity, True
        if self.worker_state in (WorkerState.LOADING, WorkerState.UNWELL):
            self.worker_state, self.reason = WorkerState.READY, ""
        self._hello_due = True

    def row_ended(self, result: RowResult, now: float) -> None:
        """The engine is done with one execution of a running call."""
        if result.outcome == Outcome.DONE:
            self._on_probation = False
            self._probe_delay_s = _FIRST_PROBE_S
        held = self.held.get(result.execution)
        if held is None:
            return  # settled meanwhile
        if len(result.payload) > self.limits.max_row_bytes:
            result = self._too_large(result)
        held.stage, held.outcome = _Stage.FINISHED, result.outcome
        held.payload, held.tokens = result.payload, result.tokens
        self._held_bytes += len(result.payload)
        self._results.append(held)

    def call_ended(self, call: int, now: float) -> None:
        """The engine has returned from a call: its place is free."""
        self.calls.remove(call)

    def unwell(self, reason: str, now: float) -> None:
        """The engine's server, key or quota is at fault: grant nothing, and try again later."""
        if self.worker_state is WorkerState.DRAINING:
            return
        if (self.worker_state, self.reason) != (WorkerState.UNWELL, reason):
            self._effect(Log("warning", f"{self.identity.llm!r} is unwell: {reason}"))
        self.worker_state, self.reason = WorkerState.UNWELL, reason
        if self._probe_at is None:  # several calls of the same moment make the wait grow once
            self._probe_at = now + self._probe_delay_s
            self._probe_delay_s = min(_LONGEST_PROBE_S, 2 * self._probe_delay_s)
        self._return_waiting()

    def drain(self, now: float) -> None:
        """Take no more, finish what runs, hand back what waits, then exit with 0."""
        if not self.is_loaded:
            self._leave()
            return
        self.worker_state, self.reason = WorkerState.DRAINING, "it was told to stop"
        self._return_waiting()

    # What Session asks for.

    def _hello(self) -> Hello:
        self._granted, self._said_state = self._credit(), (self.worker_state, self.reason)
        self._hello_due = False
        return replace(self.identity, state=self.worker_state, reason=self.reason, credit=self._granted)

    def _held(self) -> int | None:
        return None

    def _open(self, now: float) -> None:
        self._used = 0  # credit is counted anew on every connection
        super()._open(now)

    def _opened(self, now: float) -> None:
        held = list(self.held.values())
        most = self.limits.max_rows
        for at in range(0, max(1, len(held)), most):
            part = held[at : at + most]
            finished = [one.stage is _Stage.FINISHED for one in part]
            more = at + most < len(held)
            self._effect(Send(Hold([one.execution for one in part], [one.row_id for one in part], finished, more)))
        # The broker asks for the answers that are still wanted.
        self._results.clear()

    def _broken(self, now: float) -> None:
        self._results.clear()

    def _on_message(self, message: Message, now: float) -> None:
        match message:
            case Assign():
                for run in message.runs:
                    self._take(run)
            case Settle():
                for execution in message.executions:
                    self._settle(execution)
            case Resend():
                known = (self.held.get(execution) for execution in message.executions)
                self._results += [held for held in known if held and held.stage is _Stage.FINISHED]
            case Ping():
                if message.held is not None and message.held != len(self.held):
                    self.give_up(f"it counts {message.held} rows here and I hold {len(self.held)}", now)
            case _:
                self._effect(Log("warning", f"the broker sent a {type(message).__name__}, which is not for a worker"))

    # What comes out.

    def flush(self, now: float) -> list[object]:
        self._start_calls()
        if self.state is SessionState.OPEN:
            if self._hello_due:
                self._effect(Send(self._hello()))
            self._send_results()
            self._send_grant()
        return super().flush(now)

    def tick(self, now: float) -> list[object]:
        if self._probe_at is not None and now >= self._probe_at:
            self._probe_at = None
            self._probe()
        if self._give_up_at is not None and now >= self._give_up_at and not self.ever_open:
            self._give_up_at = None
            self._effect(Log("error", f"no broker at {self.address} in the time given: {self.trouble}"))
            self._effect(Exit(EXIT_NO_BROKER))
        effects = super().tick(now)
        if self.worker_state is WorkerState.DRAINING and not self.calls and self.state is not SessionState.ENDED:
            self._idle_since = now if self._idle_since is None else self._idle_since
            if not self.held or now - self._idle_since > _LAST_ANSWERS_S:
                self._leave()
                effects += super().flush(now)
        return effects

    # Within.

    def _probe(self) -> None:
        """See whether an unwell LLM is well: load it where it is not, else ask for a single call."""
        if self.worker_state is not WorkerState.UNWELL:
            return
        if self.is_loaded:
            self._on_probation = True
            self.worker_state, self.reason = WorkerState.READY, ""
        else:
            self._effect(Load())

    def _leave(self) -> None:
        self.worker_state = WorkerState.DRAINING
        self.end("it was told to stop")
        self._effect(Exit(0))

    def _take(self, run: AssignRun) -> None:
        """Enter handed-out rows, each call's worth in the waiting line."""
        numbers = range(run.first_execution, run.first_execution + len(run.ids))
        fresh = [at for at, number in enumerate(numbers) if number not in self.held]
        for at in fresh:
            self.held[numbers[at]] = _Held(numbers[at], run.ids[at])
        batch = self.identity.batch_size
        for start in range(0, len(fresh), batch):
            part = fresh[start : start + batch]
            self._used += 1
            self._waiting.append(
                replace(
                    run,
                    first_execution=numbers[part[0]],
                    ids=[run.ids[at] for at in part],
                    payloads=[run.payloads[at] for at in part],
                )
            )
        if self.worker_state is not WorkerState.READY:
            self._return_waiting()

    def _settle(self, execution: int) -> None:
        held = self.held.pop(execution, None)
        if held is None:
            return
        self._held_bytes -= len(held.payload)
        if held.stage is _Stage.RUNNING:
            self._effect(StopRow(execution))
        held.stage = _Stage.FINISHED  # a waiting one is passed over when its call's turn comes

    def _too_large(self, result: RowResult) -> RowResult:
        most = self.limits.max_row_bytes
        text = f"the answer has {len(result.payload)} bytes and this broker carries answers of up to {most}"
        identity = self.identity
        failure = Failure("RowError", text, "ValueError", worker=str(identity.pid), host=identity.host)
        return replace(result, outcome=Outcome.FAILED, payload=pack_failure(failure))

    def _start_calls(self) -> None:
        while self._waiting and len(self.calls) < self.identity.concurrency:
            run = self._waiting.popleft()
            wanted = [
                (number, payload)
                for number, payload in enumerate(run.payloads, run.first_execution)
                if number in self.held
            ]
            if wanted:
                self._start(run, wanted)

    def _start(self, run: AssignRun, wanted: list[tuple[int, bytes]]) -> None:
        executions = [number for number, _ in wanted]
        for number in executions:
            self.held[number].stage = _Stage.RUNNING
        call = self._next_call
        self._next_call += 1
        self.calls.add(call)
        payloads = [payload for _, payload in wanted]
        self._effect(StartCall(call, run.kind, run.num_generations, run.options, executions, payloads))

    def _return_waiting(self) -> None:
        """Hand back what has not started."""
        waiting, self._waiting = self._waiting, deque()
        for run in waiting:
            for number in range(run.first_execution, run.first_execution + len(run.ids)):
                if number in self.held:
                    self.row_ended(RowResult(number, Outcome.RETURNED, b""), 0.0)

    def _credit(self) -> int:
        """How many calls the broker may have handed out in all: what it has, and what is free."""
        if self.worker_state is not WorkerState.READY or self._held_bytes > MAX_HELD_BYTES:
            return self._used
        places = 1 if self._on_probation else self.identity.concurrency
        return self._used + max(0, places - len(self.calls) - len(self._waiting))

    def _send_results(self) -> None:
        results, self._results = self._results, []
        batch: list[_Held] = []
        size = 0
        for held in results:
            if held.execution not in self.held:
                continue
            too_large = size + len(held.payload) > self.limits.target_message_bytes
            if batch and (too_large or len(batch) >= self.limits.max_rows):
                self._send_result(batch)
                batch, size = [], 0
            batch.append(held)
            size += len(held.payload)
        if batch:
            self._send_result(batch)

    def _send_result(self, batch: list[_Held]) -> None:
        self._granted = self._credit()
        tokens = sum(held.tokens for held in batch)
        numbers = [held.execution for held in batch]
        outcomes = [held.outcome for held in batch]
        self._effect(Send(Result(numbers, outcomes, tokens, self._granted, [held.payload for held in batch])))

    def _send_grant(self) -> None:
        credit, state = self._credit(), (self.worker_state, self.reason)
        if (self._granted, self._said_state) != (credit, state):
            self._granted, self._said_state = credit, state
            self._effect(Send(Grant(credit, self.worker_state, self.reason)))
