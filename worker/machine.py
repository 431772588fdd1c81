"""The worker as a state machine: what it holds, what it runs, and how much more it grants.

It mirrors the broker's ledger of executions: only an Assign adds to ``held`` and only a Settle removes, so an answer
is kept here until the client has it. No I/O, no clock.

    Assign ──▶ held ──▶ StartCall ──▶ rows_ended ──▶ finished ──▶ Result ──▶ Settle: gone from both
                └── no place for it ── RETURNED ─────────▲
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import compress

from ..protocol.content import Failure, pack_failure
from ..protocol.frames import Payload
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
from ..protocol.session import ENDED, OPEN, Log, Send, Session, SessionSettings

# As plain names, as in session.py.
LOADING, READY, UNWELL, DRAINING = WorkerState
_DONE: int = Outcome.DONE
_RETURNED: int = Outcome.RETURNED

# Finished answers that wait for their clients: beyond this many bytes no more work is asked for.
MAX_HELD_BYTES = 256 * 1024 * 1024

# An unwell LLM is tried with one call after the first delay, and then after ever longer ones up to the longest.
_FIRST_PROBE_S = 1.0
_LONGEST_PROBE_S = 30.0

# An unwell LLM that nobody has given a row for so long, though it asked for one to be tried with, calls itself ready.
# Rows that wait come at once: with a smaller value it would call itself ready at each try of a server that is away.
_UNASKED_S = 1.0

EXIT_NO_BROKER = 3
EXIT_ENGINE_DEAD = 70

_TOLD_TO_STOP = "it was told to stop"

# How long a worker that ends waits, once it is idle, for clients to take their answers.
_LAST_ANSWERS_S = 5.0

# How long an engine may take to abort a row that ran too long. A larger value keeps the row's place blocked for longer
# where the engine cannot; a smaller one ends the process of an engine that would have aborted a moment later.
_ABORT_S = 3.0

# How much longer than a row may run the interpreter's lock may be held. A larger value finds such a hang later; a
# smaller one ends processes that swap, or whose engine holds the lock now and then. It must be above _ABORT_S.
_HELD_S = 5.0

# Ticks come ten times a second: after a longer gap the process stood still, and so did what it runs.
_STOOD_STILL_S = 1.0


@dataclass(frozen=True, slots=True)
class Load:
    """Effect: try to load the LLM again."""


@dataclass(slots=True)
class StartCall:
    """Effect: give these rows to the engine in one call. Not frozen, for that would make it seven times as dear."""

    call: int
    kind: str
    num_generations: int
    options: bytes
    executions: list[int]
    payloads: Sequence[Payload]


@dataclass(frozen=True, slots=True)
class StopRow:
    """Effect: nobody wants this row any more; abort it where the engine can."""

    execution: int


@dataclass(frozen=True, slots=True)
class Guard:
    """Effect: end the process by force in so many seconds, unless this effect comes again; None takes it back."""

    limit_s: float | None


@dataclass(frozen=True, slots=True)
class Exit:
    """Effect: end the process."""

    code: int


@dataclass(slots=True)
class RowResult:
    """How the engine's work on one execution ended."""

    execution: int
    outcome: int
    payload: bytes
    tokens: int = 0


@dataclass(slots=True)
class _Call:
    """A running engine call. ``since`` is when it began or last answered a row, ``stopped`` when it was told to end.

    ``row_ids`` are of the rows that the engine has not answered, wanted or not, by execution.
    """

    number: int
    row_ids: dict[int, bytes]
    since: float
    stopped: float | None = None
    has_moved: bool = False  # it answered a row after it was told to end


