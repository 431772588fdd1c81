"""The broker as a state machine: messages, failed sends and ticks go in with the time, effects come out.

It does no I/O and reads no clock. Every public method returns effects in the order in which they must be performed;
``flush`` ends a burst of received messages, and only then are rows handed out and answers forwarded, so that many
rows share a message.

This module is about who is there: connections, liveness, graces. What they hold is in ledger.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..protocol.limits import MAX_COUNT, PROTOCOL_VERSION
from ..protocol.messages import (
    Ask,
    Assign,
    Await,
    Dismiss,
    Dismissed,
    Drain,
    Fleet,
    Goodbye,
    Grant,
    Hello,
    Hold,
    Message,
    Ping,
    Refuse,
    Release,
    Reset,
    Result,
    Role,
    Status,
    Submit,
    Welcome,
    WorkerState,
)
from ..protocol.printable import plural
from .access import OPEN, Access
from .dispatch import Dispatcher
from .ledger import Ledger
from .naming import find, info_of, name_of
from .offence import Offences
from .outgoing import Effect, Outgoing
from .peer import LLM, Client, Peer, Worker
from .report import Lost, counts, report
from .settings import BrokerSettings
from .tally import SAMPLE_S, LoopTally

# More lost workers than this are not reported: a fleet that loses so many has other troubles.
_MOST_LOST = 1000

# So many messages, and one for each row that a client may have, wait for a peer that does not read.
_MOST_UNREAD = 10_000

# How often a report is made for those who ask. It may take 10 ms: more would take time from rows, and fewer would have
# people wait.
_REPORT_EVERY_S = 0.2

# How often the log says that peers are turned away.
_FULL_EVERY_S = 60.0

# So many clients that were kicked are known: whose session ended by that does not come back by itself.
_MOST_KICKED = 10_000

_DRAINED = "an admin had it drained"
_KICKED = "an admin has ended the session of this client"

# In whose name unusable messages of nobody's connections, and refusals, are counted for the log.
_STRANGERS = b""
_REFUSED = b"refused"


@dataclass(slots=True)
class _Departure:
    """A worker whose connection broke, until when it may come back, whether its rows had no part in that, and why."""

    worker: Worker
    until: float
    is_blameless: bool
    why: str


class Broker:
    """The machine. One instance is one life of a broker, told apart by its ``epoch``."""

    def __init__(self, settings: BrokerSettings, epoch: bytes, now: float, access: Access = OPEN) -> None:
        self.settings = settings
        self.epoch = epoch
        self.started = now
        self.access = access
        self.peers: dict[bytes, Peer] = {}
        self.clients: dict[bytes, Client] = {}  # by instance, also those that are away
        self.workers: dict[bytes, Worker] = {}  # by instance, those that are connected
        self.llms: dict[str, LLM] = {}
        self._announced = 0  # how many of them some worker has announced: each has a place
        self.loop = LoopTally()  # its shell keeps it
        self._now = now
        self._out = Outgoing(settings.limits, self.peers)
        self.ledger = Ledger(settings, epoch, now, self._out, self._llm)
        self._dispatcher = Dispatcher(settings, self.ledger, self._out)
        self._departures: dict[bytes, _Departure] = {}  # by instance
        self._offences = Offences(
            settings.max_malformed, settings.shut_out_s
        )  # by key or process, strangers' by routing id
        self._lost_workers: deque[Lost] = deque(maxlen=_MOST_LOST)
        self._kicked: dict[bytes, None] = {}  # by instance, the first one first
        self._asking: dict[Peer, None] = {}  # for a report
        self._next_report = self._next_ping = self._next_sample = now
        self._stood_still_at = float("-inf")
        self._said_full_at = float("-inf")
        self._fleet_changed = False
        self._handlers: dict[type[Peer], dict[type[Any], Callable[[Any, Any], None]]] = {
            Client: {
                Ping: self._on_client_ping,
                Reset: self._on_reset,
                Goodbye: self._on_client_goodbye,
                Submit: self._on_submit,
                Release: self._on_release,
                Await: self._on_await,
                Ask: self._on_ask,
                Dismiss: self._on_dismiss,
            },
            Worker: {
                Ping: self._on_worker_ping,
                Reset: self._on_reset,
                Goodbye: self._on_worker_goodbye,
                Result: self._on_result,
                Grant: self._on_grant,
                Hold: self._on_hold,
            },
        }

    # What goes in.

    def received(self, peer_id: bytes, message: Message, now: float, key: str = "") -> None:
        """A message has come from this routing id. Its effects come with the next ``flush``.

        ``key`` is the public key that the connection has proven; it is looked at where the message is a hello.
        """
        self._now = now
        peer = self.peers.get(peer_id)
        if isinstance(message, Hello):
            self._on_hello(peer_id, peer, message, key)
        elif peer is None:
            # A message of a connection that was given up on, or from before this broker's life.
            self._out.send_past(peer_id, Reset("say hello first"))
        elif handler := self._handlers[type(peer)].get(type(message)):
            handler(peer, message)
        else:
            self.malformed(peer_id, f"a {type(message).__name__} is not for a {peer.hello.role} to send")

    def malformed(self, peer_id: bytes, reason: str) -> None:
        """Bytes have come that are no message for us; the peer's connection must start anew.

        Too many of them end it from here, and its process is kept out for a while.
        """
        peer = self.peers.get(peer_id)
        name = peer_id if peer is None else _name_of(peer.hello, peer.key)
        if self._offences.is_too_many(name, self._now):
            self._shut_out(peer_id, peer)
            return
        if peer is not None or not self._offences.is_too_many(_STRANGERS, self._now):
            self._out.log("warning", f"{self._name(peer_id)} sent something unusable: {reason}", peer and peer.hello)
        if peer is not None:
            self._out.send_past(peer_id, Reset(reason))

    def _shut_out(self, peer_id: bytes, peer: Peer | None) -> None:
        settings = self.settings
        why = f"more than {settings.max_malformed} unusable messages a minute"
        kept_out = "" if peer is None else f", and may come back after {settings.shut_out_s:g} s"
        self._out.send_past(peer_id, Refuse(f"this process has sent {why}{kept_out}: what speaks here is no genpool"))
        self._out.drop(peer_id)
        if peer is not None:
            self._offences.keep_out(_name_of(peer.hello, peer.key), self._now)
            self._out.log(
                "warning", f"{self._name(peer_id)} is kept out for {settings.shut_out_s:g} s: it sent {why}", peer.hello
            )
            self._lost(peer, f"it sent {why}", silent=True)

    def send_failed(self, peer_id: bytes, message: Message, *, gone: bool, silent: bool = False, now: float) -> None:
        """A send could not be made: the peer is ``gone``, or its queue is full and the message must wait.

        A peer that is gone was ``silent`` when it did not close its connection: nothing came from it any more.
        """
        self._now = now
        peer = self.peers.get(peer_id)
        if gone:
            if peer is not None:
                self._lost(peer, "it fell silent" if silent else "its connection broke", silent=silent)
            self._unassign(peer_id, message)
        elif peer is not None and not isinstance(message, Ping):  # the next ping says more
            peer.outbox.put_back(message)

    def connection_broke(self, now: float) -> None:
        """Some connection broke: the pings of the next tick find out whose."""
        self._now = now
        self._next_ping = now

    def stood_still(self, gap_s: float, now: float) -> None:
        """The broker itself did nothing for a while: who could not be heard meanwhile is neither late nor to blame."""
        self._now = self._stood_still_at = now
        self._out.log("warning", f"this broker stood still for {gap_s:.1f} s; peers that gave it up may come back")
        for departure in self._departures.values():
            departure.until += gap_s
        for client in self.clients.values():
            if client.lost is not None:
                client.lost += gap_s
        for llm in self.llms.values():
            if llm.judge_missed_since is not None:
                llm.judge_missed_since += gap_s
        self.ledger.stood_still(gap_s, now)

    def flush(self, now: float) -> list[Effect]:
        """End a burst: hand out rows, forward answers, and return all effects since the last flush."""
        self._now = now
        for llm in self.llms.values():
            if llm.free and (len(llm.queue) or llm.suspects):
                self._dispatcher.dispatch(llm, now)
        if self._asking and now >= self._next_report:
            self._tell_status(now)
        return self._out.take()

    def tick(self, now: float) -> list[Effect]:
        """Time has passed: retry full peers, ping, and let graces end."""
        self._now = now
        for peer in [peer for peer in self.peers.values() if peer.outbox]:
            if len(peer.outbox) > _MOST_UNREAD + self.settings.limits.max_client_rows:
                self._give_up(peer, "you do not read what you are sent")
                continue
            for message in peer.outbox.take():
                self._out.send_past(peer.id, message)
        self._end_graces()
        self._offences.tick(now)
        self.ledger.tick(now)
        self._out.flush_settles()
        self._sample_rates(now)
        if now >= max(self.started, self._stood_still_at) + self.settings.settle_s:
            # Before, what seems to straggle may only be unheard yet.
            for llm in self.llms.values():
                self._dispatcher.hedge(llm, now)
        if now >= self._next_ping:
            self._next_ping = now + self.settings.ping_interval_s
            self._ping()
        if self._fleet_changed:
            self._fleet_changed = False
            fleet = self._fleet()
            for peer in self.peers.values():
                if isinstance(peer, Client):
                    self._out.send(peer, fleet)
        return self.flush(now)

    def stop(self, reason: str) -> list[Effect]:
        """The last words of a broker that ends on purpose: peers keep what they hold and look for it again."""
        for peer_id in self.peers:
            self._out.send_past(peer_id, Goodbye(reason))
        return self._out.take()

    @property
    def is_settling(self) -> bool:
        """Whether it has just started, and keeps back rows that were submitted again."""
        return self.ledger.is_settling

    def report(self, now: float) -> dict[str, Any]:
        """The fleet in detail, for people: see report.py."""
        return report(
            self.started,
            len(self.ledger.rows),
            self.llms.values(),
            self.clients.values(),
            self._lost_workers,
            self.loop,
            now,
            executions=self.ledger.executions.values(),
            has_row_times=self.settings.has_row_times,
        )

    def counts(self, now: float) -> dict[str, Any]:
        """What grows and waits, by LLM; far cheaper than a report."""
        return counts(self.started, self.llms.values(), now)

    def row_of(self, execution: int) -> bytes | None:
        """The id of the row that is executed so; None where that is over."""
        known = self.ledger.executions.get(execution)
        return None if known is None else known.row.id

    # Who comes.

    def _on_hello(self, peer_id: bytes, peer: Peer | None, hello: Hello, key: str) -> None:
        if hello.version != PROTOCOL_VERSION:
            text = f"this broker speaks version {PROTOCOL_VERSION} of the protocol and you version {hello.version}"
            self._out.send_past(peer_id, Refuse(f"{text}: install the same release of genpool on both sides"))
        elif (reason := self._refusal(key, hello)) is not None:
            self._refuse(peer_id, hello, reason)
        elif peer is not None and not peer.is_same_process(hello):
            self.malformed(peer_id, "a hello of another process, role or LLM than before")
        elif isinstance(peer, Worker):
            self._update_worker(peer, hello)
        elif peer is not None:
            self._welcome(peer)
        elif kept_out_s := self._offences.kept_out_s(_name_of(hello, key), self._now):
            # Not refused for good: others may have the same key, and have done nothing.
            who = "who has this key" if key else "this process"
            text = f"{who} has sent too many unusable messages, and is kept out for {kept_out_s:.0f} s more"
            self._out.send_past(peer_id, Reset(text))
            self._out.drop(peer_id)
        elif lack := self._lack_of_room(hello):
            self._turn_away(peer_id, hello, lack)
        elif hello.role == Role.CLIENT:
            self._welcome_client(peer_id, hello, key)
        elif hello.llm:
            self._welcome_worker(peer_id, hello, key)
        else:
            self.malformed(peer_id, "a worker's hello that names no LLM")

    def _refusal(self, key: str, hello: Hello) -> str | None:
        """Why who has this key may not say this hello; None when it may. A process belongs to its first key."""
        departure = self._departures.get(hello.instance)
        known: tuple[Peer | None, ...] = (
            self.clients.get(hello.instance),
            self.workers.get(hello.instance),
            departure.worker if departure is not None else None,
        )
        if any(peer.key != key for peer in known if peer is not None):
            return "it says that it is a process which has another key"
        if hello.instance in self._kicked:
            return _KICKED
        return self.access.refusal(key, hello)

    def _refuse(self, peer_id: bytes, hello: Hello, reason: str) -> None:
        self._out.send_past(peer_id, Refuse(reason))
        if not self._offences.is_too_many(_REFUSED, self._now):
            self._out.log("warning", f"{hello.role or 'a peer'} {hello.host}:{hello.pid} was refused: {reason}", hello)

    def admit(self, access: Access, now: float) -> None:
        """The list of allowed keys has changed: who may not be here any more must go, and is charged nothing."""
        self._now, self.access = now, access
        for peer in list(self.peers.values()):
            reason = access.refusal(peer.key, peer.hello)
            if reason is None:
                continue
            self._refuse(peer.id, peer.hello, reason)
            if isinstance(peer, Worker):
                self._on_worker_goodbye(peer, Goodbye(reason))
            elif isinstance(peer, Client):
                self._forget_client(peer)

    def _lack_of_room(self, hello: Hello) -> str:
        """Why whoever says this may not come in, or nothing. Who was here has its place until its grace is over."""
        settings, is_client = self.settings, hello.role == Role.CLIENT
        clients, workers = len(self.clients), len(self.workers) + len(self._departures)
        known = (self.clients,) if is_client else (self.workers, self._departures)
        if any(hello.instance in some for some in known):
            return ""
        if is_client and clients >= settings.max_clients:
            return f"this broker takes {settings.max_clients} clients (--max-clients), and all places are taken"
        if not is_client and workers >= settings.max_workers:
            return f"this broker takes {settings.max_workers} workers (--max-workers), and all places are taken"
        if not is_client and not self._is_announced(hello.llm) and self._announced >= settings.max_llms:
            return f"this broker knows {settings.max_llms} names of LLMs already, and takes no other one"
        if clients + workers >= settings.max_peers:
            return (
                f"this broker has room for {settings.max_peers} clients and workers, and all places are taken: raise "
                "the limit on open files that it is started with (ulimit -n, or LimitNOFILE= in a systemd unit)"
            )
        return ""

    def _turn_away(self, peer_id: bytes, hello: Hello, reason: str) -> None:
        self._out.send_past(peer_id, Refuse(reason))
        if self._now >= self._said_full_at + _FULL_EVERY_S:
            self._said_full_at = self._now
            self._out.log("warning", f"{hello.role} {hello.host}:{hello.pid} was turned away: {reason}", hello)

    def _welcome(self, peer: Peer) -> None:
        self.peers[peer.id] = peer
        self._out.send(peer, Welcome(self.epoch, self.settings.ping_interval_s, self.settings.limits))

    def _welcome_client(self, peer_id: bytes, hello: Hello, key: str) -> None:
        client = self.clients.get(hello.instance)
        if client is None:
            client = self.clients[hello.instance] = Client(peer_id, hello, key)
        else:
            # Its old connection may not have been seen to break yet.
            self._unlink(client)
            client.reconnect(peer_id, hello)
        self._welcome(client)
        self._out.send(client, self._fleet())

    def _welcome_worker(self, peer_id: bytes, hello: Hello, key: str) -> None:
        former = self.workers.get(hello.instance)
        if former is not None:
            self._lost(former, "it opened a new connection")
        worker = self.workers[hello.instance] = Worker(peer_id, hello, key, since=self._now)
        departure = self._departures.pop(hello.instance, None)
        if departure is None:
            self.ledger.refund(hello.instance)
        else:
            worker.inherit(departure.worker)
        llm = self._llm(hello.llm)
        self._announced += not llm.announced
        llm.announced = True
        llm.workers[worker] = None
        self._welcome(worker)
        self._out.log("info", f"worker {hello.host}:{hello.pid} serves {hello.llm!r}: {hello.state}", hello)
        self._update_worker(worker, hello)
        if worker.is_dismissed and hello.state != WorkerState.DRAINING:
            self._out.send(worker, Drain(_DRAINED))  # it was lost on the way

    def _update_worker(self, worker: Worker, hello: Hello) -> None:
        former, worker.hello = worker.hello, hello
        llm = self._llm(hello.llm)
        if hello.model_name or not llm.last_hello.model_name:
            llm.last_hello = hello
        llm.note_credit(worker)
        self._fleet_changed = True
        if former.state != hello.state:
            self._log_state(hello)

    def _on_grant(self, worker: Worker, message: Grant) -> None:
        hello = worker.hello
        changed = (hello.state, hello.reason) != (message.state, message.reason)
        hello.credit, hello.state, hello.reason = message.credit, message.state, message.reason
        self._llm(hello.llm).note_credit(worker)
        if changed:
            self._fleet_changed = True
            self._log_state(hello)

    def _log_state(self, hello: Hello) -> None:
        reason = f" ({hello.reason})" if hello.reason else ""
        self._out.log("info", f"worker {hello.host}:{hello.pid} of {hello.llm!r} is {hello.state}{reason}", hello)

    # Who goes.

    def _on_client_goodbye(self, client: Client, message: Goodbye) -> None:
        self._forget_client(client)

    def _on_worker_goodbye(self, worker: Worker, message: Goodbye) -> None:
        level = "info" if worker.is_draining else "warning"
        self._lost(worker, message.reason or "it said goodbye", level=level)
        departure = self._departures.pop(worker.hello.instance)
        self.ledger.requeue(departure.worker.executions.values())

    def _on_reset(self, peer: Peer, message: Reset) -> None:
        """It gives this connection up, and opens another one."""
        self._lost(peer, message.reason, silent=True)

    def _lost(self, peer: Peer, why: str, *, silent: bool = False, level: str = "warning") -> None:
        """The connection is gone; the peer may come back with a new one."""
        self._unlink(peer)
        self._out.forget(peer)
        if isinstance(peer, Client):
            peer.lost = self._now
            if peer.rows:
                kept = f"{_rows_are(peer)} kept for {self.settings.client_grace_s:g} s"
                self._out.log(
                    "warning", f"client {peer.hello.host}:{peer.hello.pid} is away: {why}; {kept}", peer.hello
                )
        elif isinstance(peer, Worker):
            del self.workers[peer.hello.instance]
            llm = self._llm(peer.hello.llm)
            llm.remove(peer, self._now)
            was_deaf = self._now < self._stood_still_at + self.settings.settle_s
            grace_s = max(self.settings.worker_grace_s, self.settings.settle_s if was_deaf else 0.0)
            # One that was told to stop and is killed before it has finished was not ended by what it ran.
            is_blameless = silent or was_deaf or peer.is_draining
            self._departures[peer.hello.instance] = _Departure(peer, self._now + grace_s, is_blameless, why)
            for message in reversed(peer.outbox.take_all()):
                self._unassign(peer.id, message)
            self._fleet_changed = True
            self._out.log(
                level, f"worker {peer.hello.host}:{peer.hello.pid} of {llm.name!r} is away: {why}", peer.hello
            )

    def _unlink(self, peer: Peer) -> None:
        """Its connection counts no more, unless it has become another one's: that said goodbye, and hello as it."""
        self._asking.pop(peer, None)
        if self.peers.get(peer.id) is peer:
            del self.peers[peer.id]

    def _give_up(self, peer: Peer, reason: str) -> None:
        """End a connection from here; its peer may come back with a new one, and begins anew."""
        self._out.send_past(peer.id, Reset(reason))
        self._lost(peer, reason, silent=True)

    def _unassign(self, peer_id: bytes, message: Message) -> None:
        """A message that never left: rows in it were not handed out."""
        runs = message.runs if isinstance(message, Assign) else []
        numbers = (number for run in runs for number in range(run.first_execution, run.first_execution + len(run.ids)))
        known = (execution for number in numbers if (execution := self.ledger.executions.get(number)))
        self.ledger.requeue([execution for execution in known if execution.worker.id == peer_id])

    def _end_graces(self) -> None:
        for instance, departure in [item for item in self._departures.items() if self._now >= item[1].until]:
            del self._departures[instance]
            self._lost_workers.append(Lost.of(departure.worker, departure.why))
            self._llm(departure.worker.hello.llm).tally.lost += 1
            self.ledger.lost(departure.worker, is_blameless=departure.is_blameless, now=self._now)
        for client in list(self.clients.values()):
            if client.lost is not None and self._now >= client.lost + self.settings.client_grace_s:
                if client.rows:
                    who = f"client {client.hello.host}:{client.hello.pid}"
                    self._out.log("warning", f"{who} did not come back: {_rows_are(client)} dropped", client.hello)
                self._forget_client(client)
        for llm in [llm for llm in self.llms.values() if llm.is_forgotten(self._now - self.settings.llm_memory_s)]:
            del self.llms[llm.name]
            self._announced -= llm.announced
            self._fleet_changed = True

    def _forget_client(self, client: Client) -> None:
        self._unlink(client)
        self.clients.pop(client.hello.instance, None)
        self._out.forget(client)
        for row in list(client.rows.values()):
            self.ledger.drop(row)

    # Who is sent away.

    def _on_dismiss(self, client: Client, message: Dismiss) -> None:
        self._out.send(client, self._dismiss(client, message))

    def _dismiss(self, client: Client, message: Dismiss) -> Dismissed:
        is_worker = message.role == Role.WORKER
        if (refusal := self.access.refusal_to_dismiss(client.key)) is not None:
            what = "drain a worker" if is_worker else "kick a client"
            if not self._offences.is_too_many(_REFUSED + _name_of(client.hello, client.key), self._now):
                self._out.log("warning", f"client {name_of(client)} may not {what}: {refusal}", client.hello)
            return Dismissed([], refusal, is_refused=True)
        if is_worker:
            serving = [one for one in self.workers.values() if message.llm in ("", one.hello.llm)]
            found = find(message.name, "worker", serving, message.llm)
        else:
            found = find(message.name, "client", [one for one in self.clients.values() if one is not client])
        if isinstance(found, str):
            return Dismissed([], found)
        told = Dismissed([info_of(peer) for peer in found])
        for peer in found:
            self._out.log("info", f"client {name_of(client)} dismisses {message.role} {name_of(peer)}", peer.hello)
            if isinstance(peer, Worker):
                self._drain(peer)
            else:
                self._kick(peer)
        return told

    def _drain(self, worker: Worker) -> None:
        worker.is_dismissed = True
        self._out.send(worker, Drain(_DRAINED))
        # As it will say itself: one that cannot hear it yet is given nothing more. Not of one that is unwell, which may
        # have a dead engine, and then who runs in it is charged.
        if worker.hello.state in (WorkerState.READY, WorkerState.LOADING):
            self._on_grant(worker, Grant(worker.used, WorkerState.DRAINING, _DRAINED))

    def _kick(self, client: Client) -> None:
        self._kicked[client.hello.instance] = None
        if len(self._kicked) > _MOST_KICKED:
            del self._kicked[next(iter(self._kicked))]
        if client.lost is None:
            self._out.send_past(client.id, Refuse(_KICKED))
            self._out.drop(client.id)
        self._forget_client(client)

    # What is said about rows.

    def _on_submit(self, client: Client, message: Submit) -> None:
        held, most = len(client.rows) + len(client.refused), self.settings.limits.max_client_rows
        if held + sum([len(run.ids) for run in message.runs]) > most:
            ids = {row_id for run in message.runs for row_id in run.ids}
            held += sum(row_id not in client.rows and row_id not in client.refused for row_id in ids)
            if held > most:
                self._give_up(client, f"you have {held} rows here, and this broker takes {most} of one client")
                return
        for run in message.runs:
            if run.llm in self.llms or len(self.llms) - self._announced < self.settings.max_llms:
                self.ledger.submit(client, run, self._now)
            else:
                self.ledger.refuse(client, run.ids, self._now)

    def _on_release(self, client: Client, message: Release) -> None:
        self.ledger.release(client, message.ids)

    def _on_await(self, client: Client, message: Await) -> None:
        """What a client that has (re)connected awaits. Like Hold, it counts once for each connection."""
        if client.reconciled:
            return
        client.awaited.update(dict.fromkeys(message.ids))
        most = self.settings.limits.max_client_rows
        if len(client.awaited) > most:
            self._give_up(client, f"you await more than the {most} rows that this broker takes of one client")
            return
        if not message.more:
            client.reconciled = True
            awaited, client.awaited = client.awaited, {}
            self.ledger.reconcile(client, awaited, self._now)

    def _on_client_ping(self, client: Client, message: Ping) -> None:
        known = len(client.rows) + len(client.refused)
        if message.held not in (None, known):
            text = f"you hold {message.held} rows here and I know {known}"
            self._out.send_past(client.id, Reset(text))

    def _on_worker_ping(self, worker: Worker, message: Ping) -> None:
        # It says what it holds before it pings. One that has not was given up here, and the hello that brought it back
        # was not the first of its connection.
        if not worker.reconciled:
            self._out.send_past(worker.id, Reset("you have not said what you hold"))

    def _on_ask(self, client: Client, message: Ask) -> None:
        self._asking[client] = None

    def _on_result(self, worker: Worker, message: Result) -> None:
        worker.hello.credit = message.credit
        worker.tokens = min(MAX_COUNT, worker.tokens + message.tokens)
        self.ledger.ended(worker, message, self._now)
        llm = self._llm(worker.hello.llm)
        if message.tokens:
            llm.tally.add_tokens(message.tokens)
        llm.note_credit(worker)

    def _on_hold(self, worker: Worker, message: Hold) -> None:
        """What a worker that has (re)connected holds. Known executions go on, wanted answers are asked for.

        It counts once for each connection: what was handed out or settled since is in no later copy of it.
        """
        if worker.reconciled:
            return
        for execution_id, row_id, finished in zip(message.executions, message.ids, message.finished, strict=True):
            worker.unclaimed.discard(execution_id)
            self.ledger.claim(worker, execution_id, row_id, finished, self._now)
        if message.more:
            return
        worker.reconciled = True
        # What it inherited from its last connection and does not hold never reached it.
        self.ledger.requeue([e for number, e in worker.executions.items() if number in worker.unclaimed])
        worker.unclaimed.clear()
        self._llm(worker.hello.llm).note_credit(worker)

    # What is said of the whole.

    def _ping(self) -> None:
        # A ping's count is of the ledger after all that was said before it.
        self._out.flush_settles()
        waiting = {name: llm.waiting() for name, llm in self.llms.items()}
        for peer in self.peers.values():
            if isinstance(peer, Worker):
                held = len(peer.executions) if peer.reconciled else None
                self._out.send_past(peer.id, Ping(held, waiting[peer.hello.llm]))
            else:
                self._out.send_past(peer.id, Ping(None))

    def _tell_status(self, now: float) -> None:
        self._next_report = now + _REPORT_EVERY_S
        status = Status(self.report(now))
        for peer in self._asking:
            self._out.send(peer, status)
        self._asking.clear()

    def _sample_rates(self, now: float) -> None:
        if now < self._next_sample:
            return
        self._next_sample = now + SAMPLE_S
        for llm in self.llms.values():
            llm.tally.rate.sample(now, llm.tally.done, llm.tally.tokens)
        for worker in self.workers.values():
            worker.rate.sample(now, worker.done, worker.tokens)

    def _fleet(self) -> Fleet:
        return Fleet([llm.info() for llm in self.llms.values() if llm.announced])

    def _llm(self, name: str) -> LLM:
        llm = self.llms.get(name)
        if llm is None:
            llm = self.llms[name] = LLM(name, unserved_since=self._now)
        return llm

    def _is_announced(self, name: str) -> bool:
        llm = self.llms.get(name)
        return llm is not None and llm.announced

    def _name(self, peer_id: bytes) -> str:
        peer = self.peers.get(peer_id)
        return f"{peer.hello.role} {peer.hello.host}:{peer.hello.pid}" if peer else "an unknown peer"


def _name_of(hello: Hello, key: str) -> bytes:
    """Who answers for what is sent: the key, where there are keys, for a process may call itself what it likes."""
    return key.encode() if key else hello.instance


def _rows_are(client: Client) -> str:
    return f"its {plural(len(client.rows), 'row')} {'is' if len(client.rows) == 1 else 'are'}"
