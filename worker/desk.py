"""What a worker holds of one broker: the rows that it was handed, and how many more it grants.

It mirrors the broker's ledger of executions: only an Assign adds to ``held`` and only a Settle removes, so an answer
is kept here until the client has it. No I/O, no clock.

    Assign ──▶ held ──▶ the engine ──▶ finished ──▶ Result ──▶ Settle: gone from both
                └── no place for it ── RETURNED ────▲
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import TYPE_CHECKING

from ..protocol.limits import MAX_COUNT
from ..protocol.messages import (
    Assign,
    AssignRun,
    Drain,
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
from ..protocol.session import OPEN, REFUSED, Log, Send, Session, SessionSettings

if TYPE_CHECKING:
    from .machine import Worker

# As in session.py.
_RETURNED: int = Outcome.RETURNED


@dataclass(slots=True)
class RowResult:
    """How the engine's work on one execution ended."""

    execution: int
    outcome: int
    payload: bytes
    tokens: int = 0


class Desk(Session):
    """A connection to one broker. All desks of a worker share its engine, whose free places ``worker`` deals out.

    Attributes:
        held, finished: by execution, the ids of all rows that were handed out, and the results of those among them
            that have ended.
        held_bytes: of these results.
        waiting: how many rows waited at the broker when it said so last.
        served: when its broker's rows were begun last, in calls: it grows with each.
    """

    def __init__(
        self, address: str, worker: Worker, settings: SessionSettings, random: Callable[[], float], now: float
    ) -> None:
        super().__init__(address, settings, random, now)
        self.worker = worker
        self.held: dict[int, bytes] = {}
        self.finished: dict[int, RowResult] = {}
        self.held_bytes = 0
        self.waiting = 0
        self.served = -1
        self._used = 0
        # What the broker was told last, and whether there is more to say than a Grant can.
        self._hello_due = False
        self._grant_due = True
        self._granted = 0
        self._said_state = WorkerState.LOADING, ""
        self._results: list[RowResult] = []  # those of ``finished`` that are to be sent

    def row_of(self, execution: int) -> bytes | None:
        return self.held.get(execution)

    # What Session asks for.

    def _hello(self) -> Hello:
        self._granted, self._said_state = self._credit(), self.worker.told_state()
        self._hello_due = False
        state, reason = self._said_state
        return replace(self.worker.identity, state=state, reason=reason, credit=self._granted)

    def _held(self) -> int | None:
        return None

    def _open(self, now: float) -> None:
        self._used = 0  # credit is counted anew on every connection
        self.waiting = 0
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

    def _refused(self, reason: str, now: float) -> None:
        super()._refused(reason, now)
        if self.state is REFUSED and not self.worker.is_refused:
            text = f"the broker at {self.address} refused this worker, which stays with the others: {reason}"
            self._effect(Log("error", text))

    def _on_message(self, message: Message, now: float) -> None:
        self.worker.now = now
        match message:
            case Assign():
                for run in message.runs:
                    self._take(run)
            case Settle():
                self._settle(message.executions)
            case Resend():
                self._results += [self.finished[number] for number in message.executions if number in self.finished]
            case Drain():
                self.worker.told_to_drain(message.reason, now)
            case Ping():
                self.waiting = message.waiting
                if message.held is not None and message.held != len(self.held):
                    self.give_up(f"it counts {message.held} rows here and I hold {len(self.held)}", now)
            case _:
                self._effect(Log("warning", f"the broker sent a {type(message).__name__}, which is not for a worker"))

    # What the worker tells.

    def tell_anew(self) -> None:
        """The LLM is another one than was said: say hello again."""
        self._hello_due = True

    def places_changed(self) -> None:
        """How many places are free for this broker may have changed: say so now, and not at the next tick."""
        self._grant_due = True

    def finish(self, results: list[RowResult]) -> None:
        """Keep and send the results of held rows that have none yet."""
        for result in results:
            self.finished[result.execution] = result
            self.held_bytes += len(result.payload)
        self._results += results

    def hand_back(self, executions: Iterable[int]) -> None:
        """These rows were not begun, or came to nothing for no fault of theirs."""
        self.finish([RowResult(execution, _RETURNED, b"") for execution in executions])

    def send_results(self) -> None:
        """Send what has finished, in messages of bounded size."""
        if not self._results:
            return
        results, self._results = self._results, []
        for part in self.limits.cut([len(result.payload) for result in results]):
            self._send_result(results[part])

    def forget(self) -> None:
        """Nobody will ask for these rows here any more."""
        self._settle(list(self.held))

    # What comes out.

    def flush(self, now: float) -> list[object]:
        if self.state is OPEN:
            if self._hello_due:
                self._effect(Send(self._hello()))
            self.send_results()
            self._send_grant()
        return super().flush(now)

    def tick(self, now: float) -> list[object]:
        self._grant_due = True
        return super().tick(now)

    # Within.

    def _take(self, run: AssignRun) -> None:
        """Enter handed-out rows and start them, each call's worth in one; what there is no place for is handed back."""
        numbers: Sequence[int] = range(run.first_execution, run.first_execution + len(run.ids))
        ids, payloads = run.ids, run.payloads
        if not self.held.keys().isdisjoint(numbers):
            fresh = [number not in self.held for number in numbers]
            numbers, ids = list(compress(numbers, fresh)), list(compress(ids, fresh))
            payloads = list(compress(payloads, fresh))
        if run.are_suspects:
            self.worker.make_way(self)
        batch = self.worker.identity.batch_size
        for start in range(0, len(numbers), batch):
            part = slice(start, start + batch)
            row_ids = dict(zip(numbers[part], ids[part], strict=True))
            self.held.update(row_ids)
            self._used += 1
            if self.worker.has_place(self, are_suspects=run.are_suspects):
                self.worker.start(self, run, row_ids, payloads[part])
            else:
                self.hand_back(row_ids)

    def _settle(self, executions: list[int]) -> None:
        for execution in executions:
            if self.held.pop(execution, None) is None:
                continue
            result = self.finished.pop(execution, None)
            if result is None:
                self.worker.stop_row(execution)
            else:
                self.held_bytes -= len(result.payload)
        if self._results:
            self._results = [result for result in self._results if result.execution in self.finished]

    def _credit(self) -> int:
        """How many calls the broker may have handed out in all: what it has, and what is free for it."""
        return self._used + self.worker.free_places(self)

    def _send_result(self, batch: list[RowResult]) -> None:
        self._granted = self._credit()
        numbers = [result.execution for result in batch]
        outcomes = [result.outcome for result in batch]
        tokens = min(MAX_COUNT, sum([result.tokens for result in batch]))
        self._effect(Send(Result(numbers, outcomes, tokens, self._granted, [result.payload for result in batch])))

    def _send_grant(self) -> None:
        credit, state = self._credit(), self.worker.told_state()
        # A place that becomes free, or does not, is one of those of all brokers: those that have no part in it hear of
        # it at the next tick.
        is_due, self._grant_due = self._grant_due or len(self.worker.desks) == 1, False
        if self._said_state == state and (self._granted == credit or not is_due):
            return
        self._granted, self._said_state = credit, state
        self._effect(Send(Grant(credit, *state)))
