"""The worker as a state machine: what its engine runs, for which broker, and when it ends.

What it holds of each broker's rows is in desk.py, whether its LLM is well in health.py. No I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..protocol.brokers import split
from ..protocol.content import Failure, pack_failure
from ..protocol.frames import Payload
from ..protocol.messages import AssignRun, Hello, Outcome, WorkerState
from ..protocol.session import ENDED, GREETING, OPEN, REFUSED, Log, SessionSettings
from ..protocol.trace import short
from .desk import Desk, RowResult
from .health import DRAINING, UNWELL, Health
from .isolation import Isolation
from .running import RunningCall

__all__ = ["Exit", "Guard", "Load", "RowResult", "StartCall", "StopRow", "Worker"]

# As plain names, as in session.py.
_DONE: int = Outcome.DONE

# Finished answers that wait for their clients: beyond this many bytes no more work is asked for.
MAX_HELD_BYTES = 256 * 1024 * 1024

EXIT_NO_BROKER = 3
EXIT_ENGINE_DEAD = 70

_TOLD_TO_STOP = "it was told to stop"

# How long a worker that ends waits, once it is idle, for clients to take their answers.
_LAST_ANSWERS_S = 5.0

# How long a broker may be away, while there is another, until what is held for it is forgotten: its clients have gone
# to the other by then. A larger value keeps memory and the engine's places for longer, for a broker that may not come.
_FORGET_S = 60.0

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
    """Effect: give these rows to the engine in one call. ``trace`` is as in SubmitRun.

    Not frozen, for that would make it seven times as dear.
    """

    call: int
    kind: str
    num_generations: int
    options: bytes
    executions: list[int]
    payloads: Sequence[Payload]
    trace: str = ""


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


class Worker(Desk):
    """The machine. It is the desk of its first broker, and has one more for each other that ``address`` names.

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
        first, *others = split(address)
        super().__init__(first, self, settings, random, now)
        self.desks: list[Desk] = [self, *(Desk(one, self, settings, random, now) for one in others)]
        self._give_up_at = None if wait_s is None else now + wait_s
        self.identity = identity
        self.health = Health(now)
        self.calls: dict[int, RunningCall] = {}
        self._isolation = Isolation(self.calls, now)
        self.now = self._last_tick = now
        self._next_call = 0
        self._first_tried = 0  # the number of the first call since the LLM is on probation, when it comes
        self._idle_since: float | None = None
        self._row_timeout_s = row_timeout_s
        self._is_guarded = False
        self._exit_code = 0

    @property
    def is_refused(self) -> bool:
        """Whether no broker will talk to this worker."""
        return all(desk.state is REFUSED for desk in self.desks)

    @property
    def is_open(self) -> bool:
        """Whether a broker may hand out rows to it."""
        return any(desk.state is OPEN for desk in self.desks)

    @property
    def is_dying(self) -> bool:
        """Whether its engine does not end a row, and its process will for that."""
        return self._exit_code != 0

    @property
    def running(self) -> int:
        """How many rows its engine works on."""
        return sum(len(call.row_ids) for call in self.calls.values())

    # What goes in, beside what Session takes.

    def loaded(self, identity: Hello, now: float) -> None:
        """The LLM is there: say so, with credit."""
        self.identity = identity
        self.health.loaded()
        for desk in self.desks:
            desk.tell_anew()

    def rows_ended(self, call: int, results: list[RowResult], now: float) -> None:
        """The engine is done with these executions of a running call, all at this moment."""
        self.now = now
        running = self.calls[call]
        desk = running.desk
        running.since, running.has_moved = now, True
        self.health.rows_ended({result.outcome for result in results})
        ended: list[RowResult] = []
        for result in results:
            execution = result.execution
            running.row_ids.pop(execution, None)
            if execution not in desk.held or execution in desk.finished:
                continue  # settled or handed back meanwhile
            if running.stopped is not None and result.outcome != _DONE:
                # What it says of itself, if it says anything, is only that it was told to end.
                result = self._overrun(desk, execution)
            if len(result.payload) > desk.limits.max_row_bytes:
                result = self._too_large(result, desk.limits.max_row_bytes)
            ended.append(result)
        desk.finish(ended)

    def call_ended(self, call: int, now: float) -> None:
        """The engine has returned from a call: its place is free."""
        self.now = now
        ended = self.calls.pop(call)
        self._isolation.call_ended(ended)
        for desk in self.desks:
            if desk is ended.desk or desk.waiting:
                desk.places_changed()
        if ended.stopped is None:
            return
        left = ended.unanswered()
        if ended.has_moved:
            ended.desk.hand_back(left)  # the one that took too long is known, and these were not begun
        elif left and not self._charge(ended):
            self._give_up_engine(ended, "and then failed as a whole")

    def crash(self, now: float) -> None:
        """The engine is dead: hand over what is finished and leave without a goodbye, so that the rest is charged."""
        for desk in self.desks:
            if desk.state is OPEN:
                desk.send_results()
        self.health.drain("its engine is dead")
        self._leave(EXIT_ENGINE_DEAD)

    def unwell(self, reason: str, now: float) -> None:
        """The engine's server, key or quota is at fault: grant nothing, and try again later."""
        if self.health.unwell(reason, now):
            self._effect(Log("warning", f"{self.identity.llm!r} is unwell: {reason}"))

    def drain(self, now: float, reason: str = _TOLD_TO_STOP) -> None:
        """Take no more, finish what runs, then exit with 0."""
        if self.health.state is not DRAINING:
            self._effect(Log("info", f"this worker drains: {reason}"))
        self.health.drain(reason)
        if not self.health.is_loaded:
            self._leave()

    def end(self, reason: str | None = "") -> None:
        for desk in self.desks[1:]:
            desk.end(reason)
        super().end(reason)

    # What its desks ask for.

    def told_state(self) -> tuple[WorkerState, str]:
        """What brokers hear: one that drains is charged nothing for, so a dying engine is none that drains."""
        return UNWELL if self.is_dying else self.health.state, self.health.reason

    def told_to_drain(self, reason: str, now: float) -> None:
        """A broker has passed on that somebody wants this worker away: from all brokers."""
        if self.health.state is not DRAINING:
            self.drain(now, reason)

    def make_way(self, desk: Desk) -> None:
        """This desk has suspects: let no rows of other brokers begin beside them."""
        if len(self.desks) > 1 and self._isolation.ask(desk, self.now):
            self._all_places_changed()

    def has_place(self, desk: Desk, *, are_suspects: bool) -> bool:
        """Whether a call may begin now."""
        if not self._isolation.lets_begin(desk, are_suspects=are_suspects):
            return False
        return self.health.takes_rows and len(self.calls) < self.identity.concurrency

    def free_places(self, desk: Desk) -> int:
        """How many calls more this desk's broker may hand out.

        They go to the brokers where rows wait, or evenly to all while there are none. A row of a broker that did not
        know yet that it has fewer finds no place and is handed back.
        """
        if not self.health.takes_rows or self._held_bytes_in_all() > MAX_HELD_BYTES:
            return 0
        free = self._free_in_all()
        if len(self.desks) == 1 or not free:
            return free
        if self._isolation.desk is not None:
            return free if desk is self._isolation.desk and not self._isolation.runs_others(desk) else 0
        there = [one for one in self.desks if one.state is OPEN or one.state is GREETING]
        # Who was served longest ago has the odd place, or one place would always be the same broker's.
        asking = sorted([one for one in there if one.waiting] or there, key=lambda one: one.served)
        if desk not in asking:
            return 0
        share, odd = divmod(free, len(asking))
        return share + (asking.index(desk) < odd)

    def start(self, desk: Desk, run: AssignRun, row_ids: dict[int, bytes], payloads: Sequence[Payload]) -> None:
        """Begin a call with these rows of a run."""
        number = self._next_call
        self._next_call += 1
        desk.served = number
        self.calls[number] = RunningCall(number, desk, row_ids, self.now, run.are_suspects)
        self._guard()
        what = (run.kind, run.num_generations, run.options)
        self._effect(StartCall(number, *what, list(row_ids), payloads, run.trace))

    def stop_row(self, execution: int) -> None:
        """Nobody wants this row any more."""
        self._effect(StopRow(execution))

    # What comes out.

    def tick(self, now: float) -> list[object]:
        if self.health.is_to_be_tried(now):
            self._try(now)
        self.health.tick(now, is_asking=self._free_in_all() > 0)
        if self._give_up_at is not None and now >= self._give_up_at:
            self._give_up_at = None
            self._give_up_waiting()
        self._watch_calls(now)
        if self._isolation.tick(now):
            self._all_places_changed()
        self._forget_the_lost(now)
        effects = super().tick(now)
        if self._is_idle():
            self._idle_since = now if self._idle_since is None else self._idle_since
            if not any(desk.finished for desk in self.desks) or now - self._idle_since > _LAST_ANSWERS_S:
                self._leave(self._exit_code)
                effects += super().flush(now)
        return effects

    # Within.

    def _give_up_waiting(self) -> None:
        if any(desk.ever_open for desk in self.desks):
            return
        addresses = " or ".join(desk.address for desk in self.desks)
        troubles = "; ".join(desk.trouble for desk in self.desks)
        self._effect(Log("error", f"no broker at {addresses} in the time given: {troubles}"))
        self.end(None)
        self._effect(Exit(EXIT_NO_BROKER))

    def _forget_the_lost(self, now: float) -> None:
        if len(self.desks) == 1 or not any(desk.state is OPEN for desk in self.desks):
            return
        for desk in self.desks:
            if desk.held and desk.lost_at is not None and now - desk.lost_at > _FORGET_S:
                away = f"the broker at {desk.address} is away for {_FORGET_S:g} s"
                self._effect(Log("warning", f"{away}: its {len(desk.held)} rows here are forgotten"))
                desk.forget()

    def _try(self, now: float) -> None:
        """See whether an unwell LLM is well: load it where it is not, else ask for a single call."""
        if self.health.is_loaded:
            self._first_tried = self._next_call
            self.health.try_with_a_call(now)
        else:
            self._effect(Load())

    def _free_in_all(self) -> int:
        """How many calls more may begin; of an LLM on probation, one at a time."""
        free = self.identity.concurrency - len(self.calls)
        if self.health.on_probation:
            # Calls of before may hang for as long as their server does, and show nothing.
            free = min(free, 1 - len([number for number in self.calls if number >= self._first_tried]))
        return max(0, free)

    def _is_idle(self) -> bool:
        """Whether a worker that ends has nothing left to run, or nothing that ever will end."""
        is_ending = self.health.state is DRAINING and self.state is not ENDED
        return is_ending and (not self.calls or self._exit_code != 0)

    def _leave(self, code: int = 0) -> None:
        """End; with a goodbye, unless rows still run: who they are shall be known when the process ends."""
        is_clean = code == 0 or all(len(desk.finished) == len(desk.held) for desk in self.desks)
        self.health.drain(self.health.reason)
        self.end(self.health.reason if is_clean else None)
        self._effect(Exit(code))

    def _held_bytes_in_all(self) -> int:
        return self.held_bytes if len(self.desks) == 1 else sum(desk.held_bytes for desk in self.desks)

    def _all_places_changed(self) -> None:
        for desk in self.desks:
            desk.places_changed()

    # Rows that run too long.

    def _watch_calls(self, now: float) -> None:
        """End calls that run for longer than they may, first by asking the engine."""
        gap_s, self.now, self._last_tick = now - self._last_tick, now, now
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

    def _stop(self, call: RunningCall) -> None:
        for execution in call.row_ids:
            self._effect(StopRow(execution))

    def _charge(self, call: RunningCall) -> bool:
        """Blame the row that ran too long; whether it is known which one that is, of a batch."""
        left = call.unanswered()
        if len(left) > 1:
            return False
        call.desk.finish([self._overrun(call.desk, execution) for execution in left])
        return True

    def _overrun(self, desk: Desk, execution: int) -> RowResult:
        text = f"the row ran for longer than {self._row_timeout_s:g} s and was ended (--row-timeout)"
        row, llm = short(desk.held[execution]), self.identity.llm
        self._effect(Log("warning", f"row {row} of {llm!r} failed: {text}", {"rows": [row]}))
        identity = self.identity
        failure = Failure("TimeoutError", text, "TimeoutError", worker=str(identity.pid), host=identity.host)
        return RowResult(execution, Outcome.RAISED, pack_failure(failure))

    def _give_up_engine(self, call: RunningCall, how: str) -> None:
        """End the process, for nothing else ends the call. Several rows left in it are charged by that, as suspects."""
        rows = [short(row_id) for row_id in call.row_ids.values()]
        text = f"the engine did not end row {', '.join(rows)} within {self._row_timeout_s:g} s {how}; this process ends"
        self._effect(Log("error", text, {"rows": rows}))
        self._exit_code = EXIT_ENGINE_DEAD
        self.health.drain("its engine does not end a row")
        for other in self.calls.values():
            if other.stopped is None:
                self._stop(other)
                other.desk.hand_back(other.unanswered())
            elif other is not call:
                self._charge(other)

    def _too_large(self, result: RowResult, most: int) -> RowResult:
        text = f"the answer has {len(result.payload)} bytes and this broker carries answers of up to {most}"
        identity = self.identity
        failure = Failure("RowError", text, "ValueError", worker=str(identity.pid), host=identity.host)
        return replace(result, outcome=Outcome.FAILED, payload=pack_failure(failure))
