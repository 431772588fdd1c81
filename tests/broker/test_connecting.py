"""Who may connect, and what a hello is answered with, in the broker's machine."""

from __future__ import annotations

from dataclasses import replace

import pytest
from driven import (
    EPOCH,
    SETTINGS,
    Bench,
    Sent,
    answer,
    assign,
    assigned,
    client_hello,
    grant,
    hold,
    ids,
    resend,
    result,
    settle,
    submit,
    welcomed,
    worker_hello,
)

from genpool.broker.outgoing import Send
from genpool.protocol.limits import PROTOCOL_VERSION, Limits
from genpool.protocol.messages import (
    Ask,
    Await,
    Busy,
    Dismiss,
    Dismissed,
    Drain,
    Fleet,
    Goodbye,
    Grant,
    Hello,
    Hold,
    Message,
    Missing,
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


def test_a_first_hello_is_welcomed_and_a_client_is_told_of_the_fleet() -> None:
    bench = Bench()
    welcome = Welcome(EPOCH, 1.0, Limits())
    assert bench.tell("client", client_hello("client")) == [("client", welcome), ("client", Fleet([]))]
    assert bench.tell("worker", worker_hello("worker")) == [("worker", welcome)]


def test_another_version_is_refused_in_a_sentence() -> None:
    bench = Bench()
    ((name, refusal),) = bench.tell("old", Hello(version=PROTOCOL_VERSION + 6))
    assert name == "old"
    assert isinstance(refusal, Refuse)
    assert refusal.reason == (
        f"this broker speaks version {PROTOCOL_VERSION} of the protocol and you version {PROTOCOL_VERSION + 6}: "
        "install the same release of genpool on both sides"
    )
    assert not bench.broker.peers


def test_a_clients_second_hello_is_welcomed_and_changes_nothing() -> None:
    bench = Bench()
    bench.client()
    bench.tell("client", submit("a"))
    before = bench.picture()
    assert bench.tell("client", client_hello("client")) == [("client", Welcome(EPOCH, 1.0, Limits()))]
    assert bench.picture() == before


def test_a_workers_later_hello_changes_what_it_can_do() -> None:
    bench = Bench()
    bench.client()
    bench.tell("client", submit("a", "b", "c"))
    bench.worker(credit=0, state=WorkerState.LOADING, model_name="")
    assert bench.broker.llms["llm"].info().loading == 1
    sent = bench.tell("worker", worker_hello("worker", credit=2, concurrency=2, options=["heat"]))
    assert sent == [("worker", assign(0, "a", "b"))]
    info = bench.broker.llms["llm"].info()
    assert (info.ready, info.loading, info.capacity, info.options, info.model_names) == (1, 0, 2, ["heat"], ["model"])


@pytest.mark.parametrize(
    "hello",
    [
        worker_hello("worker", llm="other"),
        worker_hello("another process"),
        replace(worker_hello("worker"), role=Role.CLIENT),
        client_hello("worker"),
    ],
)
def test_a_later_hello_of_somebody_else_resets_the_connection(hello: Hello) -> None:
    bench = Bench()
    bench.worker()
    before = bench.picture()
    assert bench.tell("worker", hello) == [("worker", Reset("a hello of another process, role or LLM than before"))]
    assert bench.picture() == before


def test_a_client_that_turns_into_a_worker_resets_the_connection() -> None:
    bench = Bench()
    bench.client()
    ((_, reset),) = bench.tell("client", worker_hello("client"))
    assert isinstance(reset, Reset)
    assert not bench.broker.llms


def test_a_worker_that_names_no_llm_is_not_taken_in() -> None:
    bench = Bench()
    assert bench.tell("worker", worker_hello("worker", llm="")) == []
    assert bench.logs == ["an unknown peer sent something unusable: a worker's hello that names no LLM"]
    assert not bench.broker.peers


ALL_BUT_HELLO: list[Message] = [
    Ping(0),
    Goodbye(),
    submit("a"),
    Release(ids("a")),
    Await(ids("a"), False),
    Ask(),
    Dismiss(Role.WORKER, "worker"),
    result(0, credit=1),
    grant(1),
    hold(),
    Welcome(EPOCH, 1.0, Limits()),
    Refuse("no"),
    Reset("no"),
    Missing(ids("a")),
    Busy(ids("a"), 1.0),
    answer(["a"], 0),
    Fleet([]),
    Status({}),
    Dismissed([]),
    Drain("no"),
    assign(0, "a"),
    settle(0),
    resend(0),
]
OF_BOTH = {Ping, Goodbye, Reset}
OF_CLIENTS = {Submit, Release, Await, Ask, Dismiss} | OF_BOTH
OF_WORKERS = {Result, Grant, Hold} | OF_BOTH


def named(message: Message) -> str:
    return type(message).__name__


@pytest.mark.parametrize("message", ALL_BUT_HELLO, ids=named)
def test_whoever_has_not_said_hello_is_told_to(message: Message) -> None:
    bench = Bench()
    assert bench.tell("stranger", message) == [("stranger", Reset("say hello first"))]
    assert bench.picture() == Bench().picture()


@pytest.mark.parametrize("message", [m for m in ALL_BUT_HELLO if type(m) not in OF_CLIENTS], ids=named)
def test_a_client_that_speaks_as_another_is_reset(message: Message) -> None:
    bench = Bench()
    bench.client()
    bench.tell("client", submit("a"))
    before = bench.picture()
    reason = f"a {type(message).__name__} is not for a client to send"
    assert bench.tell("client", message) == [("client", Reset(reason))]
    assert bench.logs == [f"client client:7 sent something unusable: {reason}"]
    assert bench.picture() == before


@pytest.mark.parametrize("message", [m for m in ALL_BUT_HELLO if type(m) not in OF_WORKERS], ids=named)
def test_a_worker_that_speaks_as_another_is_reset(message: Message) -> None:
    bench = Bench()
    bench.worker()
    before = bench.picture()
    reason = f"a {type(message).__name__} is not for a worker to send"
    assert bench.tell("worker", message) == [("worker", Reset(reason))]
    assert bench.picture() == before


def test_unusable_bytes_reset_the_peer_that_sent_them_and_nobody_else() -> None:
    bench = Bench()
    bench.client()
    bench.broker.malformed(b"client", "an empty message")
    bench.broker.malformed(b"stranger", "an empty message")
    assert bench.flush() == [("client", Reset("an empty message"))]
    assert len(bench.logs) == 2


def garble(bench: Bench, name: str, times: int) -> list[Sent]:
    for _ in range(times):
        bench.broker.malformed(name.encode(), "an empty message")
    return bench.flush()


REFUSED = (
    "this process has sent more than 10 unusable messages a minute, and may come back after 60 s: what speaks here is "
    "no genpool"
)


def test_who_sends_too_many_unusable_messages_is_dropped_and_kept_out_for_a_while_and_nobody_else() -> None:
    bench = Bench()
    bench.client("bad")
    bench.client("good")
    bench.worker(credit=2)
    bench.tell("bad", submit("a"))
    bench.tell("good", submit("b"))
    assert garble(bench, "bad", 10) == [("bad", Reset("an empty message"))] * 10
    assert (bench.dropped, bench.peer("bad").hello.host) == ([], "bad")
    assert garble(bench, "bad", 1) == [("bad", Refuse(REFUSED))]
    assert bench.dropped == ["bad"]
    assert bench.logs[-2:] == [
        "client bad:7 is kept out for 60 s: it sent more than 10 unusable messages a minute",
        "client bad:7 is away: it sent more than 10 unusable messages a minute; its 1 row is kept for 10 s",
    ]
    bench.now += 20
    ((_, word),) = bench.tell("bad/2", client_hello("bad"))
    assert word == Reset("this process has sent too many unusable messages, and is kept out for 40 s more")
    assert bench.dropped == ["bad", "bad/2"]
    bench.tick(0.1)
    assert bench.state_of("a") is None
    assert bench.tell("worker", result(1, credit=2)) == [("good", answer(["b"], 1))]
    bench.tick(40)
    assert welcomed(bench.tell("bad/3", client_hello("bad")))


def test_where_there_are_keys_it_is_the_key_that_is_kept_out() -> None:
    bench = Bench()
    for name, key in (("bad", "key"), ("good", "another key")):
        bench.broker.received(name.encode(), client_hello(name), bench.now, key)
    garble(bench, "bad", 11)
    for name, key in (("renamed", "key"), ("late", "another key")):
        bench.broker.received(name.encode(), client_hello(name), bench.now, key)
    text = "who has this key has sent too many unusable messages, and is kept out for 60 s more"
    sent = bench.flush()
    assert sent[0] == ("renamed", Reset(text))
    assert [type(message) for name, message in sent if name == "late"] == [Welcome, Fleet]
    assert bench.dropped == ["bad", "renamed"]


def test_a_few_unusable_messages_now_and_then_are_borne() -> None:
    bench = Bench()
    bench.client()
    for _ in range(50):
        assert garble(bench, "client", 1) == [("client", Reset("an empty message"))]
        bench.tick(6)
    garble(bench, "client", 5)
    bench.client("client/2")
    garble(bench, "client/2", 5)
    assert not bench.dropped
    garble(bench, "client/2", 1)
    assert bench.dropped == ["client/2"], "a new connection makes no new process"


def test_a_worker_that_is_shut_out_charges_nobody_and_its_rows_go_elsewhere() -> None:
    bench = Bench()
    bench.client()
    bench.worker("bad")
    bench.tell("client", submit("a"))
    garble(bench, "bad", 11)
    bench.worker("good")
    assert assigned(bench.tick(SETTINGS.worker_grace_s)) == {"good": ["a"]}
    assert bench.broker.ledger.rows[ids("a")[0]].record.charged == 0


def test_a_stranger_that_sends_only_garbage_is_dropped_and_does_not_fill_the_log() -> None:
    bench = Bench()
    for number in range(100):
        sent = garble(bench, f"stranger{number}", 11)
        assert [type(message) for _, message in sent] == [Refuse]
    assert bench.dropped == [f"stranger{number}" for number in range(100)]
    assert len(bench.logs) == 10
    bench.tick(60)
    assert not bench.broker._offences._buckets


def test_a_broker_that_stops_says_so() -> None:
    bench = Bench()
    bench.client()
    bench.worker()
    sent = [(e.peer, e.message) for e in bench.broker.stop("it was stopped") if isinstance(e, Send)]
    assert sent == [(b"client", Goodbye("it was stopped")), (b"worker", Goodbye("it was stopped"))]


def test_a_new_connection_takes_the_place_of_one_that_was_not_seen_to_break() -> None:
    bench = Bench()
    bench.client()
    bench.worker(credit=2)
    bench.tell("client", submit("a", "b"))
    bench.client("client/2")
    bench.worker("worker/2", credit=2, held=hold((0, "a", False), (1, "b", False)))
    assert sorted(bench.broker.peers) == [b"client/2", b"worker/2"]
    assert bench.tell("worker/2", result(0, 1, credit=2)) == [("client/2", answer(["a", "b"], 0, 1))]
    assert bench.tell("client", Ping(2)) == [("client", Reset("say hello first"))]
    assert bench.tell("worker", result(0, credit=2)) == [("worker", Reset("say hello first"))]
