"""The broker as a state machine: messages, failed sends and ticks go in with the time, effects come out.

It does no I/O and reads no clock. Every public method returns effects in the order in which they must be performed;
``flush`` ends a burst of received messages, and only then are rows handed out and answers forwarded, so that many
rows share a message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import Any

from ..protocol.codec import Message
from ..protocol.content import Failure, pack_failure
from ..protocol.limits import PROTOCOL_VERSION, Limits
from ..protocol.messages import (
    Answer,
    Ask,
    Assign,
    AssignRun,
    Await,
    Fleet,
    Goodbye,
    Grant,
    Hello,
    Hold,
    Missing,
    Outcome,
    Ping,
    Refuse,
    Release,
    Resend,
    Reset,
    Result,
    Role,
    Settle,
    Status,
    Submit,
    SubmitRun,
    Welcome,
)
from .blame import is_guilty, suspect_group_size, was_silent
from .peer import LLM, Client, Peer, Worker
from .report import report
from .row import Execution, Row, RowSpec, RowState


@dataclass(frozen=True, slots=True)
class BrokerSettings:
    """What can be set. Times are in seconds.

    Attributes:
        settle_s: after its start the broker keeps rows that were submitted again this long, so that workers can say
            that they hold them already. Longer saves work after a restart, shorter saves time.
        client_grace_s: how long a client may be away before its rows are dropped.
        worker_grace_s: how long a worker whose connection broke may take to come back before its rows go elsewhere.
            Longer than a reconnect takes, so that a cut repeats no work.
        heartbeat_timeout_s: how long a peer may be silent on the network.
        ping_interval_s: how often the broker speaks to each peer; a broken connection is noticed at the next send.
        max_attempts: how often a row may be charged before it fails.
        llm_memory_s: how long the name of an LLM that nobody serves and nobody waits for is remembered.
    """

    settle_s: float = 2.0
    client_grace_s: float = 10.0
    worker_grace_s: float = 0.5
    heartbeat_timeout_s: float = 10.0
    ping_interval_s: float = 0.5
    max_attempts: int = 3
    llm_memory_s: float = 3600.0
    limits: Limits = Limits()


@dataclass(frozen=True, slots=True)
class Send:
    """Effect: send ``message`` to the peer with this routing id."""

    peer: bytes
    message: Message


@dataclass(frozen=True, slots=True)
class Log:
    """Effect: one line for the log; ``level`` is a name of the logging module."""

    level: str
    text: str


Effect = Send | Log

# What is known of a row that its client awaits and nobody holds, until it is submitted again.
_UNKNOWN = RowSpec("", "", 1, b"", None)

# An execution id is the broker's life (24 random bits) and a counter within it.
_COUNTER_BITS = 38


@dataclass(slots=True)
class _Departure:
    """A worker whose connection broke, and until when it may come back."""

    worker: Worker
    until: float
    silent: bool


@dataclass(slots=True)
class _Answers:
    """Answers that are collected for one client until the flush."""

    ids: list[bytes] = field(default_factory=list[bytes])
    outcomes: list[int] = field(default_factory=list[int])
    attempts: list[int] = field(default_factory=list[int])
    payloads: list[bytes] = field(default_factory=list[bytes])
    size: int = 0


class Broker:
    """The machine. One instance is one life of a broker, told apart by its ``epoch``."""

    def __init__(self, settings: BrokerSettings, epoch: bytes, now: float) -> None:
        self.settings = settings
        self.epoch = epoch
        self.started = now
        self.peers: dict[bytes, Peer] = {}
        self.clients: dict[bytes, Client] = {}  # by instance, also those that are away
        self.llms: dict[str, LLM] = {}
        self.rows: dict[bytes, Row] = {}
        self.executions: dict[int, Execution] = {}
        self._departures: dict[bytes, _Departure] = {}  # by instance
        self._charges: dict[bytes, tuple[float, list[Row]]] = {}  # by instance: whom its loss was charged to
        self._settling: dict[bytes, Row] = {}  # submitted again, kept back until the workers have spoken
        self._orphans: dict[bytes, float] = {}  # rows that only a worker knows, and until when
        # Execution ids start at a random place, so that those of an earlier life are not taken for this one's.
        self._life = int.from_bytes(epoch[:3], "big")
        self._next_execution = self._life << _COUNTER_BITS
        self._next_ping = now
        self._fleet_changed = False
        self._effects: list[Effect] = []
        self._answers: dict[Client, _Answers] = {}
        self._settles: dict[Worker, list[int]] = {}
        self._handlers: dict[type[Any], Callable[[Any, Any, float], None]] = {
            Ping: self._on_ping,
            Goodbye: self._on_goodbye,
            Submit: self._on_submit,
            Release: self._on_release,
            Await: self._on_await,
            Ask: self._on_ask,
            Result: self._on_result,
            Grant: self._on_grant,
            Hold: self._on_hold,
        }
        self._handlers_of: dict[type[Peer], frozenset[type[Any]]] = {
            Client: frozenset({Ping, Goodbye, Submit, Release, Await, Ask}),
            Worker: frozenset({Ping, Goodbye, Result, Grant, Hold}),
        }

    # What goes in.

    def received(self, peer_id: bytes, message: Message, now: float) -> None:
        """A message has come from this routing id. Its effects come with the next ``flush``."""
        peer = self.peers.get(peer_id)
        if isinstance(message, Hello):
            self._on_hello(peer_id, peer, message, now)
        elif peer is None:
            # A message of a connection that was given up on, or from before this broker's life.
            self._effect(Send(peer_id, Reset("say hello first")))
        elif type(message) in self._handlers_of[type(peer)]:
            peer.heard = now
            self._handlers[type(message)](peer, message, now)
        else:
            self.malformed(peer_id, f"a {type(message).__name__} is not for a {peer.hello.role} to send")

    def malformed(self, peer_id: bytes, reason: str) -> None:
        """Bytes have come that are no message for us; the peer's connection must start anew."""
        self._effect(Log("warning", f"{self._name(peer_id)} sent something unusable: {reason}"))
        if peer_id in self.peers:
            self._effect(Send(peer_id, Reset(reason)))

    def send_failed(self, peer_id: bytes, message: Message, *, gone: bool, now: float) -> None:
        """A send could not be made: the peer is ``gone``, or its queue is full and the message must wait."""
        peer = self.peers.get(peer_id)
        if gone:
            if peer is not None:
                self._lost(peer, now, "its connection broke")
            self._unassign(peer_id, message)
        elif peer is not None and not isinstance(message, Ping):  # the next ping says more
            peer.put_off(message)

    def flush(self, now: float) -> list[Effect]:
        """End a burst: hand out rows, forward answers, and return all effects since the last flush."""
        for llm in self.llms.values():
            if llm.free and (len(llm.queue) or llm.suspects):
                self._dispatch(llm, now)
        self._flush_answers()
        self._flush_settles()
        effects, self._effects = self._effects, []
        return effects

    def tick(self, now: float) -> list[Effect]:
        """Time has passed: retry full peers, ping, and let graces end."""
        for peer in [peer for peer in self.peers.values() if peer.outbox]:
            self._effects += [Send(peer.id, message) for message in peer.take_outbox()]
        self._end_graces(now)
        if self._settling and now >= self.started + self.settings.settle_s:
            settled, self._settling = self._settling, {}
            for row in settled.values():
                self._llm(row.spec.llm).queue.push(row)
        if now >= self._next_ping:
            self._next_ping = now + self.settings.ping_interval_s
            # A ping's count is of the ledger after all that was said before it.
            self._flush_settles()
            for peer in self.peers.values():
                held = len(peer.executions) if isinstance(peer, Worker) and peer.reconciled else None
                self._effect(Send(peer.id, Ping(held)))
        if self._fleet_changed:
            self._fleet_changed = False
            for peer in self.peers.values():
                if isinstance(peer, Client):
                    self._send(peer, self._fleet())
        return self.flush(now)

    def stop(self, reason: str) -> list[Effect]:
        """The last words of a broker that ends on purpose: peers keep what they hold and look for it again."""
        self._effects += [Send(peer.id, Goodbye(reason)) for peer in self.peers.values()]
        effects, self._effects = self._effects, []
        return effects

    # Connections.

    def _on_hello(self, peer_id: bytes, peer: Peer | None, hello: Hello, now: float) -> None:
        if hello.version != PROTOCOL_VERSION:
            text = f"this broker speaks version {PROTOCOL_VERSION} of the protocol and you version {hello.version}"
            self._effect(Send(peer_id, Refuse(f"{text}: install the same release of genpool on both sides")))
        elif peer is not None and not peer.is_same_process(hello):
            self.malformed(peer_id, "a hello of another process, role or LLM than before")
        elif isinstance(peer, Worker):
            self._update_worker(peer, hello)
        elif peer is not None:
            self._welcome(peer)
        elif hello.role == Role.CLIENT:
            self._welcome_client(peer_id, hello, now)
        elif hello.llm:
            self._welcome_worker(peer_id, hello, now)
        else:
            self.malformed(peer_id, "a worker's hello that names no LLM")

    def _welcome(self, peer: Peer) -> None:
        self.peers[peer.id] = peer
        self._send(peer, Welcome(self.epoch, self.settings.ping_interval_s, self.settings.limits))

    def _welcome_client(self, peer_id: bytes, hello: Hello, now: float) -> None:
        client = self.clients.get(hello.instance)
        if client is None:
            client = self.clients[hello.instance] = Client(peer_id, hello, now)
        else:
            # Its old connection may not have been seen to break yet.
            self.peers.pop(client.id, None)
            client.id, client.hello, client.heard, client.lost = peer_id, hello, now, None
            client.take_outbox()
            client.awaited.clear()
        self._welcome(client)
        self._send(client, self._fleet())

    def _welcome_worker(self, peer_id: bytes, hello: Hello, now: float) -> None:
        for peer in [p for p in self.peers.values() if isinstance(p, Worker) and p.hello.instance == hello.instance]:
            self._lost(peer, now, "it opened a new connection")
        worker = Worker(peer_id, hello, now, since=now)
        departure = self._departures.pop(hello.instance, None)
        if departure is None:
            self._refund(hello.instance)
        else:
            worker.inherit(departure.worker)
        llm = self._llm(hello.llm)
        llm.announced = True
        llm.workers[worker] = None
        self._welcome(worker)
        self._effect(Log("info", f"worker {hello.host}:{hello.pid} serves {hello.llm!r}: {hello.state}"))
        self._update_worker(worker, hello)

    def _update_worker(self, worker: Worker, hello: Hello) -> None:
        changed = worker.hello.state != hello.state
        worker.hello = hello
        llm = self._llm(hello.llm)
        if hello.model_name or not llm.last_hello.model_name:
            llm.last_hello = hello
        self._fleet_changed = True
        self._note_credit(worker)
        if changed:
            reason = f" ({hello.reason})" if hello.reason else ""
            self._effect(Log("info", f"worker {hello.host}:{hello.pid} of {hello.llm!r} is {hello.state}{reason}"))

    def _on_goodbye(self, peer: Peer, message: Goodbye, now: float) -> None:
        if isinstance(peer, Client):
            self._forget_client(peer)
        elif isinstance(peer, Worker):
            self._lost(peer, now, message.reason or "it said goodbye")
            departure = self._departures.pop(peer.hello.instance, None)
            if departure is not None:
                self._requeue_departed(departure, blameless=True)

    def _lost(self, peer: Peer, now: float, why: str) -> None:
        """The connection is gone; the peer may come back with a new one."""
        self.peers.pop(peer.id, None)
        if isinstance(peer, Client):
            peer.lost = now
            self._answers.pop(peer, None)
        elif isinstance(peer, Worker):
            llm = self._llm(peer.hello.llm)
            llm.workers.pop(peer, None)
            llm.free.pop(peer, None)
            llm.unserved_since = now
            if llm.quarantine is peer:
                llm.quarantine = None
            silent = was_silent(now - peer.heard, self.settings.heartbeat_timeout_s)
            self._departures[peer.hello.instance] = _Departure(peer, now + self.settings.worker_grace_s, silent)
            self._settles.pop(peer, None)
            for message in reversed(peer.take_outbox()):
                self._unassign(peer.id, message)
            self._fleet_changed = True
            self._effect(Log("warning", f"worker {peer.hello.host}:{peer.hello.pid} of {llm.name!r} is away: {why}"))

    def _end_graces(self, now: float) -> None:
        for instance, departure in [item for item in self._departures.items() if now >= item[1].until]:
            del self._departures[instance]
            self._requeue_departed(departure, blameless=departure.silent, now=now)
        for client in [c for c in self.clients.values() if c.lost is not None]:
            if client.lost is not None and now >= client.lost + self.settings.client_grace_s:
                self._forget_client(client)
        for row_id in [row_id for row_id, until in self._orphans.items() if now >= until]:
            del self._orphans[row_id]
            self._drop(self.rows[row_id])
        for instance in [i for i, (until, _) in self._charges.items() if now >= until]:
            del self._charges[instance]
        for llm in [one for one in self.llms.values() if not one.workers and not len(one.queue) and not one.suspects]:
            if now >= llm.unserved_since + self.settings.llm_memory_s:
                del self.llms[llm.name]
                self._fleet_changed = True

    def _forget_client(self, client: Client) -> None:
        self.peers.pop(client.id, None)
        self.clients.pop(client.hello.instance, None)
        self._answers.pop(client, None)
        for row in list(client.rows.values()):
            self._drop(row)

    def _on_ping(self, peer: Peer, message: Ping, now: float) -> None:
        if isinstance(peer, Client) and message.held not in (None, len(peer.rows)):
            self._effect(Send(peer.id, Reset(f"you hold {message.held} rows here and I know {len(peer.rows)}")))

    def _on_ask(self, client: Client, message: Ask, now: float) -> None:
        self._send(client, Status(report(self, now)))

    # Rows.

    def _on_submit(self, client: Client, message: Submit, now: float) -> None:
        for run in message.runs:
            deadline = None if run.seconds_left is None else now + run.seconds_left
            spec = RowSpec(run.llm, run.kind, run.num_generations, run.options, deadline)
            self._submit_run(client, run, spec, now)

    def _submit_run(self, client: Client, run: SubmitRun, spec: RowSpec, now: float) -> None:
        queue = self._llm(spec.llm, now).queue
        must_settle = run.again and now < self.started + self.settings.settle_s
        for row_id, payload in zip(run.ids, run.payloads, strict=True):
            known = self.rows.get(row_id)
            if known is not None and known.state is not RowState.MISSING:
                self._submitted_again(client, known, payload, spec)
                continue
            row = self.rows[row_id] = client.rows[row_id] = Row(row_id, spec, client, payload)
            if must_settle:
                self._settling[row_id] = row
            else:
                queue.push(row)

    def _submitted_again(self, client: Client, row: Row, payload: bytes, spec: RowSpec) -> None:
        """A row that is known already: from an earlier copy of this message, or from the worker that holds it."""
        if row.client is None:
            self._adopt(client, row)
        if row.client is client and row.payload is None:
            row.payload, row.spec = payload, spec

    def _adopt(self, client: Client, row: Row) -> None:
        row.client = client
        client.rows[row.id] = row
        self._orphans.pop(row.id, None)
        self._resend(row)

    def _on_release(self, client: Client, message: Release, now: float) -> None:
        for row_id in message.ids:
            row = client.rows.get(row_id)
            if row is not None:
                self._drop(row)

    def _on_await(self, client: Client, message: Await, now: float) -> None:
        client.awaited.update(message.ids)
        if message.more:
            return
        awaited, client.awaited = client.awaited, set()
        for row in [row for row in client.rows.values() if row.id not in awaited]:
            self._drop(row)
        missing = [row_id for row_id in awaited if not self._is_cared_for(client, row_id)]
        for row_id in missing:
            # Entered now, so that both ends count the same rows; Submit will say the rest.
            self.rows[row_id] = client.rows[row_id] = Row(row_id, _UNKNOWN, client, None, RowState.MISSING)
        for at in range(0, len(missing), self.settings.limits.max_rows):
            self._send(client, Missing(missing[at : at + self.settings.limits.max_rows]))

    def _is_cared_for(self, client: Client, row_id: bytes) -> bool:
        """Whether an awaited row will be answered with what is held here and at workers."""
        row = self.rows.get(row_id)
        if row is None or row.client not in (None, client):
            return False
        if row.client is None:
            self._adopt(client, row)
        elif row.state is RowState.ANSWERED:
            self._resend(row)
        return row.state is not RowState.MISSING

    def _resend(self, row: Row) -> None:
        """Have an answer sent (again) that the client does not have; if its worker is gone, the row runs again."""
        if row.state is not RowState.ANSWERED:
            return
        if row.verdict is not None:
            self._answer(row, *row.verdict, row.charged)
            return
        for execution in row.executions:
            # It counts as running until the answer is here, so that it runs again if its worker is lost before.
            if execution.finished and execution.worker.id in self.peers:
                row.state = RowState.RUNNING
                self._send(execution.worker, Resend([execution.id]))
                return
            if execution.worker.hello.instance in self._departures:
                row.state = RowState.RUNNING
                return
        self._run_again(row)

    def _run_again(self, row: Row) -> None:
        """Queue a row whose executions came to nothing; without its payload, ask its client for it."""
        if row.payload is not None:
            llm = self._llm(row.spec.llm)
            if row.suspect_group:
                row.state = RowState.QUEUED
                llm.suspects.append(row)
            else:
                llm.queue.push(row, front=True)
        elif row.client is not None:
            row.state = RowState.MISSING
            self._send(row.client, Missing([row.id]))
        else:
            self._drop(row)

    def _drop(self, row: Row) -> None:
        """Forget a row that nobody awaits: withdraw it, stop it, or let its worker forget the answer."""
        self.rows.pop(row.id, None)
        self._orphans.pop(row.id, None)
        if row.client is not None:
            row.client.rows.pop(row.id, None)
        self._withdraw(row, RowState.GONE)
        row.state = RowState.GONE
        row.payload = None
        for execution in list(row.executions):
            self._settle(execution)

    def _withdraw(self, row: Row, state: RowState) -> None:
        """Take a row out of where it waits, if it waits."""
        if row.state is not RowState.QUEUED:
            return
        llm = self._llm(row.spec.llm)
        if row.suspect_group:
            llm.suspects.remove(row)
        elif self._settling.pop(row.id, None) is None:
            llm.queue.withdraw(row, state)
        row.state = state

    def _decide(self, row: Row, outcome: Outcome, payload: bytes) -> None:
        """Answer a row for good without an execution that could send the answer again."""
        row.verdict = (outcome, payload)
        self._answer(row, outcome, payload, row.charged)

    def _answer(self, row: Row, outcome: int, payload: bytes, attempts: int) -> None:
        """Forward a row's answer with the next flush. It stays known until its client releases it."""
        row.state = RowState.ANSWERED
        client = row.client
        if client is None or client.lost is not None:
            return
        client.answered += 1
        answers = self._answers.setdefault(client, _Answers())
        limits = self.settings.limits
        if answers.ids and (
            answers.size + len(payload) > limits.target_message_bytes or len(answers.ids) >= limits.max_rows
        ):
            self._flush_answers_of(client)
            answers = self._answers.setdefault(client, _Answers())
        answers.ids.append(row.id)
        answers.outcomes.append(outcome)
        answers.attempts.append(attempts)
        answers.payloads.append(payload)
        answers.size += len(payload)

    # Executions.

    def _on_grant(self, worker: Worker, message: Grant, now: float) -> None:
        hello = worker.hello
        changed = (hello.state, hello.reason) != (message.state, message.reason)
        hello.credit, hello.state, hello.reason = message.credit, message.state, message.reason
        self._note_credit(worker)
        if changed:
            self._fleet_changed = True
            reason = f" ({message.reason})" if message.reason else ""
            self._effect(Log("info", f"worker {hello.host}:{hello.pid} of {hello.llm!r} is {message.state}{reason}"))

    def _note_credit(self, worker: Worker) -> None:
        llm = self._llm(worker.hello.llm)
        if worker.free_calls and worker.id in self.peers:
            llm.free.setdefault(worker)
        else:
            llm.free.pop(worker, None)

    def _on_result(self, worker: Worker, message: Result, now: float) -> None:
        worker.hello.credit = message.credit
        worker.tokens += message.tokens
        for execution_id, outcome, payload in zip(message.executions, message.outcomes, message.payloads, strict=True):
            execution = worker.executions.get(execution_id)
            # An execution that is not in the ledger was settled while its answer was on the way.
            if execution is not None:
                self._ended(execution, outcome, payload)
        self._note_credit(worker)

    def _ended(self, execution: Execution, outcome: int, payload: bytes) -> None:
        row, worker = execution.row, execution.worker
        if not execution.finished:
            execution.finished = True
            worker.running -= 1
            worker.done += outcome == Outcome.DONE
            worker.failed += outcome in (Outcome.FAILED, Outcome.RAISED)
        if outcome in (Outcome.DONE, Outcome.FAILED):
            self._withdraw(row, RowState.ANSWERED)
            for other in [other for other in row.executions if other is not execution]:
                self._settle(other)
            # Not added to the row's count, for the same answer may come again after a reconnect.
            self._answer(row, outcome, payload, row.charged + (outcome == Outcome.FAILED))
            return
        row.charged += outcome == Outcome.RAISED
        exhausted = outcome == Outcome.RAISED and row.charged >= self.settings.max_attempts
        self._settle(execution)
        if row.executions or row.state is RowState.ANSWERED:
            return  # another execution may still answer it
        if exhausted:
            self._decide(row, Outcome.FAILED, payload)
        else:
            self._run_again(row)

    def _settle(self, execution: Execution) -> None:
        """Take an execution out of the ledger; its worker hears of it with the next flush."""
        worker = execution.worker
        self.executions.pop(execution.id, None)
        if execution in execution.row.executions:
            execution.row.executions.remove(execution)
        if worker.executions.pop(execution.id, None) is None:
            return
        worker.running -= not execution.finished
        if worker.id in self.peers:
            self._settles.setdefault(worker, []).append(execution.id)

    def _on_hold(self, worker: Worker, message: Hold, now: float) -> None:
        """What a worker that has (re)connected holds. Known executions go on, wanted answers are asked for."""
        for execution_id, row_id, finished in zip(message.executions, message.ids, message.finished, strict=True):
            worker.claimed.add(execution_id)
            self._claim(worker, execution_id, row_id, finished, now)
        if message.more:
            return
        worker.reconciled = True
        # What it inherited from its last connection and does not hold never reached it.
        self._requeue([e for number, e in worker.executions.items() if number not in worker.claimed])
        worker.claimed.clear()
        self._note_credit(worker)

    def _claim(self, worker: Worker, execution_id: int, row_id: bytes, finished: bool, now: float) -> None:
        execution = self.executions.get(execution_id)
        row = execution.row if execution is not None else self.rows.get(row_id)
        if execution is not None and (execution.row.id != row_id or execution.worker is not worker):
            self._send(worker, Settle([execution_id]))
            return
        if row is None:
            # An id of this life that is not in the ledger was settled; of an earlier life, its client may yet come.
            late = now >= self.started + max(self.settings.settle_s, self.settings.client_grace_s)
            if late or execution_id >> _COUNTER_BITS == self._life:
                self._send(worker, Settle([execution_id]))
                return
            row = self._orphan(worker, row_id, now)
        if execution is None:
            execution = self.executions[execution_id] = Execution(execution_id, row, worker)
            worker.executions[execution_id] = execution
            row.executions.append(execution)
            worker.running += 1
        if finished and not execution.finished:
            worker.running -= 1
        execution.finished = finished or execution.finished
        self._withdraw(row, RowState.RUNNING)
        if row.state is RowState.MISSING:
            row.state = RowState.RUNNING
        if finished and row.client is not None and row.client.lost is None:
            self._send(worker, Resend([execution_id]))
        elif finished:
            row.state = RowState.ANSWERED  # asked for when its client comes

    def _orphan(self, worker: Worker, row_id: bytes, now: float) -> Row:
        """A row of an earlier life of the broker, known from its worker alone until its client comes."""
        spec = RowSpec(worker.hello.llm, "", 1, b"", None)
        row = self.rows[row_id] = Row(row_id, spec, None, None, RowState.RUNNING)
        self._orphans[row_id] = now + self.settings.client_grace_s
        return row

    def _requeue_departed(self, departure: _Departure, *, blameless: bool, now: float = 0.0) -> None:
        """The worker will not come back with these executions: their rows go to the head of the queue."""
        executions = list(departure.worker.executions.values())
        running = [e for e in executions if not e.finished]
        charged: list[Row] = []
        for execution in reversed(executions):
            row = execution.row
            self._settle(execution)
            if row.executions or row.state is not RowState.RUNNING:
                continue
            if not blameless and not execution.finished:
                charged.append(row)
                row.charged += 1
                row.suspect_group = suspect_group_size(len(running), row.charged, self.settings.max_attempts)
                if is_guilty(len(running), row.charged, self.settings.max_attempts):
                    self._decide(row, Outcome.FAILED, pack_failure(self._lost_failure(departure.worker, row)))
                    continue
            self._run_again(row)
        if charged:
            self._charges[departure.worker.hello.instance] = (now + 60.0, charged)

    def _lost_failure(self, worker: Worker, row: Row) -> Failure:
        hello = worker.hello
        text = (
            f"the row ended {row.charged} worker processes of {hello.llm!r}, the last one "
            f"({hello.host}:{hello.pid}) while it ran alone"
        )
        return Failure("WorkerLost", text, "WorkerLost", worker=str(hello.pid), host=hello.host)

    def _refund(self, instance: bytes) -> None:
        """A worker that was taken for ended is back: nobody was to blame."""
        _, rows = self._charges.pop(instance, (0.0, []))
        for row in rows:
            row.charged -= 1
            if row.charged or not row.suspect_group:
                continue
            llm = self._llm(row.spec.llm)
            row.suspect_group = 0
            if row.state is RowState.QUEUED:
                llm.suspects.remove(row)
                llm.queue.push(row, front=True)

    # Handing out.

    def _dispatch(self, llm: LLM, now: float) -> None:
        if llm.suspects:
            self._dispatch_suspects(llm, now)
        elif llm.quarantine is not None and not llm.quarantine.running:
            llm.quarantine = None
        open_workers = [worker for worker in llm.free if worker is not llm.quarantine]
        for at, worker in enumerate(open_workers):
            if not len(llm.queue):
                break
            share = -(-len(llm.queue) // (len(open_workers) - at))
            self._hand_out(llm, worker, share, now)
        self._fail_expired(llm)

    def _dispatch_suspects(self, llm: LLM, now: float) -> None:
        """Suspects run in small groups, on one worker that runs nothing else meanwhile."""
        if llm.quarantine is None or llm.quarantine not in llm.free:
            if llm.quarantine is not None and llm.quarantine.running:
                return
            llm.quarantine = min(llm.free, key=lambda worker: worker.running, default=None)
        worker = llm.quarantine
        if worker is None or worker.running:
            return
        group = self._next_suspects(llm, worker, now)
        for row in group:
            llm.suspects.popleft()
            row.state = RowState.RUNNING
        self._assign(llm, worker, group, now)

    def _next_suspects(self, llm: LLM, worker: Worker, now: float) -> list[Row]:
        """The first suspects, as many as each of them may be tried with and the worker's credit carries."""
        while llm.suspects and llm.suspects[0].spec.is_over(now):
            llm.queue.expired.append(llm.suspects.popleft())
        group: list[Row] = []
        size = self.settings.limits.max_rows
        for row in llm.suspects:
            size = min(size, row.suspect_group)
            if len(group) >= size or row.spec.is_over(now):
                break
            group.append(row)
        if worker.hello.batch_size == 1:
            return group[: worker.free_calls]
        calls = islice(self._runs(group, worker.hello.batch_size), worker.free_calls)
        return [row for call in calls for row in call]

    def _hand_out(self, llm: LLM, worker: Worker, share: int, now: float) -> None:
        """Give one worker at most ``share`` rows, within its credit; it goes to the end of the turn."""
        batch, limits = worker.hello.batch_size, self.settings.limits
        calls = worker.free_calls
        if batch == 1:
            self._assign(llm, worker, llm.queue.take(min(calls, share, limits.max_rows), now), now)
        else:
            for _ in range(min(calls, -(-share // batch))):
                self._assign(llm, worker, llm.queue.take_run(batch, now, limits.target_message_bytes), now)
        if llm.free.pop(worker, worker) is None and worker.free_calls:
            llm.free[worker] = None

    def _assign(self, llm: LLM, worker: Worker, rows: list[Row], now: float) -> None:
        """Send rows to a worker, as runs of neighbours that may share an engine call, in messages of bounded size."""
        runs: list[AssignRun] = []
        size = 0
        for run in self._runs(rows, worker.hello.batch_size):
            if runs and size + sum(row.size for row in run) > self.settings.limits.target_message_bytes:
                self._send(worker, Assign(runs))
                runs, size = [], 0
            runs.append(self._assign_run(worker, run, now))
            size += sum(map(len, runs[-1].payloads))
        if runs:
            self._send(worker, Assign(runs))
        self._note_credit(worker)

    def _unassign(self, peer_id: bytes, message: Message) -> None:
        """A message that never left: rows in it were not handed out."""
        runs = message.runs if isinstance(message, Assign) else []
        numbers = (number for run in runs for number in range(run.first_execution, run.first_execution + len(run.ids)))
        known = (execution for number in numbers if (execution := self.executions.get(number)))
        self._requeue([execution for execution in known if execution.worker.id == peer_id])

    def _requeue(self, executions: list[Execution]) -> None:
        """These executions will not happen: their rows go back to the head of the queue, uncharged."""
        for execution in reversed(executions):
            self._settle(execution)
            if not execution.row.executions and execution.row.state is RowState.RUNNING:
                self._run_again(execution.row)

    def _fail_expired(self, llm: LLM) -> None:
        expired, llm.queue.expired = llm.queue.expired, []
        for row in expired:
            failure = Failure("Expired", "its deadline passed while it waited for a worker", "TimeoutError")
            self._decide(row, Outcome.EXPIRED, pack_failure(failure))

    def _runs(self, rows: list[Row], batch_size: int) -> Iterable[list[Row]]:
        """Neighbours with the same options, cut so that a run is no longer than a call and no message too large."""
        for _, group in groupby(rows, key=lambda row: (row.spec.kind, row.spec.num_generations, row.spec.options)):
            run: list[Row] = []
            size = 0
            for row in group:
                full = len(run) >= batch_size if batch_size > 1 else False
                if run and (full or size + row.size > self.settings.limits.target_message_bytes):
                    yield run
                    run, size = [], 0
                run.append(row)
                size += row.size
            yield run

    def _assign_run(self, worker: Worker, rows: list[Row], now: float) -> AssignRun:
        first = self._next_execution
        self._next_execution += len(rows)
        for number, row in enumerate(rows, first):
            execution = Execution(number, row, worker)
            self.executions[number] = worker.executions[number] = execution
            row.executions.append(execution)
        worker.running += len(rows)
        worker.used += 1 if worker.hello.batch_size > 1 else len(rows)
        spec = rows[0].spec
        deadlines = [row.spec.deadline for row in rows]
        left = None if None in deadlines else max(d for d in deadlines if d is not None) - now
        payloads = [row.payload or b"" for row in rows]
        charged = max(row.charged for row in rows)
        ids = [row.id for row in rows]
        return AssignRun(spec.kind, spec.num_generations, spec.options, left, charged, first, ids, payloads)

    # Sending.

    def _flush_answers(self) -> None:
        for client in list(self._answers):
            self._flush_answers_of(client)

    def _flush_answers_of(self, client: Client) -> None:
        answers = self._answers.pop(client)
        self._send(client, Answer(answers.ids, answers.outcomes, answers.attempts, answers.payloads))

    def _flush_settles(self) -> None:
        most = self.settings.limits.max_rows
        for worker, executions in self._settles.items():
            for at in range(0, len(executions), most):
                self._send(worker, Settle(executions[at : at + most]))
        self._settles.clear()

    def _send(self, peer: Peer, message: Message) -> None:
        """Send in order: behind what the peer has not taken yet."""
        if peer.id not in self.peers:
            return
        if peer.outbox:
            peer.put_off(message)
        else:
            self._effect(Send(peer.id, message))

    def _effect(self, effect: Effect) -> None:
        self._effects.append(effect)

    def _fleet(self) -> Fleet:
        return Fleet([llm.info() for llm in self.llms.values() if llm.announced])

    def _llm(self, name: str, now: float = 0.0) -> LLM:
        llm = self.llms.get(name)
        if llm is None:
            llm = self.llms[name] = LLM(name, unserved_since=now)
        return llm

    def _name(self, peer_id: bytes) -> str:
        peer = self.peers.get(peer_id)
        return f"{peer.hello.role} {peer.hello.host}:{peer.hello.pid}" if peer else "an unknown peer"
