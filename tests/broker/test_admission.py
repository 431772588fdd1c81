"""Who comes in with which key, and what becomes of the rows of those who must go: the machine alone."""

from __future__ import annotations

import pytest

from genpool.broker.access import Access, Permission
from genpool.broker.machine import Broker
from genpool.broker.outgoing import Log, Send
from genpool.broker.settings import BrokerSettings
from genpool.protocol.messages import (
    Assign,
    Hello,
    Hold,
    Message,
    Ping,
    Refuse,
    Role,
    RowKind,
    Submit,
    SubmitRun,
    Welcome,
    WorkerState,
)

ROW = b"the row's own id"
SETTINGS = BrokerSettings(settle_s=0.0, client_grace_s=10.0, worker_grace_s=1.0)


def access(*keys: str) -> Access:
    roles = frozenset(["client", "worker"])
    return Access({key: Permission(key, f"{key}'s", roles) for key in keys})


class Door:
    """A broker to which connections say things, by the names of peers and keys."""

    def __init__(self, *keys: str) -> None:
        self.broker = Broker(SETTINGS, bytes(16), 0.0, access(*keys))
        self.now = 100.0

    def tell(self, peer: str, *messages: Message, key: str = "") -> list[tuple[str, Message]]:
        for message in messages:
            self.broker.received(peer.encode(), message, self.now, key)
        return self.flush()

    def flush(self) -> list[tuple[str, Message]]:
        effects = self.broker.flush(self.now)
        return [(effect.peer.decode(), effect.message) for effect in effects if isinstance(effect, Send)]

    def lose(self, peer: str) -> None:
        self.broker.send_failed(peer.encode(), Ping(None), gone=True, now=self.now)
        self.flush()

    def refusal(self, peer: str, hello: Hello, key: str) -> str | None:
        """The reason, if this hello is refused."""
        (first, *_) = self.tell(peer, hello, key=key)
        return first[1].reason if isinstance(first[1], Refuse) else None


def client(instance: str = "client") -> Hello:
    return Hello(role=Role.CLIENT, instance=instance.encode())


def worker(instance: str = "worker", credit: int = 1) -> Hello:
    state = WorkerState.READY
    return Hello(role=Role.WORKER, instance=instance.encode(), llm="llm", state=state, credit=credit, concurrency=1)


def submit() -> Submit:
    return Submit([SubmitRun("llm", RowKind.INPUT, 1, b"", None, False, [ROW], [b"payload"])])


@pytest.mark.parametrize("hello", [client(), worker()], ids=["client", "worker"])
@pytest.mark.parametrize("is_away", [False, True])
def test_a_process_keeps_its_first_key_also_while_it_is_away(hello: Hello, is_away: bool) -> None:
    door = Door("its own", "another")
    assert door.refusal("one", hello, "its own") is None
    if is_away:
        door.lose("one")
    assert door.refusal("two", hello, "another") == "it says that it is a process which has another key"
    assert door.refusal("three", hello, "its own") is None


def test_once_it_is_forgotten_its_name_is_free() -> None:
    door = Door("its own", "another")
    door.tell("one", client(), key="its own")
    door.lose("one")
    door.now += SETTINGS.client_grace_s
    door.broker.tick(door.now)
    assert door.refusal("two", client(), "another") is None


def test_a_hello_that_is_refused_leaves_nothing_behind() -> None:
    door = Door("allowed")
    assert door.refusal("one", client(), "unknown") == "its key is not allowed at this broker (any more)"
    assert not door.broker.peers
    assert not door.broker.clients
    assert [message for _, message in door.tell("one", submit())] != []
    assert not door.broker.ledger.rows


def test_who_is_refused_again_and_again_does_not_fill_the_log() -> None:
    door = Door("allowed")
    for number in range(100):
        door.broker.received(b"peer %d" % number, client(), door.now, "unknown")
    effects = door.broker.flush(door.now)
    assert len([effect for effect in effects if isinstance(effect, Send)]) == 100
    assert len([effect for effect in effects if isinstance(effect, Log)]) == SETTINGS.max_malformed


def test_the_rows_of_a_worker_that_must_go_run_elsewhere_and_are_not_charged() -> None:
    door = Door("gone", "stays")
    door.tell("client", client(), key="stays")
    door.tell("worker", worker(), Hold([], [], [], False), key="gone")
    ((_, assigned),) = door.tell("client", submit())
    assert isinstance(assigned, Assign)
    door.broker.admit(access("stays"), door.now)
    assert door.flush() == [("worker", Refuse("its key is not allowed at this broker (any more)"))]
    assert door.refusal("again", worker(), "gone") is not None
    sent = door.tell("other", worker("other"), Hold([], [], [], False), key="stays")
    assert isinstance(sent[0][1], Welcome)
    (run,) = next(message for _, message in sent if isinstance(message, Assign)).runs
    assert (run.ids, run.charged) == ([ROW], 0)


def test_the_rows_of_a_client_that_must_go_are_dropped() -> None:
    door = Door("gone", "stays")
    door.tell("client", client(), submit(), key="gone")
    door.broker.admit(access("stays"), door.now)
    assert door.flush() == [("client", Refuse("its key is not allowed at this broker (any more)"))]
    assert not door.broker.ledger.rows
    assert not door.broker.clients


def test_who_may_stay_is_told_nothing() -> None:
    door = Door("stays")
    door.tell("client", client(), submit(), key="stays")
    door.broker.admit(access("stays", "newcomer"), door.now)
    assert door.flush() == []
    assert len(door.broker.ledger.rows) == 1
