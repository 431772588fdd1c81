"""Workers that are drained and clients that are kicked through the broker."""

from __future__ import annotations

import pytest
from driven import (
    SETTINGS,
    Bench,
    answer,
    answers,
    assign,
    assigned,
    client_hello,
    grant,
    hold,
    ids,
    result,
    settle,
    submit,
    worker_hello,
)

from genpool.broker.access import ADMIN, Access, Permission
from genpool.broker.naming import find
from genpool.broker.peer import Client, Worker
from genpool.protocol.messages import (
    Dismiss,
    Dismissed,
    Drain,
    Goodbye,
    Message,
    PeerInfo,
    Refuse,
    Reset,
    Role,
    WorkerState,
)

DRAIN = Drain("an admin had it drained")
KICKED = "an admin has ended the session of this client"


def dismissed(sent: list[tuple[str, Message]]) -> Dismissed:
    (message,) = [message for _, message in sent if isinstance(message, Dismissed)]
    return message


def draining(bench: Bench) -> set[str]:
    return {name for name in ("one", "two") if bench.peer(name).hello.state == WorkerState.DRAINING}


class Pair(Bench):
    """A client with rows a to d at the workers "one" and "two", which run two each, and an admin."""

    def __init__(self) -> None:
        super().__init__()
        self.client()
        self.tell("client", submit("a", "b", "c", "d", "e"))
        self.worker("one", credit=2, concurrency=2)
        self.worker("two", credit=2, concurrency=2)
        self.client("admin")


# Drain.


def test_a_worker_is_told_to_drain_and_given_nothing_more() -> None:
    bench = Pair()
    sent = bench.tell("admin", Dismiss(Role.WORKER, "one"))
    assert sent == [("one", DRAIN), ("admin", Dismissed([PeerInfo("one", 8, "llm", 2)]))]
    assert draining(bench) == {"one"}
    # It ended a row before it heard.
    assert assigned(bench.tell("one", grant(2, WorkerState.DRAINING), result(0, credit=2))) == {}
    assert assigned(bench.tell("two", result(2, credit=3))) == {"two": ["e"]}


def test_a_worker_that_is_drained_and_says_goodbye_or_is_killed_charges_nobody() -> None:
    for is_killed in (False, True):
        bench = Pair()
        bench.tell("admin", Dismiss(Role.WORKER, "one"))
        if is_killed:
            bench.end("one")
        else:
            bench.tell("one", Goodbye("an admin had it drained"))
        assert [row.record.charged for row in bench.broker.ledger.rows.values()] == [0] * 5
        sent = bench.tell("two", result(2, 3, credit=4))
        assert assigned(sent) == {"two": ["a", "b"]}


def test_a_worker_whose_engine_dies_while_it_is_drained_charges_its_rows() -> None:
    bench = Pair()
    bench.tell("admin", Dismiss(Role.WORKER, "one"))
    bench.tell("one", grant(2, WorkerState.UNWELL, "its engine does not end a row"))
    bench.end("one")
    assert [row.record.charged for row in bench.broker.ledger.rows.values()] == [1, 1, 0, 0, 0]


def test_a_worker_that_was_ready_on_the_way_is_drained_all_the_same() -> None:
    """What it said before it heard comes after."""
    bench = Pair()
    bench.tell("admin", Dismiss(Role.WORKER, "one"))
    bench.tell("one", grant(2))
    bench.end("one")
    assert not any(row.record.charged for row in bench.broker.ledger.rows.values())


def test_a_drain_that_was_lost_on_the_way_is_told_again() -> None:
    bench = Pair()
    bench.tell("admin", Dismiss(Role.WORKER, "one"))
    bench.lose("one")
    sent = bench.tell("one/2", worker_hello("one", credit=0, concurrency=2))
    assert ("one/2", DRAIN) in sent
    bench.lose("one/2")
    sent = bench.tell("one/3", worker_hello("one", credit=0, concurrency=2, state=WorkerState.DRAINING))
    assert ("one/3", DRAIN) not in sent


