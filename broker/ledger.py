"""The ledgers: every row from its submission to its release, and every execution from its hand-out until it is settled.

A row is queued, runs on any number of workers, is answered, and stays known until its client releases it. Whatever
ends an execution goes through ``settle``, and whatever ends a row through ``drop``, so that both ends of each
connection count the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace

from ..protocol.content import Failure, pack_failure
from ..protocol.frames import Payload
from ..protocol.messages import Answer, Busy, Missing, Outcome, Resend, Result, Settle, SubmitRun
from .blame import is_guilty, suspect_group_size
from .outgoing import Outgoing
from .peer import LLM, Client, Worker
from .row import (
    ANSWERED,
    CLEAN,
    GONE,
    MISSING,
    QUEUED,
    REQUEUED,
    RESUMED,
    RUNNING,
    SETTLING,
    SUSPECTED,
    Execution,
    Row,
    RowSpec,
    RowState,
)
from .settings import BrokerSettings
from .tally import Tally

# What is known of a row that its client awaits and nobody holds, until it is submitted again.
_UNKNOWN = RowSpec("", "", 1, b"", None)

# An execution id is the broker's life (24 random bits) and a counter within it.
_COUNTER_BITS = 38

# As a plain name, for each ``Outcome.DONE`` calls Python code: see row.py.
_DONE = Outcome.DONE

# A client whose rows find no room comes back after the first of these; each time that none of them finds room again it
# is told twice as long, up to the last, so that those who wait cost little.
_FIRST_BUSY_S = 0.5
_LONGEST_BUSY_S = 8.0

# How long after a worker's loss its return still shows that nobody was to blame.
_REFUND_S = 60.0


class Ledger:
    """Rows and executions.

    Args:
        settings: the broker's.
        epoch: random for each life of a broker.
        now: when this life began.
        outgoing: where messages go.
        llm_of: the LLM of a name, made where it is new.
    """

    def __init__(
        self, settings: BrokerSettings, epoch: bytes, now: float, outgoing: Outgoing, llm_of: Callable[[str], LLM]
    ) -> None:
        self.rows: dict[bytes, Row] = {}
        self.executions: dict[int, Execution] = {}
        self.row_bytes = 0  # of all rows
        self._settings = settings
        self._has_row_times = settings.has_row_times
        self._outgoing = outgoing
        self._llm_of = llm_of
        self._settling: dict[bytes, Row] = {}  # submitted again, kept back until the workers have spoken
        self.is_settling = True
        self._settled_at = now + settings.settle_s
        # By then every client has had its time to say which rows of an earlier life it awaits.
        self._all_came_at = now + max(settings.settle_s, settings.client_grace_s)
        self._orphans: dict[bytes, float] = {}  # rows that only a worker knows, and until when
        self._stalled: dict[Client, None] = {}  # those that answers are withheld from
        self._charges: dict[bytes, tuple[float, list[Row]]] = {}  # by instance: whom its loss was charged to
        # Ids start at a random place, so that those of an earlier life are not taken for this one's.
        self._life = int.from_bytes(epoch[:3], "big")
        self._next_execution = self._life << _COUNTER_BITS

    def tick(self, now: float) -> None:
        """Let what was kept for a while go its way."""
        for client in list(self._stalled):
            self._send_withheld(client)
        if now >= self._settled_at:
            self.is_settling = False
            settled, self._settling = self._settling, {}
            for row in settled.values():
                self._enqueue(row, front=False)
        for row_id in [row_id for row_id, until in self._orphans.items() if now >= until]:
            self.drop(self.rows[row_id])
        for instance in [instance for instance, (until, _) in self._charges.items() if now >= until]:
            del self._charges[instance]

    def stood_still(self, gap_s: float, now: float) -> None:
        """The broker did nothing for so long: what peers have time for does not end by that."""
        if self.is_settling:
            self._settled_at = now + self._settings.settle_s
        self._all_came_at = max(self._all_came_at + gap_s, self._settled_at)
        self._orphans = {row_id: until + gap_s for row_id, until in self._orphans.items()}
        self._charges = {instance: (until + gap_s, rows) for instance, (until, rows) in self._charges.items()}

    # What clients say.

    def submit(self, client: Client, run: SubmitRun, now: float) -> None:
        """Enter rows, new or sent again, as far as there is room for them."""
        size = _size_of(run)
        if client.refused or not self._has_place(client, len(run.ids), size - len(run.options)):
            run = self._admitted(client, run, now)
            size = _size_of(run)
        else:
            client.busy_s = 0.0
        deadline = None if run.seconds_left is None else now + run.seconds_left
        spec = RowSpec(run.llm, run.kind, run.num_generations, run.options, deadline, run.hedge, now, run.trace)
        queue = self._llm_of(spec.llm).queue
        must_settle = run.again and now < self._settled_at
        client.row_bytes += size
        self.row_bytes += size
        known_bytes = 0
        new: list[Row] = []
        for row_id, payload in zip(run.ids, run.payloads, strict=True):
            row = self.rows.get(row_id)
            if row is None:
                row = self.rows[row_id] = client.rows[row_id] = Row(row_id, spec, client, payload)
                if not must_settle:
                    new.append(row)
                    continue
            elif row.state is MISSING and row.client is client:
                row.payload, row.spec = payload, spec  # and what is held against it stays
            else:
                known_bytes += len(payload) + len(run.options)
                self._submitted_again(client, row, payload, spec)
                continue
            if must_settle:
                row.record = RESUMED if row.record is CLEAN else replace(row.record, resumed=True)
                self._settle_later(row)
            else:
                self._enqueue(row, front=False)
        if known_bytes:
            client.row_bytes -= known_bytes
            self.row_bytes -= known_bytes
        if new:
            queue.push_new(client, new)

    def _has_place(self, client: Client, count: int, size: int) -> bool:
        """Whether so many new rows may be entered, of so many bytes in all.

        The options of one are not among these, for a row may be as long as all that a client may have.
        """
        settings, limits = self._settings, self._settings.limits
        return (
            len(client.rows) + count <= limits.max_client_rows
            and client.row_bytes + size <= limits.max_client_bytes
            and len(self.rows) + count <= settings.max_rows
            and self.row_bytes + size <= settings.max_bytes
        )

    def _admitted(self, client: Client, run: SubmitRun, now: float) -> SubmitRun:
        """The rows of ``run`` that are known or that there is room for, from its first on; the others are refused."""
        ids: list[bytes] = []
        payloads: list[Payload] = []
        refused: list[bytes] = []
        seen: set[bytes] = set()
        count = size = 0
        for row_id, payload in zip(run.ids, run.payloads, strict=True):
            if row_id in client.refused or row_id in seen:
                continue  # an earlier copy of this message, or of the row
            seen.add(row_id)
            known = self.rows.get(row_id)
            if known is None or (known.state is MISSING and known.client is client):
                count += known is None
                size += len(payload) + len(run.options)
                if refused or not self._has_place(client, count, size - len(run.options)):
                    refused.append(row_id)
                    continue
            ids.append(row_id)
            payloads.append(payload)
        if ids:
            client.busy_s = 0.0
        self.refuse(client, refused, now)
        return replace(run, ids=ids, payloads=payloads)

    def refuse(self, client: Client, row_ids: list[bytes], now: float) -> None:
        """There is no room for these rows: they are the client's again, once it has heard."""
        if not row_ids:
            return
        if now >= client.busy_until:
            client.busy_s = min(max(_FIRST_BUSY_S, 2 * client.busy_s), _LONGEST_BUSY_S)
            client.busy_until = now + client.busy_s
        for row_id in row_ids:
            if (row := client.rows.get(row_id)) is not None:
                self.drop(row)  # it was asked for
        client.refused.update(dict.fromkeys(row_ids))
        most = self._settings.limits.max_rows
        for at in range(0, len(row_ids), most):
            self._outgoing.send(client, Busy(row_ids[at : at + most], client.busy_until - now))

    def _submitted_again(self, client: Client, row: Row, payload: Payload, spec: RowSpec) -> None:
        """A row that is known already: from an earlier copy of this message, or from the worker that holds it.

        Without room for its payload it is asked for again if it must run once more.
        """
        if row.client is None:
            self._adopt(client, row)
        is_wanted = row.client is client and row.payload is None and row.state is not MISSING
        if is_wanted and self._has_place(client, 0, len(payload)):
            row.payload, row.spec = payload, spec
            client.row_bytes += row.size
            self.row_bytes += row.size

    def reconcile(self, client: Client, awaited: Collection[bytes], now: float) -> None:
        """What a client that has (re)connected awaits: the rest is dropped, and what nobody holds is asked for."""
        client.refused.clear()
        for row in [row for row in client.rows.values() if row.id not in awaited]:
            self.drop(row)
        missing: list[bytes] = []
        beyond: list[bytes] = []
        for row_id in [row_id for row_id in awaited if not self._is_cared_for(client, row_id)]:
            if row_id in self.rows:
                missing.append(row_id)  # it was asked for before
            elif len(self.rows) < self._settings.max_rows:
                # Entered now, so that both ends count the same rows; Submit will say the rest.
                self.rows[row_id] = client.rows[row_id] = Row(row_id, _UNKNOWN, client, None, MISSING)
                missing.append(row_id)
            else:
                beyond.append(row_id)
        self.refuse(client, beyond, now)
        most = self._settings.limits.max_rows
        for at in range(0, len(missing), most):
            self._outgoing.send(client, Missing(missing[at : at + most]))

    def _is_cared_for(self, client: Client, row_id: bytes) -> bool:
        """Whether an awaited row will be answered with what is held here and at workers, or is another client's."""
        row = self.rows.get(row_id)
        if row is None:
            return False
        if row.client is None:
            self._adopt(client, row)
        elif row.client is not client:
            return True
        elif row.state is ANSWERED:
            self._resend(row)
        return row.state is not MISSING

    def _adopt(self, client: Client, row: Row) -> None:
        """The client of a row that only a worker knew is here."""
        row.client = client
        client.rows[row.id] = row
        self._orphans.pop(row.id, None)
        self._resend(row)

    def release(self, client: Client, row_ids: Iterable[bytes]) -> None:
        """The client has the answers of these rows, or wants them no more."""
        settled: list[int] = []  # yet to be told to ``worker``
        worker: Worker | None = None
        size = unread = 0
        for row_id in row_ids:
            row = client.rows.pop(row_id, None)
            if row is None:
                client.refused.pop(row_id, None)
                continue
            execution = row.executions[0] if len(row.executions) == 1 else None
            if (
                execution is None
                or not execution.finished
                or row.state is not ANSWERED
                or row.record is not CLEAN
                or client.withheld
            ):
                self._released(worker, settled)
                settled = []
                self.drop(row)
                continue
            # What nearly all are, done at the first try, with one execution, which is over: as ``drop``, less what
            # cannot be.
            own, number = execution.worker, execution.id
            if own is not worker:
                self._released(worker, settled)
                worker, settled = own, []
            self.rows.pop(row_id, None)
            self.executions.pop(number, None)
            own.executions.pop(number, None)
            unread += row.unread_bytes
            size += len(row.payload or b"") + len(row.spec.options)
            row.state, row.payload, row.executions, row.unread_bytes = GONE, None, (), 0
            settled.append(number)
        client.unread_bytes -= unread
        client.row_bytes -= size
        self.row_bytes -= size
        self._released(worker, settled)

    def _released(self, worker: Worker | None, executions: list[int]) -> None:
        """Count and settle what ``release`` has collected: done rows of one worker."""
        if worker is not None and executions:
            self._llm_of(worker.hello.llm).tally.done += len(executions)
            self._outgoing.settle(worker, executions, are_over=True)

    # How rows go on.

    def drop(self, row: Row) -> None:
        """Forget a row that nobody awaits: withdraw it, stop it, or let its worker forget the answer."""
        self._count(row)
        self.rows.pop(row.id, None)
        self._orphans.pop(row.id, None)
        if row.client is not None:
            row.client.rows.pop(row.id, None)
            row.client.row_bytes -= row.size
            self._note_unread(row.client, row, 0)
        self.row_bytes -= row.size
        self._withdraw(row, GONE)
        row.state = GONE
        row.payload = None
        for execution in row.executions:
            self._settle(execution)

    def _count(self, row: Row) -> None:
        """Enter how a row has ended that leaves. One that is not here, or is nobody's, does not end here."""
        if row.client is None or row.state is MISSING:
            return
        tally, record = self._tally_of(row), row.record
        if row.state is not ANSWERED:
            tally.cancelled += 1
        elif record.verdict is not None and record.verdict[0] == Outcome.EXPIRED:
            tally.expired += 1
        elif record.verdict is not None or record.failed:
            tally.failed += 1
        else:
            tally.done += 1

    def _tally_of(self, row: Row) -> Tally:
        """The books of the row's LLM. Of a row that its client did not submit here, its worker knows that."""
        name = row.executions[0].worker.hello.llm if row.executions else row.spec.llm
        return self._llm_of(name).tally if name else Tally()

    def decide(self, row: Row, outcome: Outcome, payload: Payload) -> None:
        """Answer a row for good without an execution that could send the answer again."""
        row.record = replace(row.record, verdict=(outcome, payload))
        self._answer(row, outcome, payload, row.record.charged)

    def _answer(self, row: Row, outcome: int, payload: Payload, attempts: int) -> None:
        """Forward a row's answer, if its client reads. It stays known until its client releases it."""
        row.state = ANSWERED
        client = row.client
        if client is None or client.lost is not None:
            return
        if self._has_room(client, row, len(payload)):
            self._note_unread(client, row, len(payload))
            client.answered += 1
            self._outgoing.answer(client, Answer([row.id], [outcome], [attempts], [payload]))
        else:
            client.withheld[row] = len(payload)
            self._stalled[client] = None

    def _has_room(self, client: Client, row: Row, size: int) -> bool:
        """Whether an answer may be sent: the limit allows it, room is kept for it, or it would be the only one."""
        is_within = client.unread_bytes + size <= self._settings.max_unread_bytes
        return is_within or row.unread_bytes >= size or not client.unread_bytes

    def _note_unread(self, client: Client, row: Row, size: int) -> None:
        """The row's answer of ``size`` bytes is on its way to its client; 0 when it is not, or has arrived."""
        client.withheld.pop(row, None)
        client.unread_bytes += size - row.unread_bytes
        row.unread_bytes = size

    def _send_withheld(self, client: Client) -> None:
        """Have withheld answers sent, as far as the client has read on."""
        while client.withheld and client.lost is None:
            row, size = next(iter(client.withheld.items()))
            if not self._has_room(client, row, size):
                return
            # Room is kept until the worker has sent the answer again.
            self._note_unread(client, row, size)
            self._resend(row)
        del self._stalled[client]

    def _resend(self, row: Row) -> None:
        """Have an answer sent (again) that the client does not have; if its worker is gone, the row runs again."""
        if row.state is not ANSWERED:
            return
        if row.record.verdict is not None:
            self._answer(row, *row.record.verdict, row.record.charged)
            return
        finished = next((execution for execution in row.executions if execution.finished), None)
        if finished is None and not row.executions:
            self._run_again(row)
            return
        # It counts as running until the answer is here, so that it runs again if its worker is lost before. A worker
        # that is away says what it holds when it is back. One that came back may run it still.
        row.state = RUNNING
        if finished is not None:
            self._outgoing.send(finished.worker, Resend([finished.id]))

    def _run_again(self, row: Row) -> None:
        """Queue a row whose executions came to nothing; without its payload, ask its client for it."""
        if row.client is not None:
            self._note_unread(row.client, row, 0)
            self._tally_of(row).requeued += 1
        if row.record is CLEAN:
            row.record = REQUEUED
        elif not row.record.requeued or row.record.failed:
            row.record = replace(row.record, requeued=True, failed=False)
        if row.payload is not None:
            if row.record.resumed and self.is_settling:
                self._settle_later(row)  # another worker may hold its answer
            else:
                self._enqueue(row, front=True)
        elif row.client is not None:
            row.state = MISSING
            self._outgoing.send(row.client, Missing([row.id]))
        else:
            self.drop(row)

    def _enqueue(self, row: Row, *, front: bool) -> None:
        llm = self._llm_of(row.spec.llm)
        if row.record.suspect_group:
            llm.suspect(row)
        else:
            llm.queue.push(row, front=front)

    def _settle_later(self, row: Row) -> None:
        row.state = SETTLING
        self._settling[row.id] = row

    def _withdraw(self, row: Row, state: RowState) -> None:
        """Take a row out of where it waits, if it waits."""
        if row.state is QUEUED:
            self._llm_of(row.spec.llm).queue.withdraw(row, state)
        elif row.state is SUSPECTED:
            self._llm_of(row.spec.llm).suspects.remove(row)
        elif row.state is SETTLING:
            del self._settling[row.id]
        else:
            return
        row.state = state

    # Executions.

    def execute(self, worker: Worker, rows: list[Row], now: float) -> int:
        """Enter one hand-out of ``rows`` to ``worker``, as one run. Returns the id of the first execution."""
        first = self._next_execution
        self._next_execution += len(rows)
        if self._has_row_times:
            self._note_wait(worker, rows, now)
        for number, row in enumerate(rows, first):
            execution = self.executions[number] = worker.executions[number] = Execution(number, row, worker, now)
            row.executions += (execution,)
            if row.spec.hedge:
                self._llm_of(row.spec.llm).stragglers.begin(execution)
        worker.running += len(rows)
        worker.used += 1 if worker.hello.batch_size > 1 else len(rows)
        return first

    def _note_wait(self, worker: Worker, rows: list[Row], now: float) -> None:
        wait = self._llm_of(worker.hello.llm).tally.wait
        for row in rows:
            if not row.executions and not row.record.requeued:
                wait.observe(now - row.spec.submitted)

    def _note_run(self, worker: Worker, result: Result, now: float) -> None:
        run = self._llm_of(worker.hello.llm).tally.run
        for number, outcome in zip(result.executions, result.outcomes, strict=True):
            execution = worker.executions.get(number)
            if execution is not None and outcome == _DONE and not execution.finished:
                run.observe(now - execution.since)

    def ended(self, worker: Worker, result: Result, now: float) -> None:
        """A worker says how executions ended."""
        answered: dict[Client, Answer] = {}
        most = self._settings.max_unread_bytes
        if self._has_row_times:
            self._note_run(worker, result, now)
        for number, outcome, payload in zip(result.executions, result.outcomes, result.payloads, strict=True):
            execution = worker.executions.get(number)
            if execution is None:
                continue  # settled while its answer was on the way
            row = execution.row
            client = row.client
            size = len(payload)
            if (
                outcome != _DONE
                or execution.finished
                or row.state is not RUNNING
                or len(row.executions) > 1
                or row.spec.hedge
                or client is None
                or client.lost is not None
                or client.withheld
                or client.unread_bytes + size > most
            ):
                self._forward(worker, answered)
                self._ended(execution, outcome, payload, now)
                continue
            # What nearly all are: the only execution of a row whose client is there and reads. As ``_ended`` does it.
            execution.finished = True
            row.state = ANSWERED
            client.unread_bytes += size - row.unread_bytes
            row.unread_bytes = size
            answer = answered.get(client)
            if answer is None:
                answer = answered[client] = Answer([], [], [], [])
            answer.ids.append(row.id)
            answer.outcomes.append(outcome)
            answer.attempts.append(row.record.charged)
            answer.payloads.append(payload)
        self._forward(worker, answered)

    def _forward(self, worker: Worker, answered: dict[Client, Answer]) -> None:
        """Count and forward what ``ended`` has collected, before anything else is said."""
        for client, answer in answered.items():
            count = len(answer.ids)
            worker.running -= count
            worker.done += count
            client.answered += count
            self._outgoing.answer(client, answer)
        answered.clear()

    def _ended(self, execution: Execution, outcome: int, payload: Payload, now: float) -> None:
        worker = execution.worker
        if not execution.finished:
            if outcome == Outcome.DONE and execution.row.spec.hedge:
                # Before it is forgotten.
                self._llm_of(execution.row.spec.llm).stragglers.done(execution, now)
            self._finish(execution)
            worker.done += outcome == Outcome.DONE
            worker.failed += outcome in (Outcome.FAILED, Outcome.RAISED)
        is_last = len(execution.row.executions) == 1
        if outcome == Outcome.DONE or (outcome == Outcome.FAILED and is_last):
            self._succeeded(execution, outcome, payload)
        else:
            self._came_to_nothing(execution, outcome, payload)

    def _finish(self, execution: Execution) -> None:
        """It runs no more, however it has ended."""
        execution.finished = True
        execution.worker.running -= 1
        if execution.row.spec.hedge:
            self._llm_of(execution.row.spec.llm).stragglers.forget(execution)

    def _succeeded(self, execution: Execution, outcome: int, payload: Payload) -> None:
        row = execution.row
        has_failed = outcome == Outcome.FAILED
        if row.record.failed is not has_failed:
            row.record = replace(row.record, failed=has_failed)
        self._withdraw(row, ANSWERED)
        for other in [other for other in row.executions if other is not execution]:
            self._settle(other)
        # Not added to the row's count, for the same answer may come again after a reconnect.
        self._answer(row, outcome, payload, row.record.charged + has_failed)

    def _came_to_nothing(self, execution: Execution, outcome: int, payload: Payload) -> None:
        row = execution.row
        if outcome == Outcome.RAISED:
            # Its worker may not hear that it is settled, and claim it again.
            raised = (*row.record.raised, execution.id)
            row.record = replace(row.record, charged=row.record.charged + 1, raised=raised)
        self._settle(execution)
        if row.executions or row.state is ANSWERED:
            return  # another execution may still answer it
        if outcome == Outcome.RAISED and row.record.charged >= self._settings.max_attempts:
            self.decide(row, Outcome.FAILED, payload)
        else:
            self._run_again(row)

    def _settle(self, execution: Execution) -> None:
        """Take an execution out of the ledger, and have its worker do so."""
        worker = execution.worker
        self.executions.pop(execution.id, None)
        execution.row.executions = tuple(one for one in execution.row.executions if one is not execution)
        if worker.executions.pop(execution.id, None) is not None:
            is_over = execution.finished
            if not is_over:
                self._finish(execution)
                worker.stopped += 1
            self._outgoing.settle(worker, [execution.id], are_over=is_over)

    def claim(self, worker: Worker, execution_id: int, row_id: bytes, finished: bool, now: float) -> None:
        """A worker that has (re)connected holds this execution: it goes on, or is settled when nobody wants it."""
        execution = self.executions.get(execution_id)
        # Nobody can hold what was not handed out yet; an entry under such an id would be in the way.
        is_known = execution_id >> _COUNTER_BITS != self._life or execution_id < self._next_execution
        if execution is None and is_known:
            row = self.rows.get(row_id) or self._orphan(worker, execution_id, row_id, now)
            if row is not None and _may_be_claimed(row, worker, execution_id):
                execution = self.executions[execution_id] = Execution(execution_id, row, worker, now)
                worker.executions[execution_id] = execution
                row.executions += (execution,)
                worker.running += 1
        if execution is None or execution.row.id != row_id or execution.worker is not worker:
            self._outgoing.send(worker, Settle([execution_id]))
            return
        if finished and not execution.finished:
            self._finish(execution)
        self._claimed(execution, finished)

    def _claimed(self, execution: Execution, finished: bool) -> None:
        row = execution.row
        self._withdraw(row, RUNNING)
        if row.state is MISSING:
            row.state = RUNNING
        if finished and row.client is not None and row.client.lost is None:
            self._outgoing.send(execution.worker, Resend([execution.id]))
        elif finished:
            row.state = ANSWERED  # asked for when its client comes

    def _orphan(self, worker: Worker, execution_id: int, row_id: bytes, now: float) -> Row | None:
        """A row of an earlier life, known from its worker alone until its client comes; None when none can come."""
        settings = self._settings
        # An id of this life that is not in the ledger was settled.
        is_late = now >= self._all_came_at
        is_full = len(self.rows) >= settings.max_rows
        if is_late or is_full or execution_id >> _COUNTER_BITS == self._life:
            return None
        spec = RowSpec(worker.hello.llm, "", 1, b"", None)
        row = self.rows[row_id] = Row(row_id, spec, None, None, RUNNING)
        self._orphans[row_id] = now + settings.client_grace_s
        return row

    def requeue(self, executions: Iterable[Execution]) -> None:
        """These executions will not happen: their rows go back to the head of the queue, uncharged."""
        for execution in reversed(list(executions)):
            self._settle(execution)
            if not execution.row.executions and execution.row.state is RUNNING:
                self._run_again(execution.row)

    def lost(self, worker: Worker, *, is_blameless: bool, now: float) -> None:
        """A worker will not come back. If its process has ended, who was running in it is suspected.

        After a silence (a cut network, a frozen host), or when it had been told to stop, nobody is. A row that runs
        elsewhere too is charged and goes on there.
        """
        running = [execution for execution in worker.executions.values() if not execution.finished]
        rows = [execution.row for execution in running if execution.row.state is RUNNING]
        attempts = self._settings.max_attempts
        suspects = [] if is_blameless else rows
        lost_with = len(running) + worker.unwanted
        for row in suspects:
            charged = row.record.charged + 1
            group = suspect_group_size(lost_with, charged, attempts)
            row.record = replace(row.record, charged=charged, suspect_group=group)
        last = [row for row in suspects if len(row.executions) == 1]
        guilty = [row for row in last if is_guilty(lost_with, row.record.charged, attempts)]
        for row in guilty:
            self.decide(row, Outcome.FAILED, pack_failure(_lost_failure(worker, row)))
        self.requeue(worker.executions.values())
        if suspects:
            llm = self._llm_of(worker.hello.llm)
            llm.last_death = max(llm.last_death, worker.gone)
            self._charges[worker.hello.instance] = (now + _REFUND_S, suspects)

    def refund(self, instance: bytes) -> None:
        """A worker that was taken for ended is back: nobody was to blame."""
        _, rows = self._charges.pop(instance, (0.0, []))
        for row in rows:
            charged, was_suspect = row.record.charged - 1, row.record.suspect_group
            row.record = replace(row.record, charged=charged)
            if charged or not was_suspect:
                continue
            llm = self._llm_of(row.spec.llm)
            row.record = replace(row.record, suspect_group=0)
            if row.state is SUSPECTED:
                llm.suspects.remove(row)
                llm.queue.push(row, front=True)


def _size_of(run: SubmitRun) -> int:
    """How many bytes its rows have, as Row.size counts them."""
    return sum(map(len, run.payloads)) + len(run.options) * len(run.ids)


def _may_be_claimed(row: Row, worker: Worker, execution_id: int) -> bool:
    """Whether an execution of it that is not known may go on. A worker is given a row once at a time."""
    is_there = any(one.worker is worker for one in row.executions)
    return not is_there and not _has_answer(row) and execution_id not in row.record.raised


def _has_answer(row: Row) -> bool:
    """Whether an answer was sent that can be sent again."""
    is_kept = row.record.verdict is not None or any(execution.finished for execution in row.executions)
    return row.state is ANSWERED and is_kept


def _lost_failure(worker: Worker, row: Row) -> Failure:
    hello = worker.hello
    text = (
        f"the row ended {row.record.charged} worker processes of {hello.llm!r}, the last one "
        f"({hello.host}:{hello.pid}) while it ran alone"
    )
    return Failure("WorkerLost", text, "WorkerLost", worker=str(hello.pid), host=hello.host)
