"""Handing out: which worker gets how many of the rows that wait, within its credit."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import islice

from ..protocol.content import Failure, pack_failure
from ..protocol.frames import Payload
from ..protocol.messages import Assign, AssignRun, Outcome
from .blame import SURVIVOR_WAIT_S, is_last_attempt, is_spared
from .ledger import Ledger
from .outgoing import Outgoing
from .peer import LLM, Worker
from .row import RUNNING, Row
from .settings import BrokerSettings


class Dispatcher:
    """Gives rows to workers. Rows are spread evenly over the workers that have credit, in turn."""

    def __init__(self, settings: BrokerSettings, ledger: Ledger, outgoing: Outgoing) -> None:
        self._limits = settings.limits
        self._max_attempts = settings.max_attempts
        self._ledger = ledger
        self._outgoing = outgoing

    def dispatch(self, llm: LLM, now: float) -> None:
        """Hand out what waits for ``llm``, as far as its workers' credit goes."""
        if llm.quarantine is not None and not llm.quarantine.tries_suspects:
            llm.quarantine = None
        spared = llm.quarantine
        if spared is None and llm.suspects:
            spared = self._try_suspects(llm, now)
        workers = llm.free if spared is None else (one for one in llm.free if one is not spared)
        # No more workers than rows, for a thousand may be free.
        open_workers = list(islice(workers, len(llm.queue)))
        for at, worker in enumerate(open_workers):
            waiting = len(llm.queue)
            if not waiting:
                break
            share = -(-waiting // (len(open_workers) - at))
            self._hand_out(llm, worker, share, now)
        self._fail_expired(llm)

    def hedge(self, llm: LLM, now: float) -> None:
        """Give rows that straggle to a second worker each, while no other row waits for one.

        Idle workers come first, and among them those that have not been slow themselves.
        """
        rows = [] if len(llm.queue) or llm.suspects else llm.stragglers.due(now)
        if not rows:
            return
        workers = [worker for worker in llm.free if worker is not llm.quarantine or not worker.running]
        workers.sort(key=lambda worker: (worker.load, worker.outrun))
        for row in rows:
            (first,) = row.executions
            worker = next((worker for worker in workers if worker is not first.worker), None)
            if worker is not None:
                workers.remove(worker)
                self._assign(llm, worker, [row], now)
                llm.stragglers.hedge(row.executions[-1])

    def _try_suspects(self, llm: LLM, now: float) -> Worker | None:
        """Suspects run in small groups, on one worker that runs nothing else meanwhile.

        Returns the worker that is given no other rows: it tries suspects, or has to end first what it runs.
        """
        first = next((row for row in llm.suspects if not _is_held_back(row)), None)
        if first is None:
            return None
        if llm.judge_missed_since is None:
            llm.judge_missed_since = now
        waited_s = now - llm.judge_missed_since
        is_last = is_last_attempt(first.record.charged, self._max_attempts)
        in_vain = is_last and waited_s >= SURVIVOR_WAIT_S
        judges: Collection[Worker] = (llm.survivors() if is_last and not in_vain else ()) or llm.free
        worker = min(judges, key=lambda judge: judge.load, default=None)
        if worker is None:
            return None
        if worker.running:
            return worker if is_spared(waited_s) else None
        if not in_vain:  # else those behind it would wait as long again, for survivors that are as busy
            llm.judge_missed_since = None
        group = self._next_suspects(llm, worker, now)
        for row in group:
            llm.suspects.remove(row)
            row.state = RUNNING
        self._assign(llm, worker, group, now, are_suspects=True)
        llm.quarantine = worker if group else None
        return llm.quarantine

    def _next_suspects(self, llm: LLM, worker: Worker, now: float) -> list[Row]:
        """The first suspects, as many as each of them may be tried with and the worker's credit carries."""
        over: list[Row] = []
        group: list[Row] = []
        size = self._limits.max_rows
        for row in llm.suspects:
            if _is_held_back(row):
                continue
            if row.spec.is_over(now):
                over.append(row)
                continue
            size = min(size, row.record.suspect_group)
            if len(group) >= size:
                break
            group.append(row)
        for row in over:
            llm.suspects.remove(row)
            row.state = RUNNING
            llm.queue.expired.append(row)
        if worker.hello.batch_size == 1:
            return group[: worker.free_calls]
        calls = islice(self._runs(group, worker.hello.batch_size), worker.free_calls)
        return [row for call, _ in calls for row in call]

    def _hand_out(self, llm: LLM, worker: Worker, share: int, now: float) -> None:
        """Give one worker at most ``share`` rows, within its credit; it goes to the end of the turn."""
        limits = self._limits
        batch = min(worker.hello.batch_size, limits.max_rows)
        calls = worker.free_calls
        if batch == 1:
            self._assign(llm, worker, llm.queue.take(min(calls, share, limits.max_rows), now), now)
        else:
            for _ in range(min(calls, -(-share // batch))):
                # A call's rows come together, in a message that may be as large as one for a single row.
                if run := llm.queue.take_run(batch, now, limits.max_row_bytes):
                    self._outgoing.send(worker, Assign([self._assign_run(worker, run, now)]))
            llm.note_credit(worker)
        if llm.free.pop(worker, worker) is None:
            llm.free[worker] = None

    def _assign(self, llm: LLM, worker: Worker, rows: list[Row], now: float, *, are_suspects: bool = False) -> None:
        """Send rows to a worker, as runs of neighbours that may share an engine call, in messages of bounded size."""
        runs: list[AssignRun] = []
        size = 0
        for run, run_size in self._runs(rows, worker.hello.batch_size):
            run_size += len(run[0].spec.options)
            if runs and size + run_size > self._limits.target_message_bytes:
                self._outgoing.send(worker, Assign(runs))
                runs, size = [], 0
            runs.append(self._assign_run(worker, run, now, are_suspects=are_suspects))
            size += run_size
        if runs:
            self._outgoing.send(worker, Assign(runs))
        llm.note_credit(worker)

    def _runs(self, rows: list[Row], batch_size: int) -> Iterator[tuple[list[Row], int]]:
        """Neighbours with the same options, cut so that a run is no longer than a call and no message too large.

        With how many bytes they have.
        """
        most = batch_size if batch_size > 1 else len(rows)
        run: list[Row] = []
        size = 0
        for row in rows:
            row_size = len(row.payload or b"")
            if run:
                is_full = len(run) >= most or size + row_size > self._limits.target_message_bytes
                if is_full or not row.spec.fits_with(run[0].spec):
                    yield run, size
                    run, size = [], 0
            run.append(row)
            size += row_size
        if run:
            yield run, size

    def _assign_run(self, worker: Worker, rows: list[Row], now: float, *, are_suspects: bool = False) -> AssignRun:
        spec = rows[0].spec
        latest, charged = spec.deadline, 0
        ids: list[bytes] = []
        payloads: list[Payload] = []
        for row in rows:
            deadline = row.spec.deadline
            if latest is not None and latest != deadline:
                latest = None if deadline is None else max(latest, deadline)
            if row.record.charged > charged:
                charged = row.record.charged
            ids.append(row.id)
            payloads.append(row.payload or b"")
        return AssignRun(
            kind=spec.kind,
            num_generations=spec.num_generations,
            options=spec.options,
            seconds_left=None if latest is None else latest - now,
            charged=charged,
            first_execution=self._ledger.execute(worker, rows, now),
            ids=ids,
            payloads=payloads,
            are_suspects=are_suspects,
            trace=spec.trace,
        )

    def _fail_expired(self, llm: LLM) -> None:
        if not llm.queue.expired:
            return
        expired, llm.queue.expired = llm.queue.expired, []
        failure = Failure("Expired", "its deadline passed while it waited for a worker", "TimeoutError")
        for row in expired:
            self._ledger.decide(row, Outcome.EXPIRED, pack_failure(failure))


def _is_held_back(row: Row) -> bool:
    """Whether its client must read on before it runs."""
    return row.client is not None and row.client.is_stalled