def test_a_host_drains_with_all_its_workers_or_those_of_one_llm() -> None:
    bench = Bench()
    bench.client("admin")
    for name, llm in (("one", "llm"), ("two", "other"), ("three", "llm")):
        bench.tell(name, worker_hello(name, llm=llm, credit=1) if name == "three" else hello_on("host", name, llm))
    assert dismissed(bench.tell("admin", Dismiss(Role.WORKER, "host", "llm"))).peers == [PeerInfo("host", 8, "llm", 0)]
    assert draining(bench) == {"one"}
    assert len(dismissed(bench.tell("admin", Dismiss(Role.WORKER, "host"))).peers) == 2
    assert draining(bench) == {"one", "two"}
    assert bench.peer("three").hello.state == WorkerState.READY


def hello_on(host: str, name: str, llm: str = "llm") -> Message:
    hello = worker_hello(name, llm=llm, credit=1)
    hello.host = host
    return hello


def test_a_loading_worker_is_drained_too() -> None:
    bench = Bench()
    bench.client("admin")
    bench.worker("one", credit=0, state=WorkerState.LOADING)
    assert ("one", DRAIN) in bench.tell("admin", Dismiss(Role.WORKER, "one:8"))


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (Dismiss(Role.WORKER, "three"), "there is no worker 'three'; there are one:8, two:8"),
        (Dismiss(Role.WORKER, "one", "other"), "there is no worker 'one' of 'other'; there is none of 'other' at all"),
        (Dismiss(Role.WORKER, "three", "llm"), "there is no worker 'three' of 'llm'; there are one:8, two:8"),
        (Dismiss(Role.WORKER, "client"), "there is no worker 'client'; there are one:8, two:8"),
        (Dismiss(Role.WORKER, "8"), "8 is the process id of one:8, two:8: name one of them as HOST:PID"),
        (Dismiss(Role.CLIENT, "client"), "there is no client 'client'; there are client:7"),
        (Dismiss(Role.CLIENT, "admin:7"), "there is no client 'admin:7'; there are client:7"),
    ],
)
def test_a_name_of_nobody_or_of_several_is_answered_with_those_who_are_there(message: Dismiss, reason: str) -> None:
    bench = Pair()
    before = bench.picture()
    assert bench.tell("admin", message) == [("admin", Dismissed([], reason))]
    assert bench.picture() == before


def test_many_names_are_not_all_told() -> None:
    workers = [Worker(b"", worker_hello(f"w{number:02}"), "") for number in range(30)]
    told = find("none", "worker", workers)
    assert isinstance(told, str)
    assert told.endswith("w18:8, w19:8 and 10 more")
    assert find("w03", "worker", workers) == [workers[3]]


def test_one_process_with_two_connections_has_one_name() -> None:
    clients = [Client(b"1", client_hello("desk"), ""), Client(b"2", client_hello("desk"), "")]
    assert find("desk:7", "client", clients) == find("7", "client", clients) == clients


# Kick.


def test_a_kicked_client_hears_why_and_its_rows_are_withdrawn() -> None:
    bench = Pair()
    sent = bench.tell("admin", Dismiss(Role.CLIENT, "client:7"))
    assert ("client", Refuse(KICKED)) in sent
    assert ("one", settle(0, 1)) in sent
    assert ("two", settle(2, 3)) in sent
    assert dismissed(sent) == Dismissed([PeerInfo("client", 7, "", 5)])
    assert bench.dropped == ["client"]
    assert not bench.broker.ledger.rows
    assert [client.hello.host for client in bench.broker.clients.values()] == ["admin"]


def test_a_kicked_client_does_not_come_back_by_itself_but_a_new_process_may() -> None:
    bench = Pair()
    bench.lose("client")
    bench.tell("admin", Dismiss(Role.CLIENT, "client:7"))
    assert not bench.broker.ledger.rows
    assert bench.dropped == []
    assert bench.tell("client/2", client_hello("client")) == [("client/2", Refuse(KICKED))]
    again = client_hello("client")
    again.instance = b"another"
    bench.tell("client/3", again)
    assert bench.peer("client/3").hello is again


def test_what_a_kicked_client_sends_on_its_old_connection_comes_to_nothing() -> None:
    bench = Pair()
    bench.tell("admin", Dismiss(Role.CLIENT, "client"), Dismiss(Role.CLIENT, "client:7"))
    assert bench.tell("client", submit("f")) == [("client", Reset("say hello first"))]
    assert not bench.broker.ledger.rows


