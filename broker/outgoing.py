"""What the broker is about to do: effects in order, and what is collected so that many rows share a message."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..protocol.frames import Payload
from ..protocol.limits import Limits
from ..protocol.messages import Answer, Message, Settle
from .peer import Client, Peer, Worker


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


@dataclass(slots=True)
class _Answers:
    ids: list[bytes] = field(default_factory=list[bytes])
    outcomes: list[int] = field(default_factory=list[int])
    attempts: list[int] = field(default_factory=list[int])
    payloads: list[Payload] = field(default_factory=list[Payload])
    size: int = 0


class Outgoing:
    """Effects since the last ``take``. ``peers`` are the connections that there are: nothing is sent to others."""

    def __init__(self, limits: Limits, peers: dict[bytes, Peer]) -> None:
        self._limits = limits
        self._peers = peers
        self._effects: list[Effect] = []
        self._answers: dict[Client, _Answers] = {}
        self._settles: dict[Worker, list[int]] = {}

    def log(self, level: str, text: str) -> None:
        """Write a line to the log."""
        self._effects.append(Log(level, text))

    def send(self, peer: Peer, message: Message) -> None:
        """Send in order: behind what the peer has not taken yet."""
        if peer.id not in self._peers:
            return
        if peer.outbox:
            peer.put_off(message)
        else:
            self.send_past(peer.id, message)

    def send_past(self, peer_id: bytes, message: Message) -> None:
        """Send to a routing id, known or not, and past what it has not taken yet."""
        self._effects.append(Send(peer_id, message))

    def answer(self, client: Client, row_id: bytes, outcome: int, attempts: int, payload: Payload) -> None:
        """Forward an answer with the next flush."""
        answers = self._answers.setdefault(client, _Answers())
        is_full = answers.size + len(payload) > self._limits.target_message_bytes
        if answers.ids and (is_full or len(answers.ids) >= self._limits.max_rows):
            self._flush_answers_of(client)
            answers = self._answers.setdefault(client, _Answers())
        answers.ids.append(row_id)
        answers.outcomes.append(outcome)
        answers.attempts.append(attempts)
        answers.payloads.append(payload)
        answers.size += len(payload)

    def settle(self, worker: Worker, execution_id: int) -> None:
        """Tell a worker with the next flush that nobody waits for this execution any more."""
        if worker.id in self._peers:
            self._settles.setdefault(worker, []).append(execution_id)

    def forget(self, peer: Peer) -> None:
        """What is collected for a lost peer is of no use to it."""
        if isinstance(peer, Client):
            self._answers.pop(peer, None)
        elif isinstance(peer, Worker):
            self._settles.pop(peer, None)

    def flush_settles(self) -> None:
        """Send what was settled: needed before anything is said about a worker's ledger."""
        most = self._limits.max_rows
        for worker, executions in self._settles.items():
            for at in range(0, len(executions), most):
                self.send(worker, Settle(executions[at : at + most]))
        self._settles.clear()

    def take(self) -> list[Effect]:
        """All effects, in order, with what was collected."""
        for client in list(self._answers):
            self._flush_answers_of(client)
        self.flush_settles()
        effects, self._effects = self._effects, []
        return effects

    def _flush_answers_of(self, client: Client) -> None:
        answers = self._answers.pop(client)
        self.send(client, Answer(answers.ids, answers.outcomes, answers.attempts, answers.payloads))