class Worker(Session):
    """The machine.

    ``identity`` is the hello without state and credit, which it keeps itself. ``wait_s`` is how long a first
    connection is tried for, None for ever. ``row_timeout_s`` is how long a row (or a batch) may run, None for ever.
    """

    def __init__(
        self,
        address: str,
        identity: Hello,
        settings: SessionSettings,
        random: Callable[[], float],
        now: float,
        wait_s: float | None = None,
        row_timeout_s: float | None = None,
    ) -> None:
        super().__init__(address, settings, random, now)
        self._give_up_at = None if wait_s is None else now + wait_s
        self.identity = identity
        self.worker_state = LOADING
        self.is_loaded = False
        self.reason = ""
        # By execution, the ids of all rows that were handed out, and the results of those among them that have ended.
        self.held: dict[int, bytes] = {}
        self.finished: dict[int, RowResult] = {}
        self.calls: dict[int, _Call] = {}  # running engine calls
        self._used = 0
        # What the broker was told last, and whether there is more to say than a Grant can.
        self._hello_due = False
        self._granted = 0
        self._said_state = (self.worker_state, self.reason)
        self._next_call = 0
        self._results: list[RowResult] = []
        self._held_bytes = 0
        self._probe_at: float | None = None
        self._probe_delay_s = _FIRST_PROBE_S
        self._on_probation = False
        self._unasked_since = now
        self._idle_since: float | None = None
        self._row_timeout_s = row_timeout_s
        self._now = self._last_tick = now
        self._is_guarded = False
        self._exit_code = 0

    # What goes in, beside what Session takes.

    def loaded(self, identity: Hello, now: float) -> None:
        """The LLM is there: say so, with credit."""
        self.identity, self.is_loaded = identity, True
        self._be_ready()
        self._hello_due = True

    def rows_ended(self, call: int, results: list[RowResult], now: float) -> None:
        """The engine is done with these executions of a running call, all at this moment."""
        self._now = now
        running = self.calls[call]
        running.since, running.has_moved = now, True
        self._judge({result.outcome for result in results})
        ended: list[RowResult] = []
        for result in results:
            execution = result.execution
            running.row_ids.pop(execution, None)
            if execution not in self.held or execution in self.finished:
                continue  # settled or handed back meanwhile
            if running.stopped is not None and result.outcome != _DONE:
                # What it says of itself, if it says anything, is only that it was told to end.
                result = self._overrun(execution)
            if len(result.payload) > self.limits.max_row_bytes:
                result = self._too_large(result)
            ended.append(result)
        self._finish(ended)

    def call_ended(self, call: int, now: float) -> None:
        """The engine has returned from a call: its place is free."""
        self._now = now
        ended = self.calls.pop(call)
        if ended.stopped is None:
            return
        left = self._unanswered(ended)
        if ended.has_moved:
            self._hand_back(left)  # the one that took too long is known, and these were not begun
        elif left and not self._charge(ended):
            self._give_up_engine(ended, "and then failed as a whole")

    def crash(self, now: float) -> None:
        """The engine is dead: hand over what is finished and leave without a goodbye, so that the rest is charged."""
        if self.state is OPEN:
            self._send_results()
        self._drain("its engine is dead")
        self._leave(EXIT_ENGINE_DEAD)

    def unwell(self, reason: str, now: float) -> None:
        """The engine's server, key or quota is at fault: grant nothing, and try again later."""
        if self.worker_state is DRAINING:
            return
        if (self.worker_state, self.reason) != (UNWELL, reason):
            self._effect(Log("warning", f"{self.identity.llm!r} is unwell: {reason}"))
        self.worker_state, self.reason = UNWELL, reason
        self._on_probation = False
        if self._probe_at is None:  # several calls of the same moment make the wait grow once
            self._probe_at = now + self._probe_delay_s
            self._probe_delay_s = min(_LONGEST_PROBE_S, 2 * self._probe_delay_s)

    def drain(self, now: float) -> None:
        """Take no more, finish what runs, then exit with 0."""
        self._drain(_TOLD_TO_STOP)
        if not self.is_loaded:
            self._leave()

    # What Session asks for.

    def _hello(self) -> Hello:
        self._granted, self._said_state = self._credit(), self._told_state()
        self._hello_due = False
        state, reason = self._said_state
        return replace(self.identity, state=state, reason=reason, credit=self._granted)

    def _held(self) -> int | None:
        return None

    def _open(self, now: float) -> None:
        self._used = 0  # credit is counted anew on every connection
        super()._open(now)

    def _opened(self, now: float) -> None:
        held = list(self.held)
        most = self.limits.max_rows
        for at in range(0, max(1, len(held)), most):
            part = held[at : at + most]
            ids = [self.held[execution] for execution in part]
            finished = [execution in self.finished for execution in part]
            self._effect(Send(Hold(part, ids, finished, more=at + most < len(held))))
        # The broker asks for the answers that are still wanted.
        self._results.clear()

    def _broken(self, now: float) -> None:
        self._results.clear()

    def _on_message(self, message: Message, now: float) -> None:
        self._now = now
        match message:
            case Assign():
                for run in message.runs:
                    self._take(run)
            case Settle():
                self._settle(message.executions)
            case Resend():
                self._results += [self.finished[number] for number in message.executions if number in self.finished]
            case Ping():
                if message.held is not None and message.held != len(self.held):
                    self.give_up(f"it counts {message.held} rows here and I hold {len(self.held)}", now)
            case _:
                self._effect(Log("warning", f"the broker sent a {type(message).__name__}, which is not for a worker"))

    # What comes out.

    def flush(self, now: float) -> list[object]:
        if self.state is OPEN:
            if self._hello_due:
                self._effect(Send(self._hello()))
            self._send_results()
            self._send_grant()
        return super().flush(now)

    def tick(self, now: float) -> list[object]:
        if self._probe_at is not None and now >= self._probe_at:
            self._probe_at = None
            self._probe(now)
        self._unasked_since = now if self.calls else self._unasked_since
        if self._on_probation and now - self._unasked_since > _UNASKED_S:
            self._be_ready()
        if self._give_up_at is not None and now >= self._give_up_at and not self.ever_open:
            self._give_up_at = None
            self._effect(Log("error", f"no broker at {self.address} in the time given: {self.trouble}"))
            self._effect(Exit(EXIT_NO_BROKER))
        self._watch_calls(now)
        effects = super().tick(now)
        if self._is_idle():
            self._idle_since = now if self._idle_since is None else self._idle_since
            if not self.finished or now - self._idle_since > _LAST_ANSWERS_S:
                self._leave(self._exit_code)
                effects += super().flush(now)
        return effects

    # Within.

    def _probe(self, now: float) -> None:
        """See whether an unwell LLM is well: load it where it is not, else ask for a single call."""
        if self.worker_state is not UNWELL:
            return
        if self.is_loaded:
            self._on_probation = True
            self._unasked_since = now
        else:
            self._effect(Load())

    def _judge(self, outcomes: set[int]) -> None:
        """Whether an LLM that was unwell is well again, by how rows have ended at one moment."""
        if self._on_probation and not outcomes <= {_RETURNED}:
            self._be_ready()
        if _DONE in outcomes:
            self._on_probation = False
            self._probe_delay_s = _FIRST_PROBE_S

    def _be_ready(self) -> None:
        if self.worker_state in (LOADING, UNWELL):
            self.worker_state, self.reason = READY, ""

    def _takes_rows(self) -> bool:
        """Whether it is ready, or unwell and to be tried."""
        return self.worker_state is READY or (self.worker_state is UNWELL and self._on_probation)

    def _is_idle(self) -> bool:
        """Whether a worker that ends has nothing left to run, or nothing that ever will end."""
        is_ending = self.worker_state is DRAINING and self.state is not ENDED
        return is_ending and (not self.calls or self._exit_code != 0)

    def _told_state(self) -> tuple[WorkerState, str]:
        """What the broker hears: one that drains is charged nothing for, so a dying engine is none that drains."""
        is_dying = self.worker_state is DRAINING and self._exit_code != 0
        return UNWELL if is_dying else self.worker_state, self.reason

    def _drain(self, reason: str) -> None:
        self.worker_state, self.reason = DRAINING, reason

    def _leave(self, code: int = 0) -> None:
        """End; with a goodbye, unless rows still run: who they are shall be known when the process ends."""
        is_clean = code == 0 or len(self.finished) == len(self.held)
        self.worker_state = DRAINING
        self.end(self.reason if is_clean else None)
        self._effect(Exit(code))

    def _take(self, run: AssignRun) -> None:
        """Enter handed-out rows and start them, each call's worth in one; what there is no place for is handed back."""
        numbers: Sequence[int] = range(run.first_execution, run.first_execution + len(run.ids))
        ids, payloads = run.ids, run.payloads
        if not self.held.keys().isdisjoint(numbers):
            fresh = [number not in self.held for number in numbers]
            numbers, ids = list(compress(numbers, fresh)), list(compress(ids, fresh))
            payloads = list(compress(payloads, fresh))
        batch = self.identity.batch_size
        for start in range(0, len(numbers), batch):
            part = slice(start, start + batch)
            row_ids = dict(zip(numbers[part], ids[part], strict=True))
            self.held.update(row_ids)
            self._used += 1
            if self._takes_rows() and len(self.calls) < self.identity.concurrency:
                self._start(run, row_ids, payloads[part])
            else:
                self._hand_back(row_ids)

    def _start(self, run: AssignRun, row_ids: dict[int, bytes], payloads: Sequence[Payload]) -> None:
        number = self._next_call
        self._next_call += 1
        self.calls[number] = _Call(number, row_ids, self._now)
        self._guard()
        self._effect(StartCall(number, run.kind, run.num_generations, run.options, list(row_ids), payloads))

    def _settle(self, executions: list[int]) -> None:
        for execution in executions:
            if self.held.pop(execution, None) is None:
                continue
            result = self.finished.pop(execution, None)
            if result is None:
                self._effect(StopRow(execution))
            else:
                self._held_bytes -= len(result.payload)

    def _finish(self, results: list[RowResult]) -> None:
        """Keep and send the results of held rows that have none yet."""
        for result in results:
            self.finished[result.execution] = result
            self._held_bytes += len(result.payload)
        self._results += results

    def _hand_back(self, executions: Iterable[int]) -> None:
        self._finish([RowResult(execution, _RETURNED, b"") for execution in executions])

    # Rows that run too long.

    def _watch_calls(self, now: float) -> None:
        """End calls that run for longer than they may, first by asking the engine."""
        gap_s, self._now, self._last_tick = now - self._last_tick, now, now
        if self._row_timeout_s is None:
            return
        self._guard()
        for call in list(self.calls.values()):
            if gap_s > _STOOD_STILL_S:
                call.since = min(now, call.since + gap_s)
                call.stopped = None if call.stopped is None else min(now, call.stopped + gap_s)
            if call.stopped is None and now - call.since > self._row_timeout_s:
                call.stopped, call.has_moved = now, False
                self._stop(call)
            elif call.stopped is not None and now - max(call.since, call.stopped) > _ABORT_S and not self._exit_code:
                self._charge(call)
                self._give_up_engine(call, f"nor within {_ABORT_S:g} s after it was told to end")

    def _guard(self) -> None:
        """Have the process watched from outside the interpreter while calls run, for one may hold its lock."""
        if self._row_timeout_s is not None and (self.calls or self._is_guarded):
            self._is_guarded = bool(self.calls)
            self._effect(Guard(self._row_timeout_s + _HELD_S if self.calls else None))

    def _stop(self, call: _Call) -> None:
        for execution in call.row_ids:
            self._effect(StopRow(execution))

    def _unanswered(self, call: _Call) -> list[int]:
        return [number for number in call.row_ids if number in self.held and number not in self.finished]

    def _charge(self, call: _Call) -> bool:
        """Blame the row that ran too long; whether it is known which one that is, of a batch."""
        left = self._unanswered(call)
        if len(left) > 1:
            return False
        self._finish([self._overrun(execution) for execution in left])
        return True

    def _overrun(self, execution: int) -> RowResult:
        text = f"the row ran for longer than {self._row_timeout_s:g} s and was ended (--row-timeout)"
        self._effect(Log("warning", f"row {self.held[execution].hex()} of {self.identity.llm!r} failed: {text}"))
        identity = self.identity
        failure = Failure("TimeoutError", text, "TimeoutError", worker=str(identity.pid), host=identity.host)
        return RowResult(execution, Outcome.RAISED, pack_failure(failure))

    def _give_up_engine(self, call: _Call, how: str) -> None:
        """End the process, for nothing else ends the call. Several rows left in it are charged by that, as suspects."""
        rows = ", ".join(row_id.hex() for row_id in call.row_ids.values())
        text = f"the engine did not end row {rows} within {self._row_timeout_s:g} s {how}; this process ends"
        self._effect(Log("error", text))
        self._exit_code = EXIT_ENGINE_DEAD
        self._drain("its engine does not end a row")
        for other in self.calls.values():
            if other.stopped is None:
                self._stop(other)
                self._hand_back(self._unanswered(other))
            elif other is not call:
                self._charge(other)

    def _too_large(self, result: RowResult) -> RowResult:
        most = self.limits.max_row_bytes
        text = f"the answer has {len(result.payload)} bytes and this broker carries answers of up to {most}"
        identity = self.identity
        failure = Failure("RowError", text, "ValueError", worker=str(identity.pid), host=identity.host)
        return replace(result, outcome=Outcome.FAILED, payload=pack_failure(failure))

    def _credit(self) -> int:
        """How many calls the broker may have handed out in all: what it has, and what is free."""
        if not self._takes_rows() or self._held_bytes > MAX_HELD_BYTES:
            return self._used
        places = 1 if self._on_probation else self.identity.concurrency
        return self._used + max(0, places - len(self.calls))

    def _send_results(self) -> None:
        if not self._results:
            return
        results = [result for result in self._results if result.execution in self.finished]  # else settled meanwhile
        self._results = []
        start = size = 0
        most_rows, most_bytes = self.limits.max_rows, self.limits.target_message_bytes
        for at, result in enumerate(results):
            size += len(result.payload)
            if at > start and (size > most_bytes or at - start >= most_rows):
                self._send_result(results[start:at])
                start, size = at, len(result.payload)
        if results:
            self._send_result(results[start:])

    def _send_result(self, batch: list[RowResult]) -> None:
        self._granted = self._credit()
        numbers = [result.execution for result in batch]
        outcomes = [result.outcome for result in batch]
        tokens = sum([result.tokens for result in batch])
        self._effect(Send(Result(numbers, outcomes, tokens, self._granted, [result.payload for result in batch])))

    def _send_grant(self) -> None:
        credit, state = self._credit(), self._told_state()
        if (self._granted, self._said_state) != (credit, state):
            self._granted, self._said_state = credit, state
            self._effect(Send(Grant(credit, *state)))
