"""What the broker is about to do: effects in order, and what is collected so that many rows share a message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..protocol.limits import Limits
from ..protocol.messages import Answer, Hello, Message, Settle
from .peer import Client, Peer, Worker


def fields_of(hello: Hello) -> dict[str, object]:
    """Who said it, for lines of the log that programs read."""
    fields: dict[str, object] = {hello.role or "peer": f"{hello.host}:{hello.pid}", "host": hello.host}
    return {**fields, "llm": hello.llm} if hello.llm else fields


# Never changed, but not frozen: that would treble what it costs to make one.
@dataclass(slots=True)
class Send:
    """Effect: send ``message`` to the peer with this routing id."""

    peer: bytes
    message: Message


@dataclass(frozen=True, slots=True)
class Log:
    """Effect: one line for the log; ``level`` is a name of the logging module, ``fields`` what JSON has beside."""

    level: str
    text: str
    fields: Mapping[str, object] = field(default_factory=dict[str, object], compare=False)


@dataclass(frozen=True, slots=True)
class Drop:
    """Effect: read nothing more of the peer with this routing id, and end its connection when it has heard why."""

    peer: bytes


Effect = Send | Log | Drop


@dataclass(slots=True)
class _Collected:
    """The answers for one client since the last flush, and how many bytes they have."""

    answer: Answer
    size: int

    def add(self, answer: Answer, size: int) -> None:
        whole = self.answer
        whole.ids += answer.ids
        whole.outcomes += answer.outcomes
        whole.attempts += answer.attempts
        whole.payloads += answer.payloads
        self.size += size


def _part(answer: Answer, rows: slice) -> Answer:
    return Answer(answer.ids[rows], answer.outcomes[rows], answer.attempts[rows], answer.payloads[rows])


class Outgoing:
    """Effects since the last ``take``. ``peers`` are the connections that there are: nothing is sent to others."""

    def __init__(self, limits: Limits, peers: dict[bytes, Peer]) -> None:
        self._limits = limits
        self._peers = peers
        self._effects: list[Effect] = []
        self._answers: dict[Client, _Collected] = {}
        self._settles: dict[Worker, list[int]] = {}
        self._stops: dict[Worker, None] = {}  # those that are to end something

    def log(self, level: str, text: str, about: Hello | None = None) -> None:
        """Write a line to the log; where it is ``about`` a peer, its name is a field of its own there."""
        self._effects.append(Log(level, text, {} if about is None else fields_of(about)))

    def drop(self, peer_id: bytes) -> None:
        """End a connection, known or not, behind what was sent to it."""
        self._effects.append(Drop(peer_id))

    def send(self, peer: Peer, message: Message) -> None:
        """Send in order: behind what the peer has not taken yet."""
        if self._peers.get(peer.id) is not peer:
            return
        if isinstance(peer, Worker) and peer in self._settles:
            self._send_settles(peer)
        if peer.outbox:
            peer.outbox.put_off(message)
        else:
            self._effects.append(Send(peer.id, message))

    def send_past(self, peer_id: bytes, message: Message) -> None:
        """Send to a routing id, known or not, and past what it has not taken yet."""
        self._effects.append(Send(peer_id, message))

    def answer(self, client: Client, answer: Answer) -> None:
        """Forward answers with the next flush, together with others. They are given away."""
        sizes = [len(payload) for payload in answer.payloads]
        size = sum(sizes)
        collected = self._answers.get(client)
        if collected is not None and not self._fits(collected.size + size, len(collected.answer.ids) + len(answer.ids)):
            self.send(client, self._answers.pop(client).answer)
            collected = None
        if collected is not None:
            collected.add(answer, size)
        elif len(answer.ids) == 1 or self._fits(size, len(answer.ids)):
            self._answers[client] = _Collected(answer, size)
        else:
            for part in self._limits.cut(sizes):
                self.answer(client, _part(answer, part))

    def _fits(self, size: int, rows: int) -> bool:
        """Whether so many bytes of so many rows may share a message."""
        return size <= self._limits.target_message_bytes and rows <= self._limits.max_rows

    def settle(self, worker: Worker | None, executions: list[int], *, are_over: bool) -> None:
        """Tell a worker that nobody waits for these executions, if there are any, any more.

        Of those that run it hears with the next flush. Of those that ``are_over`` it hears before anything else that it
        is sent, and with the next tick at the latest: to wake it for that alone would cost more than to run a row.
        """
        if executions and worker is not None and self._peers.get(worker.id) is worker:
            self._settles.setdefault(worker, []).extend(executions)
            if not are_over:
                self._stops[worker] = None

    def forget(self, peer: Peer) -> None:
        """What is collected for a lost peer is of no use to it."""
        if isinstance(peer, Client):
            self._answers.pop(peer, None)
        elif isinstance(peer, Worker):
            self._settles.pop(peer, None)
            self._stops.pop(peer, None)

    def flush_settles(self) -> None:
        """Send what was settled: needed before a worker's ledger is compared with its own."""
        for worker in list(self._settles):
            self._send_settles(worker)

    def _send_settles(self, worker: Worker) -> None:
        executions = self._settles.pop(worker)
        self._stops.pop(worker, None)
        most = self._limits.max_rows
        for at in range(0, len(executions), most):
            self.send(worker, Settle(executions[at : at + most]))

    def take(self) -> list[Effect]:
        """All effects, in order, with what was collected."""
        for client, collected in self._answers.items():
            self.send(client, collected.answer)
        self._answers.clear()
        for worker in list(self._stops):
            self._send_settles(worker)
        effects, self._effects = self._effects, []
        return effects