def test_other_clients_do_not_notice() -> None:
    bench = Bench()
    bench.client("one")
    bench.client("two")
    bench.client("admin")
    bench.tell("one", submit("a"))
    bench.tell("two", submit("b"))
    bench.worker(credit=1)
    sent = bench.tell("admin", Dismiss(Role.CLIENT, "one:7"))
    assert ("worker", settle(0)) in sent
    sent = bench.tell("worker", result(0, credit=2))
    assert sent == [("worker", assign(1, "b"))]
    assert answers(bench.tell("worker", result(1, credit=3))) == [answer(["b"], 1)]


def test_only_so_many_kicked_clients_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genpool.broker.machine._MOST_KICKED", 2)
    bench = Bench()
    bench.client("admin")
    for name in ("one", "two", "three"):
        bench.client(name)
        bench.tell("admin", Dismiss(Role.CLIENT, f"{name}:7"))
    assert list(bench.broker._kicked) == [b"two", b"three"]


# Who may.


def guarded() -> Bench:
    """A broker with keys."""
    bench = Bench()
    roles = {"k-client": "client", "k-worker": "worker", "k-admin": ADMIN}
    access = Access({key: Permission(key, key[2:], frozenset([role])) for key, role in roles.items()})
    bench.broker.admit(access, bench.now)
    for name, key in (("client", "k-client"), ("admin", "k-admin")):
        bench.broker.received(name.encode(), client_hello(name), bench.now, key)
    bench.broker.received(b"one", worker_hello("one", credit=1), bench.now, "k-worker")
    bench.tell("one", hold())
    return bench


def test_with_keys_only_an_admin_may() -> None:
    bench = guarded()
    for message in (Dismiss(Role.WORKER, "one"), Dismiss(Role.CLIENT, "admin:7"), Dismiss(Role.WORKER, "nobody")):
        (answer,) = bench.tell("client", message)
        reason = "only an admin may drain workers and kick clients, and this key (client) is none"
        assert answer == ("client", Dismissed([], reason, is_refused=True))
    assert bench.peer("one").hello.state != WorkerState.DRAINING
    assert any("client client:7 may not kick a client: only an admin may" in line for line in bench.logs)
    assert ("one", DRAIN) in bench.tell("admin", Dismiss(Role.WORKER, "one"))
    assert ("client", Refuse(KICKED)) in bench.tell("admin", Dismiss(Role.CLIENT, "client:7"))


def test_who_may_not_and_tries_again_and_again_does_not_fill_the_log() -> None:
    bench = guarded()
    bench.tell("client", *[Dismiss(Role.WORKER, "one")] * 100)
    assert len([line for line in bench.logs if "may not drain a worker" in line]) == SETTINGS.max_malformed


def test_a_worker_may_dismiss_nobody() -> None:
    bench = Pair()
    sent = bench.tell("one", Dismiss(Role.WORKER, "two"))
    assert sent == [("one", Reset("a Dismiss is not for a worker to send"))]


def test_a_dismissal_is_answered_once_however_often_it_is_asked_for_by_one_who_does_not_read() -> None:
    bench = Pair()
    bench.full |= {"admin", "one"}
    for _ in range(50):
        bench.tell("admin", Dismiss(Role.WORKER, "one"))
    assert len(bench.peer("admin").outbox) == 1
    assert [message for message in bench.peer("one").outbox if isinstance(message, Drain)] == [DRAIN]
    bench.full.clear()
    assert ("one", DRAIN) in bench.tick(SETTINGS.ping_interval_s)


def test_rows_of_a_kicked_client_may_be_submitted_by_another_process() -> None:
    bench = Pair()
    bench.tell("admin", Dismiss(Role.CLIENT, "client:7"))
    bench.client("next")
    bench.tell("one", result(0, 1, credit=4))
    assert bench.tell("next", submit("a")) == [("one", assign(4, "a"))]
    assert bench.peer("next").hello.host == "next"
    assert ids("a")[0] in bench.broker.ledger.rows
