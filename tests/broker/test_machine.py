"""The broker's machine, driven by hand: messages and the time go in, effects are compared as lists."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
from driven import (
    EPOCH,
    FIRST,
    SETTINGS,
    Bench,
    Sent,
    answer,
    answers,
    assign,
    assigned,
    client_hello,
    grant,
    hold,
    ids,
    numbered,
    resend,
    result,
    run_of,
    settle,
    submit,
    worker_hello,
)

from genpool.broker.blame import SURVIVOR_WAIT_S
from genpool.broker.outgoing import Log, Send
from genpool.broker.peer import Client, Worker
from genpool.broker.row import RowState
from genpool.broker.settings import BrokerSettings
from genpool.protocol.content import unpack_failure
from genpool.protocol.frames import Payload
from genpool.protocol.limits import MAX_COUNT, PROTOCOL_VERSION, Limits
from genpool.protocol.messages import (
    Answer,
    Ask,
    Assign,
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
    Welcome,
    WorkerState,
)

# Connections.


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


# A broker that is full.


def reasons(sent: list[Sent]) -> list[str]:
    """Why peers are turned away."""
    return [message.reason for _, message in sent if isinstance(message, Refuse)]


def welcomed(sent: list[Sent]) -> bool:
    assert bool(reasons(sent)) is not any(isinstance(message, Welcome) for _, message in sent)
    return not reasons(sent)


def test_who_comes_to_a_full_broker_is_told_what_to_do_and_leaves_nothing_behind() -> None:
    bench = Bench(replace(SETTINGS, max_peers=2))
    bench.client()
    bench.worker()
    before = bench.picture()
    for hello in (client_hello("late"), worker_hello("late"), worker_hello("late", llm="another")):
        (reason,) = reasons(bench.tell("late", hello))
        assert reason == (
            "this broker has room for 2 clients and workers, and all places are taken: raise the limit on open files "
            "that it is started with (ulimit -n, or LimitNOFILE= in a systemd unit)"
        )
    assert bench.picture() == before
    assert assigned(bench.tell("client", submit("a"))) == {"worker": ["a"]}, "those inside go on"


def test_clients_workers_and_names_have_limits_of_their_own() -> None:
    bench = Bench(replace(SETTINGS, max_clients=1, max_workers=2, max_llms=1))
    bench.client()
    bench.worker()
    assert reasons(bench.tell("late", client_hello("late"))) == [
        "this broker takes 1 clients (--max-clients), and all places are taken"
    ]
    assert reasons(bench.tell("late", worker_hello("late", llm="another"))) == [
        "this broker knows 1 names of LLMs already, and takes no other one"
    ]
    assert welcomed(bench.tell("second", worker_hello("second")))
    bench.lose("second")
    assert reasons(bench.tell("late", worker_hello("late"))) == [
        "this broker takes 2 workers (--max-workers), and all places are taken"
    ]
    assert welcomed(bench.tell("second/2", worker_hello("second")))


def test_rows_for_names_beyond_the_limit_are_not_taken_and_such_names_are_forgotten_with_their_rows() -> None:
    bench = limited(max_llms=2)
    sent = bench.tell("one", submit("a", llm="x"), submit("b", llm="y"), submit("c", llm="z"))
    assert told(sent) == {"one": [(ids("c"), 0.5)]}
    bench.tell("one", Release(ids(*"abc")))
    bench.tick(0.1)
    assert not bench.broker.llms


def test_names_that_only_rows_have_take_no_place_of_a_workers_name_and_the_other_way_round() -> None:
    bench = limited(max_llms=2)
    bench.tell("one", submit("a", llm="x"), submit("b", llm="y"))
    assert welcomed(bench.tell("w1", worker_hello("w1", llm="real")))
    assert welcomed(bench.tell("w2", worker_hello("w2", llm="x")))
    full = "this broker knows 2 names of LLMs already, and takes no other one"
    assert reasons(bench.tell("w3", worker_hello("w3", llm="y"))) == [full]
    assert reasons(bench.tell("w3", worker_hello("w3", llm="new"))) == [full]
    assert welcomed(bench.tell("w4", worker_hello("w4", llm="real")))
    # One of the two has become a worker's.
    sent = bench.tell("one", submit("c", llm="z"), submit("d", llm="beyond"), submit("e", llm="real"))
    assert told(sent) == {"one": [(ids("d"), 0.5)]}
    assert sorted(bench.broker.llms) == ["real", "x", "y", "z"]


def test_a_workers_name_that_is_forgotten_makes_room_for_another() -> None:
    bench = limited(max_llms=1)
    for name in ("x", "y", "z"):
        assert welcomed(bench.tell(name, worker_hello(name, llm=name)))
        bench.tell("one", submit(name, llm=name))
        assert not welcomed(bench.tell("late", worker_hello("late", llm="late")))
        bench.tell("one", Release(ids(name)))
        bench.tell(name, Goodbye())
        bench.tick(3600.0)
        bench.client("one")
        assert not bench.broker.llms
    assert told(bench.tell("one", submit("a", llm="x"), submit("b", llm="y"))) == {"one": [(ids("b"), 0.5)]}


def test_a_place_is_free_when_a_peer_has_left_or_its_grace_is_over() -> None:
    bench = Bench(replace(SETTINGS, max_peers=2))
    bench.client("leaves")
    bench.worker("dies")
    bench.tell("leaves", Goodbye("done"))
    assert welcomed(bench.tell("second", client_hello("second")))
    bench.lose("dies", "second")
    assert not welcomed(bench.tell("third", worker_hello("third")))
    bench.tick(SETTINGS.worker_grace_s)
    assert welcomed(bench.tell("third", worker_hello("third")))
    assert not welcomed(bench.tell("fourth", client_hello("fourth")))
    bench.tick(SETTINGS.client_grace_s)
    assert welcomed(bench.tell("fourth", client_hello("fourth")))


@pytest.mark.parametrize("seen", [True, False], ids=["seen", "unseen"])
def test_who_comes_back_to_a_full_broker_has_its_place_still(seen: bool) -> None:
    bench = Bench(replace(SETTINGS, max_peers=2))
    bench.client("client")
    bench.worker("worker")
    if seen:
        bench.lose("client", "worker")
    assert welcomed(bench.tell("client/2", client_hello("client")))
    assert welcomed(bench.tell("worker/2", worker_hello("worker")))
    assert not welcomed(bench.tell("another", client_hello("another")))
    assert sorted(bench.broker.peers) == [b"client/2", b"worker/2"]


def test_the_log_says_only_now_and_then_that_peers_are_turned_away() -> None:
    bench = Bench(replace(SETTINGS, max_peers=1))
    bench.client()
    for number in range(100):
        bench.tell(f"late{number}", client_hello(f"late{number}"))
    (line,) = bench.logs
    assert line.startswith("client late0:7 was turned away: ")
    bench.tick(60)
    bench.tell("later", worker_hello("later"))
    assert len(bench.logs) == 2
    assert bench.logs[1].startswith("worker later:8 was turned away: ")


# A broker that has no room for rows.


def told(sent: list[Sent]) -> dict[str, list[tuple[list[bytes], float]]]:
    """Which rows were not taken of whom, and when to come back."""
    busy: dict[str, list[tuple[list[bytes], float]]] = {}
    for name, message in sent:
        if isinstance(message, Busy):
            busy.setdefault(name, []).append((message.ids, message.seconds))
    return busy


def limited(**said: Any) -> Bench:
    limits = {name: value for name, value in said.items() if name.startswith("max_client")}
    rest = {name: value for name, value in said.items() if name not in limits}
    bench = Bench(replace(SETTINGS, limits=Limits(**limits), **rest))
    bench.client("one")
    bench.client("two")
    return bench


@pytest.mark.parametrize(
    ("limit", "options"),
    [({"max_rows": 3}, b"hot"), ({"max_bytes": 3}, b""), ({"max_client_bytes": 3}, b""), ({"max_bytes": 9}, b"hot")],
    ids=["rows", "bytes", "bytes of a client", "bytes of options"],
)
def test_rows_beyond_the_room_are_not_taken_and_their_client_is_told_when_to_come_back(
    limit: dict[str, int], options: bytes
) -> None:
    bench = limited(**limit)
    sent = bench.tell("one", submit("a", "b", options=options), submit("c", "d", "e", options=options))
    assert told(sent) == {"one": [(ids("d", "e"), 0.5)]}
    assert [*map(bench.state_of, "abcde")] == [RowState.QUEUED] * 3 + [None] * 2
    assert bench.tell("one", Ping(5)) == [], "its ledger has them until it releases them"
    assert bench.tell("one", Release(ids("d", "e")), Ping(3)) == []
    assert bench.tell("one", Release(ids("a")), submit("d", options=options), Ping(3)) == []
    assert bench.state_of("d") is RowState.QUEUED


def test_a_full_broker_goes_on_with_what_it_has() -> None:
    bench = limited(max_rows=2)
    bench.tell("one", submit("a", "b"))
    assert told(bench.tell("two", submit("c"))) == {"two": [(ids("c"), 0.5)]}
    bench.worker(credit=9)
    bench.tell("worker", result(0, 1, credit=9))
    assert bench.tell("two", Release(ids("c")), Ping(0)) == []
    bench.tell("one", Release(ids("a", "b")), Ping(0))
    assert assigned(bench.tell("two", submit("c"))) == {"worker": ["c"]}


def test_a_client_that_finds_no_room_again_and_again_is_told_longer_times() -> None:
    bench = limited(max_rows=0)
    times: list[float] = []
    for number in range(7):
        name = f"row{number}"
        ((_, seconds),) = told(bench.tell("one", submit(name)))["one"]
        times.append(seconds)
        bench.tell("one", Release(ids(name)))
        bench.now += seconds
    assert times == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    assert told(bench.tell("two", submit("other"))) == {"two": [(ids("other"), 0.5)]}


def test_what_was_on_its_way_already_makes_no_longer_time_of_it() -> None:
    bench = limited(max_rows=0)
    bench.tell("one", submit("a"))
    bench.now += 0.125
    assert told(bench.tell("one", submit("b"), submit("b"))) == {"one": [(ids("b"), 0.375)]}


def test_a_client_that_goes_beyond_what_is_taken_of_one_loses_its_connection_and_nobody_else_anything() -> None:
    bench = limited(max_client_rows=4, max_rows=4)
    bench.worker(credit=1)
    bench.tell("one", submit("a", "b"))
    assert told(bench.tell("two", submit("c", "d", "e"))) == {"two": [(ids("e"), 0.5)]}
    assert bench.tell("two", submit("c", "d", "e"), Ping(3)) == [], "the same again"
    reason = "you have 5 rows here, and this broker takes 4 of one client"
    assert bench.tell("two", submit("f", "g")) == [("two", Reset(reason))]
    assert bench.tell("two", submit("h")) == [("two", Reset("say hello first"))]
    bench.tell("two/2", client_hello("two"))
    assert bench.tell("two/2", Await(ids("c"), False), Ping(1)) == []
    assert bench.tell("two/2", submit("d", "i"), Ping(3)) == [("two/2", Busy(ids("i"), 0.5))]
    assert sorted(assigned(bench.tell("worker", result(0, credit=3)))["worker"]) == ["b", "c"]


def test_a_client_may_await_no_more_rows_than_are_taken_of_one() -> None:
    bench = limited(max_client_rows=4)
    assert bench.tell("one", Await(ids(*"abc"), True)) == []
    reason = "you await more than the 4 rows that this broker takes of one client"
    assert bench.tell("one", Await(ids(*"de"), True)) == [("one", Reset(reason))]
    assert not bench.broker.ledger.rows


def test_rows_that_are_awaited_and_find_no_room_are_not_asked_for() -> None:
    bench = limited(max_rows=2)
    sent = bench.tell("one", Await(ids(*"abc"), False))
    assert sent == [("one", Busy(ids("c"), 0.5)), ("one", Missing(ids(*"ab")))]
    assert bench.tell("one", Ping(3), submit(*"ab", again=True), Release(ids("c")), Ping(2)) == []


def test_a_row_that_was_asked_for_may_find_no_room_for_its_bytes() -> None:
    bench = limited(max_client_bytes=3)
    bench.tell("one", Await(ids("long", "a"), False))
    sent = bench.tell("one", submit("long", "a", again=True), Ping(2))
    assert sent == [("one", Busy(ids("long", "a"), 0.5))]
    assert bench.tell("one", Release(ids("long", "a")), Ping(0)) == []


def test_a_row_that_is_as_long_as_all_that_a_client_may_have_is_taken_with_its_options() -> None:
    bench = limited(max_client_bytes=4)
    assert bench.tell("one", submit("long", options=b"hot"), Ping(1)) == []
    assert told(bench.tell("one", submit("", options=b"hot"))) == {"one": [(ids(""), 0.5)]}


def test_a_row_that_is_named_twice_is_taken_or_refused_once() -> None:
    bench = limited(max_client_rows=3, max_rows=2)
    assert told(bench.tell("one", submit(*"aabbcc"), Ping(3))) == {"one": [(ids("c"), 0.5)]}
    assert bench.tell("one", submit(*"cacb"), Ping(3)) == []


def test_a_client_that_comes_back_has_no_refused_rows_left() -> None:
    bench = limited(max_rows=0)
    bench.tell("one", submit("a"))
    bench.client("one/2")
    assert bench.tell("one/2", Await([], False), Ping(0)) == []


def test_a_worker_may_not_claim_more_rows_than_there_is_room_for() -> None:
    bench = Bench(replace(SETTINGS, max_rows=2), age=0.0)
    other_life = list(range(5))
    names = ids(*numbered("row", 5))
    bench.worker(held=Hold(other_life, names, [False] * 5, False))
    assert len(bench.broker.ledger.rows) == 2


def test_a_worker_may_not_claim_a_row_again_and_again() -> None:
    bench = Bench()
    bench.client()
    bench.worker("one")
    bench.tell("client", submit("a"))
    other_life = list(range(5))
    bench.tell("liar", worker_hello("liar"))
    sent = bench.tell("liar", Hold(other_life, ids("a") * 5, [False] * 5, False))
    assert sent == [("liar", Settle([number])) for number in other_life[1:]]
    assert bench.picture()[1] == {b"one": [FIRST], b"liar": [0]}


def test_a_peer_that_never_reads_is_given_up() -> None:
    bench = Bench(replace(SETTINGS, limits=Limits(max_client_rows=10)))
    bench.client("deaf")
    bench.full.add("deaf")
    bench.tell("deaf", *(Await([], False), *(Ask() for _ in range(200))))
    assert len(bench.peer("deaf").outbox) <= 3, "of the status the last word counts"
    for _ in range(10_011):
        bench.peer("deaf").outbox.put_off(Busy([], 1.0))
    bench.full.clear()
    assert bench.tick(0.1) == [("deaf", Reset("you do not read what you are sent"))]
    assert not bench.broker.peers


# Rows, from one end to the other.


def test_a_row_goes_to_a_worker_and_its_answer_to_the_client_until_it_is_released() -> None:
    bench = Bench()
    bench.client()
    bench.worker()
    assert bench.tell("client", submit("a", seconds_left=5.0, num_generations=3, options=b"hot", kind="prompt")) == [
        ("worker", assign(0, "a", seconds_left=5.0, num_generations=3, options=b"hot", kind="prompt"))
    ]
    assert bench.tell("worker", result(0, credit=2, tokens=12)) == [("client", answer(["a"], 0))]
    assert bench.state_of("a") is RowState.ANSWERED
    assert bench.tell("client", Release(ids("a"))) == []
    assert not bench.broker.ledger.rows
    assert bench.settled() == [("worker", settle(0))]
    assert not bench.broker.ledger.executions


def test_a_burst_makes_one_message_for_each_peer() -> None:
    bench = Bench()
    bench.client("one")
    bench.client("two")
    bench.worker(credit=8)
    bench.broker.received(b"one", submit("a", "b"), bench.now)
    bench.broker.received(b"two", submit("c"), bench.now)
    bench.broker.received(b"one", submit("d"), bench.now)
    assert bench.flush() == [("worker", assign(0, "a", "c", "b", "d"))]
    bench.broker.received(b"worker", result(0, credit=9), bench.now)
    bench.broker.received(b"worker", result(1, 3, credit=11), bench.now)
    assert bench.flush() == [("one", answer(["a", "d"], 0, 3)), ("two", answer(["c"], 1))]


def test_rows_that_may_not_share_a_call_go_in_runs_of_their_own() -> None:
    bench = Bench()
    bench.client()
    bench.worker(credit=8)
    bench.broker.received(b"client", submit("a", "b"), bench.now)
    bench.broker.received(b"client", submit("c", num_generations=2), bench.now)
    bench.broker.received(b"client", submit("d", seconds_left=9.0, num_generations=2), bench.now)
    runs = [run_of(0, "a", "b"), run_of(2, "c", "d", num_generations=2)]
    assert bench.flush() == [("worker", Assign(runs))]


def test_messages_are_cut_by_size_and_count_in_both_directions() -> None:
    bench = Bench(replace(SETTINGS, limits=Limits(target_message_bytes=100, max_rows=3)))
    bench.client()
    bench.worker(credit=20)
    large = submit("a", "b", "c", payloads=[b"x" * 60] * 3)
    assert [len(m.runs) for _, m in bench.tell("client", large) if isinstance(m, Assign)] == [1, 1, 1]
    sent = bench.tell("client", submit(*"defghij"))
    assert assigned(sent) == {"worker": list("def")}  # at most max_rows at once; the next come with the next flush
    assert assigned(bench.flush()) == {"worker": list("ghi")}
    assert assigned(bench.flush()) == {"worker": list("j")}
    sent = bench.tell("worker", Result([FIRST, FIRST + 1], [0, 0], 0, 22, [b"y" * 60] * 2))
    assert [m.payloads for _, m in sent if isinstance(m, Answer)] == [[b"y" * 60], [b"y" * 60]]
    sent = bench.tell("worker", result(3, 4, 5, 6, credit=22))
    assert [len(m.ids) for _, m in sent if isinstance(m, Answer)] == [3, 1]
    sent = bench.tell("client", Release(ids(*"abcd")))
    assert sent == [("worker", settle(0, 1, 2)), ("worker", settle(3))]


def test_a_worker_hears_at_once_of_rows_to_stop_and_of_others_that_are_settled_with_what_comes_next() -> None:
    bench = Bench()
    bench.client()
    bench.worker(credit=4)
    bench.tell("client", submit(*"abcd"))
    bench.tell("worker", result(0, 1, 2, credit=7))
    assert bench.tell("client", Release(ids("a"))) == []
    assert bench.tell("client", submit("e")) == [("worker", settle(0)), ("worker", assign(4, "e"))]
    assert bench.tell("client", Release(ids("b"))) == []
    assert bench.settled() == [("worker", settle(1))]
    assert bench.tick() == []
    assert bench.tell("client", Release(ids("c"))) == []
    assert bench.tell("client", Release(ids("d"))) == [("worker", settle(2, 3))]


def test_a_released_row_that_waits_never_starts_and_one_that_runs_is_stopped() -> None:
    bench = Bench()
    bench.client()
    bench.worker()
    bench.tell("client", submit("running", "waiting", "last"))
    assert bench.tell("client", Release(ids("waiting", "running"))) == [("worker", settle(0))]
    assert bench.tell("worker", grant(2)) == [("worker", assign(1, "last"))]


def test_an_answer_that_crossed_a_release_is_not_forwarded() -> None:
    bench = Bench()
    bench.client()
    bench.worker()
    bench.tell("client", submit("a"))
    bench.tell("client", Release(ids("a")))
    assert bench.tell("worker", result(0, credit=2)) == []


def test_an_answer_to_an_execution_of_another_worker_is_ignored() -> None:
    bench = Bench()
    bench.client()
    bench.worker("one")
    bench.worker("two", credit=0)
    bench.tell("client", submit("a"))
    before = bench.picture()
    assert bench.tell("two", result(0, credit=0), result(77, credit=0)) == []
    assert bench.picture() == before
    assert bench.tell("one", result(0, credit=1)) == [("client", answer(["a"], 0))]


def test_nobody_may_release_or_claim_rows_of_another_client() -> None:
    bench = Bench()
    bench.client("one")
    bench.client("two")
    bench.worker(credit=0)
    bench.tell("one", submit("a"))
    before = bench.picture()
    bench.tell("two", Release(ids("a")))
    bench.tell("two", submit("a", payloads=[b"forged"]))
    bench.tell("two", Await(ids("a"), False))
    assert bench.picture() == before
    assert bench.tell("two", Ping(1)) == [("two", Reset("you hold 1 rows here and I know 0"))]
    assert bench.tell("worker", grant(1)) == [("worker", assign(0, "a"))]


def test_nobody_may_submit_a_row_that_another_client_was_asked_for() -> None:
    bench = Bench()
    bench.client("one")
    bench.client("two")
    assert bench.tell("one", Await(ids("a"), False)) == [("one", Missing(ids("a")))]
    bench.tell("two", submit("a", payloads=[b"forged"]))
    bench.tell("one", submit("a"))
    bench.worker(credit=0)
    assert bench.tell("worker", grant(1)) == [("worker", assign(0, "a"))]


# What only a peer says that lies, or is broken.


def test_sums_of_what_workers_say_are_carried_however_large() -> None:
    bench = Bench()
    bench.client()
    for name in ("one", "two"):
        bench.worker(name, credit=2, batch_size=MAX_COUNT, concurrency=MAX_COUNT)
    ((_, fleet),) = bench.tick()
    assert isinstance(fleet, Fleet)
    assert fleet.llms[0].capacity == MAX_COUNT
    bench.tell("client", submit("a"), submit("b"))
    for number in (0, 1):
        bench.tell("one", result(number, credit=2, tokens=MAX_COUNT))
        bench.tell("two", result(number, credit=2, tokens=MAX_COUNT))
    ((_, status),) = bench.tell("client", Ask())
    assert isinstance(status, Status)
    assert [worker["tokens"] for worker in status.report["llms"][0]["workers"]] == [MAX_COUNT] * 2


def test_a_connection_that_is_another_peers_by_now_is_left_alone() -> None:
    """Whoever gives its connection up may say hello on it again, as somebody else."""
    bench = Bench()
    bench.client("same")
    bench.tell("same", submit("a"), Reset("enough"))
    bench.tell("same", worker_hello("same", credit=1))
    bench.tell("same", hold())
    bench.client("same/2")
    assert bench.tell("same/2", Await(ids("a"), False)) == []
    assert sorted(bench.broker.peers) == [b"same", b"same/2"]
    bench.end("same")
    assert not bench.broker.workers
    assert bench.state_of("a") is RowState.SUSPECTED, "its worker has ended"


def test_what_is_for_a_peer_that_is_away_is_not_sent_to_who_has_its_connection() -> None:
    bench = Bench()
    bench.client("one")
    bench.tell("one", Await(ids("a"), False))
    bench.worker(credit=1, held=Hold([5], ids("a"), [False], False))
    bench.tell("one", Reset("enough"), client_hello("another"))
    bench.tick()
    bench.lose("worker", silent=True)
    assert not any(isinstance(message, Missing) for _, message in bench.tick(SETTINGS.worker_grace_s))
    assert bench.state_of("a") is RowState.MISSING


def test_a_client_and_a_worker_that_name_the_same_process_take_two_places() -> None:
    bench = Bench(replace(SETTINGS, max_peers=1))
    bench.client("same")
    assert not welcomed(bench.tell("same/2", worker_hello("same")))


def test_a_batch_has_no_more_rows_than_a_message_may() -> None:
    bench = Bench(replace(SETTINGS, limits=Limits(max_rows=3)))
    bench.client()
    bench.worker(batch_size=100, credit=1)
    assert bench.tell("client", submit(*"abcde")) == [("worker", assign(0, *"abc"))]
    assert bench.tell("worker", grant(2)) == [("worker", assign(3, *"de"))]


def test_what_a_peer_that_does_not_read_has_sent_to_it_at_will_does_not_pile_up() -> None:
    bench = Bench()
    bench.client()
    bench.full.add("client")
    for _ in range(5):
        bench.tell("client", client_hello("client"), Ask(), Grant(0, WorkerState.READY))
        bench.broker.malformed(b"client", "no message")
        bench.tick(0.1)
    assert Counter(type(message) for message in bench.peer("client").outbox) == {Welcome: 1, Status: 1, Reset: 1}


def test_a_row_that_runs_where_nobody_expected_it_is_waited_for_and_not_run_beside() -> None:
    bench = Bench()
    bench.client()
    bench.worker("one")
    bench.tell("client", submit("a"))
    bench.tell("one", result(0, credit=0))
    bench.end("one")  # the answer, which the client has not released, is gone with it
    bench.worker("two", credit=1, held=Hold([5], ids("a"), [False], False))
    bench.client("client/2")
    assert bench.tell("client/2", Await(ids("a"), False)) == []
    assert bench.state_of("a") is RowState.RUNNING
    assert bench.tell("two", Result([5], [Outcome.DONE], 0, 1, [b"late"])) == [
        ("client/2", Answer(ids("a"), [Outcome.DONE], [0], [b"late"]))
    ]


def test_a_row_whose_engine_raised_is_tried_again_and_fails_for_good_after_the_last_attempt() -> None:
    bench = Bench()
    bench.client()
    bench.worker(credit=1)
    bench.tell("client", submit("a"))
    raised = Outcome.RAISED
    assert bench.tell("worker", result(0, credit=2, outcome=raised)) == [
        ("worker", settle(0)),
        ("worker", assign(1, "a", charged=1)),
    ]
    assert bench.tell("worker", result(1, credit=3, outcome=raised)) == [
        ("worker", settle(1)),
        ("worker", assign(2, "a", charged=2)),
    ]
    failed = answer(["a"], 2, outcome=Outcome.FAILED, attempts=3)
    assert bench.tell("worker", result(2, credit=4, outcome=raised)) == [("client", failed)]
    assert bench.settled() == [("worker", settle(2))]


@pytest.mark.parametrize("outcome", [Outcome.RAISED, Outcome.RETURNED])
def test_a_worker_is_told_to_let_go_of_a_row_before_it_is_given_it_again(outcome: Outcome) -> None:
    bench = Bench()
    bench.client()
    bench.worker(credit=1)
    bench.tell("client", submit("a"))
    # Else it would hold the row twice when its connection breaks in between, and the next broker would believe it.
    assert bench.tell("worker", result(0, credit=2, outcome=outcome)) == [
        ("worker", settle(0)),
        ("worker", assign(1, "a", charged=int(outcome == Outcome.RAISED))),
    ]


def test_a_row_that_is_handed_back_is_not_charged_and_goes_to_the_head() -> None:
    bench = Bench()
    bench.client()
    bench.worker("one", credit=1)
    bench.tell("client", submit("a", "b"))
    bench.worker("two", credit=0)
    bench.tell("one", grant(0, WorkerState.DRAINING))
    assert bench.tell("one", result(0, credit=0, outcome=Outcome.RETURNED)) == []
    assert bench.settled() == [("one", settle(0))]
    assert bench.tell("two", grant(2)) == [("two", assign(1, "a", "b"))]


def test_a_row_that_fails_for_good_is_charged_once_however_often_its_answer_comes() -> None:
    bench = Bench()
    bench.client()
    bench.worker()
    bench.tell("client", submit("a"))
    failed = result(0, credit=2, outcome=Outcome.FAILED)
    expected = [("client", answer(["a"], 0, outcome=Outcome.FAILED, attempts=1))]
    assert bench.tell("worker", failed) == expected
    bench.lose("worker")
    bench.worker("worker/2", credit=1, held=hold((0, "a", True)))
    assert bench.tell("worker/2", failed) == expected


# Credit.


def test_credit_is_a_total_that_may_fall_and_is_never_exceeded() -> None:
    bench = Bench()
    bench.client()
    bench.worker(credit=3)
    bench.tell("client", submit(*numbered("row", 20)))
    worker = bench.peer("worker")
    assert isinstance(worker, Worker)
    given: list[int] = []
    for credit in (3, 5, 4, 0, 5, 5, 6, 2, 9):
        bench.tell("worker", grant(credit))
        given.append(worker.used)
        assert worker.free_calls == 0
    assert given == [3, 5, 5, 5, 5, 5, 6, 6, 9]


def test_rows_are_given_to_no_worker_that_has_not_said_what_it_holds() -> None:
    bench = Bench()
    bench.client()
    bench.tell("client", submit("a", "b"))
    assert bench.tell("worker", worker_hello("worker", credit=2)) == [("worker", Welcome(EPOCH, 1.0, Limits()))]
    assert bench.tell("worker", grant(2)) == []
    assert bench.tell("worker", hold(more=True)) == []
    assert bench.tell("worker", hold()) == [("worker", assign(0, "a", "b"))]


def test_credit_begins_anew_with_a_connection() -> None:
    bench = Bench()
    bench.client()
    bench.worker(credit=2)
    bench.tell("client", submit(*"abcdef"))
    bench.lose("worker")
    assert bench.tell("worker/2", worker_hello("worker", credit=1)) == [("worker/2", Welcome(EPOCH, 1.0, Limits()))]
    held = hold((0, "a", False), (1, "b", False))
    assert bench.tell("worker/2", held) == [("worker/2", assign(2, "c"))]


def test_rows_are_spread_over_the_free_workers() -> None:
    bench = Bench()
    bench.client()
    for name in ("one", "two", "three"):
        bench.worker(name, credit=8)
    sent = bench.tell("client", submit(*numbered("row", 7)))
    assert {name: len(rows) for name, rows in assigned(sent).items()} == {"one": 3, "two": 2, "three": 2}


def test_workers_take_turns() -> None:
    bench = Bench()
    bench.client()
    for name in ("one", "two"):
        bench.worker(name, credit=8)
    order = [name for number in range(4) for name in assigned(bench.tell("client", submit(f"row{number}")))]
    assert order == ["one", "two", "one", "two"]


def test_clients_take_turns_at_a_worker() -> None:
    bench = Bench()
    bench.client("big")
    bench.client("small")
    bench.worker(credit=1)
    bench.tell("big", submit(*numbered("big", 4)))
    bench.tell("small", submit(*numbered("small", 2)))
    order = [assigned(bench.tell("worker", grant(credit)))["worker"][0] for credit in (2, 3, 4, 5, 6)]
    assert order == ["big1", "small0", "big2", "small1", "big3"]


def test_a_batch_worker_gets_one_run_for_each_call_it_grants() -> None:
    bench = Bench()
    bench.client()
    bench.worker(batch_size=4, concurrency=2, credit=2)
    bench.tell("client", submit(*"ab"))
    assert bench.tell("client", submit(*"cdefghij")) == [("worker", assign(2, *"cdef"))]
    assert bench.tell("worker", grant(4)) == [("worker", assign(6, *"ghij"))]


def test_a_batch_worker_gets_only_rows_that_fit_together_in_a_call() -> None:
    bench = Bench()
    bench.client()
    bench.tell("client", submit("a", "b"), submit("c", num_generations=2), submit("d", "e"))
    assert bench.worker(batch_size=4, credit=0) == "worker"
    assert bench.tell("worker", grant(1)) == [("worker", assign(0, "a", "b"))]
    assert bench.tell("worker", grant(2)) == [("worker", assign(2, "c", num_generations=2))]
    assert bench.tell("worker", grant(3)) == [("worker", assign(3, "d", "e"))]


TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
OTHER_TRACE = TRACE[:-2] + "00"


def test_a_trace_is_passed_on_and_rows_of_two_are_in_runs_of_their_own() -> None:
    bench = Bench()
    bench.client()
    bench.tell("client", submit("a", "b", trace=TRACE), submit("c", trace=OTHER_TRACE), submit("d", trace=OTHER_TRACE))
    bench.worker(batch_size=4, credit=0)
    assert bench.tell("worker", grant(1)) == [("worker", assign(0, "a", "b", trace=TRACE))]
    assert bench.tell("worker", grant(2)) == [("worker", assign(2, "c", "d", trace=OTHER_TRACE))]


def test_a_row_that_is_sent_again_keeps_its_trace() -> None:
    bench = Bench()
    bench.client()
    bench.worker("one")
    bench.tell("client", submit("a", trace=TRACE))
    bench.worker("two")
    (sent,) = bench.tell("one", Goodbye())
    assert sent == ("two", assign(1, "a", trace=TRACE))


def test_a_batch_goes_whole_where_it_is_no_larger_than_a_row_may_be() -> None:
    bench = Bench(replace(SETTINGS, limits=Limits(target_message_bytes=100, max_row_bytes=200)))
    bench.client()
    bench.tell("client", submit(*"abcd", payloads=[name * 60 for name in (b"a", b"b", b"c", b"d")]))
    bench.worker(batch_size=4, credit=0)
    assert assigned(bench.tell("worker", grant(1))) == {"worker": [60 * name for name in "abc"]}
    assert assigned(bench.tell("worker", grant(2))) == {"worker": [60 * "d"]}


def test_rows_with_long_options_of_their_own_share_no_message_that_is_too_long_to_be_read() -> None:
    bench = Bench()
    bench.client()
    names = numbered("row", 100)
    bench.tell("client", *(submit(name, options=name.encode() * 10_000) for name in names))
    bench.tell("worker", worker_hello("worker", credit=100))
    sent = bench.tell("worker", hold())
    assert assigned(sent) == {"worker": names}


def test_an_llm_gets_its_own_rows_only() -> None:
    bench = Bench()
    bench.client()
    bench.worker("one", llm="small", credit=5)
    bench.worker("two", llm="large", credit=5)
    sent = bench.tell("client", submit("s", llm="small"), submit("l", llm="large"), submit("n", llm="nobody's"))
    assert assigned(sent) == {"one": ["s"], "two": ["l"]}
    assert bench.state_of("n") is RowState.QUEUED


# Deadlines.


def test_a_row_whose_deadline_has_passed_is_answered_at_dispatch_and_never_handed_out() -> None:
    bench = Bench()
    bench.client()
    bench.tell("client", submit("short", seconds_left=1.0), submit("long", seconds_left=9.0))
    bench.tick(1.0)
    assert bench.tell("worker", worker_hello("worker", credit=1))[0][0] == "worker"
    given, (name, expired) = bench.tell("worker", hold())
    assert given == ("worker", assign(0, "long", seconds_left=8.0))
    assert name == "client"
    assert isinstance(expired, Answer)
    assert (expired.ids, expired.outcomes, expired.attempts) == (ids("short"), [Outcome.EXPIRED], [0])
    failure = unpack_failure(expired.payloads[0])
    assert (failure.type, failure.builtin) == ("Expired", "TimeoutError")
    assert failure.message == "its deadline passed while it waited for a worker"


def test_a_verdict_of_the_broker_is_told_again_to_a_client_that_comes_back() -> None:
    bench = Bench()
    bench.client()
    bench.tell("client", submit("a", seconds_left=1.0))
    bench.lose("client")
    bench.tick(1.0)
    bench.worker(credit=1)
    bench.client("client/2")
    ((name, expired),) = bench.tell("client/2", Await(ids("a"), False))
    assert name == "client/2"
    assert isinstance(expired, Answer)
    assert expired.outcomes == [Outcome.EXPIRED]


def test_a_suspect_whose_deadline_has_passed_is_not_tried_again() -> None:
    bench = Bench()
    bench.client()
    bench.worker("one", credit=4)
    bench.tell("client", submit("c", "d"), submit("a", "b", seconds_left=1.0))
    bench.end("one")
    bench.tick(1.0)
    assert bench.tell("two", worker_hello("two", credit=4))[0][0] == "two"
    given, (_, expired) = bench.tell("two", hold())
    assert sorted(assigned([given])["two"]) == ["c", "d"]
    assert isinstance(expired, Answer)
    assert (sorted(expired.ids), expired.outcomes) == (ids("a", "b"), [Outcome.EXPIRED, Outcome.EXPIRED])


# Clients that come and go.


def test_a_clients_rows_survive_its_absence_for_the_grace() -> None:
    bench = Bench()
    bench.client()
    bench.worker()
    bench.tell("client", submit("running", "waiting"))
    bench.lose("client")
    assert bench.tell("worker", result(0, credit=2)) == [("worker", assign(1, "waiting"))]
    bench.tick(9.9)
    assert len(bench.broker.ledger.rows) == 2
    assert bench.tick(0.1) == [("worker", settle(0, 1))]
    assert (bench.broker.ledger.rows, bench.broker.clients) == ({}, {})


def test_a_client_that_comes_back_gets_the_answers_it_missed() -> None:
    bench = Bench()
    bench.client()
    bench.worker(credit=3)
    bench.tell("client", submit("answered", "running", "released"))
    bench.lose("client")
    bench.tell("worker", result(0, 2, credit=3))
    bench.client("client/2")
    sent = bench.tell("client/2", Await(ids("answered", "running"), False))
    assert sent == [("worker", settle(2)), ("worker", resend(0))]
    assert bench.tell("worker", result(0, credit=3)) == [("client/2", answer(["answered"], 0))]


def test_an_await_in_parts_is_acted_on_when_its_last_part_is_there() -> None:
    bench = Bench()
    bench.client()
    bench.worker(credit=0)
    bench.tell("client", submit("a", "b", "c"))
    bench.lose("client")
    bench.client("client/2")
    assert bench.tell("client/2", Await(ids("a"), True)) == []
    assert len(bench.broker.ledger.rows) == 3
    assert bench.tell("client/2", Await(ids("c"), False)) == []
    assert sorted(bench.broker.ledger.rows) == ids("a", "c")


def test_an_await_that_a_cut_ended_leaves_nothing_to_the_next() -> None:
    bench = Bench()
    bench.client()
    bench.worker(credit=0)
    bench.tell("client", submit("a", "b"))
    bench.lose("client")
    bench.client("client/2")
    bench.tell("client/2", Await(ids("a"), True))
    bench.client("client/3")
    bench.tell("client/3", Await(ids("b"), False))
    assert sorted(bench.broker.ledger.rows) == ids("b")


def test_awaited_rows_that_nobody_holds_are_asked_for_in_messages_of_bounded_size() -> None:
    bench = Bench(replace(SETTINGS, limits=Limits(max_rows=2)))
    bench.client()
    bench.worker(credit=3)
    sent = bench.tell("client", Await(ids("a", "b", "c"), False))
    assert [len(m.ids) for _, m in sent if isinstance(m, Missing)] == [2, 1]
    assert sorted(row for _, m in sent if isinstance(m, Missing) for row in m.ids) == ids("a", "b", "c")
    assert bench.tell("client", Ping(3)) == []  # they are in the ledger already
    assert bench.tell("client", submit("a", "b", "c", again=True)) == [("worker", assign(0, "a", "b"))]
    assert bench.flush() == [("worker", assign(2, "c"))]


def test_a_row_that_is_missing_and_not_sent_again_can_be_released() -> None:
    bench = Bench()
    bench.client()
    assert bench.tell("client", Await(ids("a"), False)) == [("client", Missing(ids("a")))]
    assert bench.tell("client", Release(ids("a"))) == []
    assert not bench.broker.ledger.rows


def test_a_client_that_says_goodbye_takes_its_rows_along() -> None:
    bench = Bench()
    bench.client()
    bench.worker()
    bench.tell("client", submit("running", "waiting"))
    assert bench.tell("client", Goodbye()) == [("worker", settle(0))]
    assert (bench.broker.ledger.rows, bench.broker.clients) == ({}, {})


def test_a_ledger_that_differs_resets_the_client() -> None:
    bench = Bench()
    bench.client()
    bench.tell("client", submit("a", "b"))
    assert bench.tell("client", Ping(2)) == []
    assert bench.tell("client", Ping(None)) == []
    assert bench.tell("client", Ping(3)) == [("client", Reset("you hold 3 rows here and I know 2"))]


def test_a_client_may_ask_for_the_status() -> None:
    bench = Bench()
    bench.client()
    ((name, status),) = bench.tell("client", Ask())
    assert name == "client"
    assert isinstance(status, Status)
    assert status.report["uptime_s"] == 100.0


def statuses(sent: list[Sent]) -> list[tuple[str, Any]]:
    return [(name, message.report) for name, message in sent if isinstance(message, Status)]


def test_all_who_ask_in_a_burst_are_told_once_and_the_same() -> None:
    bench = Bench()
    bench.client("one")
    bench.client("two")
    for _ in range(100):
        bench.broker.received(b"one", Ask(), bench.now)
    (first, second) = statuses(bench.tell("two", Ask()))
    assert (first[0], second[0]) == ("one", "two")
    assert first[1] is second[1]


def test_who_asks_again_and_again_is_told_a_few_times_a_second_and_what_is_so_then() -> None:
    bench = Bench()
    bench.client("one")
    bench.client("two")
    told = [at for at in range(50) if statuses(bench.tell("one", Ask())) or statuses(bench.tick(0.02))]
    assert 4 <= len(told) <= 6
    bench.tick(1.0)
    bench.tick(1.0)
    assert statuses(bench.tell("one", Ask())), "at once, when nobody has asked just before"
    assert bench.tell("two", Ask(), submit("late")) == []
    ((name, report),) = statuses(bench.tick(0.2))
    assert (name, report["rows"]) == ("two", 1)
    assert statuses(bench.tick(0.2)) == []


def test_a_connection_that_is_gone_leaves_no_question_behind() -> None:
    bench = Bench()
    bench.client()
    assert statuses(bench.tell("client", Ask()))
    bench.tell("client", Ask())
    bench.lose("client")
    bench.client("client/2")
    assert statuses(bench.tick(1.0)) == []


# Messages that come twice, or from who is gone.


def scene_of_client(bench: Bench) -> None:
    """A client with a row answered, one that runs and one that waits."""
    bench.client()
    bench.worker(credit=2)
    bench.tell("client", submit("answered", "running", "waiting"))
    bench.tell("worker", result(0, credit=2))


CLIENT_MESSAGES: dict[str, Message] = {
    "submit": submit("new"),
    "submit again": submit("waiting", "running", "answered", again=True),
    "release waiting": Release(ids("waiting")),
    "release running": Release(ids("running")),
    "release answered": Release(ids("answered")),
    "release unknown": Release(ids("unknown")),
    "await all": Await(ids("waiting", "running", "answered"), False),
    "await none": Await([], False),
    "await unknown": Await(ids("waiting", "unknown"), False),
    "await more": Await(ids("waiting"), True),
    "goodbye": Goodbye(),
    "ask": Ask(),
}

WORKER_MESSAGES: dict[str, Message] = {
    "done": result(1, credit=2),
    "done before": result(0, credit=2),
    "failed": result(1, credit=2, outcome=Outcome.FAILED),
    "raised": result(1, credit=2, outcome=Outcome.RAISED),
    "returned": result(1, credit=2, outcome=Outcome.RETURNED),
    "unknown": result(55, credit=2),
    "hold": hold((0, "answered", True), (1, "running", False)),
    "hold nothing": hold(),
    "hold more": hold((0, "answered", True), more=True),
    "hold another's": hold((0, "running", False), (1, "answered", True)),
    "grant": grant(2),
    "grant less": grant(0),
    "drain": grant(2, WorkerState.DRAINING),
    "goodbye": Goodbye("it drains"),
}
PEERS = {"client": CLIENT_MESSAGES, "worker": WORKER_MESSAGES}
EVERY = [(who, what) for who, messages in PEERS.items() for what in messages]


@pytest.mark.parametrize(("who", "what"), EVERY)
def test_a_message_that_comes_twice_changes_nothing_the_second_time(who: str, what: str) -> None:
    bench = Bench()
    scene_of_client(bench)
    bench.tell(who, PEERS[who][what])
    before = bench.picture()
    again = bench.tell(who, PEERS[who][what])
    assert bench.picture() == before
    assert not assigned(again)


@pytest.mark.parametrize(("who", "what"), EVERY)
def test_a_message_after_its_connection_was_lost_changes_nothing(who: str, what: str) -> None:
    bench = Bench()
    scene_of_client(bench)
    bench.lose(who)
    before = bench.picture()
    assert bench.tell(who, PEERS[who][what]) == [(who, Reset("say hello first"))]
    assert bench.picture() == before


@pytest.mark.parametrize("first", EVERY, ids="-".join)
def test_after_any_two_messages_and_both_again_nothing_is_left_when_the_client_goes(first: tuple[str, str]) -> None:
    for second in EVERY:
        bench = Bench()
        scene_of_client(bench)
        for who, what in (first, second, first, second):
            bench.tell(who, PEERS[who][what])
        bench.lose("client")
        bench.tick(SETTINGS.client_grace_s)
        assert not bench.broker.ledger.rows, second
        assert not bench.broker.ledger.executions, second
        assert not bench.broker.clients, second


def test_a_copy_of_what_a_worker_held_at_first_takes_back_nothing_that_it_was_given_since() -> None:
    bench = Bench()
    bench.client()
    bench.worker()
    bench.tell("client", submit("a"))
    assert bench.tell("worker", hold()) == []
    assert bench.tell("worker", result(0, credit=1)) == [("client", answer("a", 0))]
    assert bench.tell("worker", hold()) == []
    assert bench.tell("client", Release(ids("a"))) == []
    assert bench.settled() == [("worker", settle(0))]


def test_a_copy_of_the_last_part_of_what_is_awaited_drops_nothing() -> None:
    bench = Bench()
    bench.client()
    bench.tell("client", Await(ids("a", "b"), True), Await(ids("c"), False), submit("a", "b", "c", again=True))
    bench.tell("client", Await(ids("c"), False))
    assert assigned(bench.tell(bench.worker(), grant(3))) == {"worker": ["b", "c"]}


def test_what_is_missing_is_asked_for_in_its_clients_order() -> None:
    bench = Bench()
    bench.client()
    names = numbered("row", 50)
    assert bench.tell("client", Await(ids(*names), False)) == [("client", Missing(ids(*names)))]


def test_a_worker_that_was_given_up_and_only_says_what_changed_is_told_to_start_anew() -> None:
    bench = Bench()
    bench.worker("worker/1")
    bench.tell("worker/0", worker_hello("worker"))  # late, of a connection before
    assert bench.tell("worker/1", worker_hello("worker", credit=1))[0][0] == "worker/1"
    assert bench.tell("worker/1", Ping(None)) == [("worker/1", Reset("you have not said what you hold"))]
    bench.worker("worker/2")
    assert bench.tell("worker/2", Ping(None)) == []


def test_a_row_that_raised_once_is_charged_once_though_its_worker_did_not_hear_that_it_was_settled() -> None:
    bench = Bench()
    bench.client()
    bench.worker("one/1")
    bench.tell("client", submit("a"))
    bench.tell("one/1", result(0, credit=1, outcome=Outcome.RAISED))
    for connection in range(2, 5):
        bench.lose(f"one/{connection - 1}")
        assert bench.tell(f"one/{connection}", worker_hello("one", credit=0))[0][0] == f"one/{connection}"
        assert bench.tell(f"one/{connection}", hold((0, "a", True))) == [(f"one/{connection}", settle(0))]
        bench.tell(f"one/{connection}", result(0, credit=0, outcome=Outcome.RAISED))
    sent = bench.tell(bench.worker("two", credit=0), grant(1))
    assert [message.runs[0].charged for _, message in sent if isinstance(message, Assign)] == [1]


@pytest.mark.parametrize("outcome", [Outcome.RAISED, Outcome.RETURNED])
def test_what_came_to_nothing_before_a_restart_lets_no_row_overtake_the_worker_that_has_its_answer(
    outcome: Outcome,
) -> None:
    bench = Bench(age=0.5)
    bench.client()
    bench.tell("client", Await(ids("a"), False), submit("a", again=True))
    bench.worker("idle")
    earlier = [FIRST + (1 << 40), FIRST + (1 << 40) + 1]
    for name, execution in zip(("first", "second"), earlier, strict=True):
        assert not assigned(bench.tell(bench.worker(name, held=Hold([execution], ids("a"), [True], False))))
        if name == "first":
            assert not assigned(bench.tell(name, Result([execution], [outcome], 0, 0, [b""])))
    sent = bench.tell("second", Result(earlier[1:], [Outcome.DONE], 0, 0, [b"answer 0"]))
    assert ("client", answer("a", 0, attempts=int(outcome == Outcome.RAISED))) in sent
    assert not assigned(bench.tick(5.0))


# Workers that come and go.


def test_a_lost_workers_rows_go_to_the_head_of_the_queue_after_the_grace() -> None:
    bench = Bench()
    bench.client()
    bench.worker("one", credit=2)
    bench.tell("client", submit(*"abcd"))
    bench.worker("two", credit=0)
    bench.lose("one", silent=True)
    assert bench.tick(0.4) == [("client", bench.broker._fleet())]
    assert bench.tick(0.2) == []
    assert bench.tell("two", grant(3)) == [("two", assign(2, "a", "b", "c"))]


def test_a_worker_that_comes_back_in_time_goes_on_and_repeats_nothing() -> None:
    bench = Bench()
    bench.client()
    bench.worker(credit=3)
    bench.tell("client", submit("running", "finished", "never arrived"))
    bench.lose("worker")
    bench.tick(0.4)
    assert bench.tell("worker/2", worker_hello("worker", credit=1))[0][0] == "worker/2"
    sent = bench.tell("worker/2", hold((0, "running", False), (1, "finished", True)))
    assert sent == [
        ("worker/2", resend(1)),
        ("worker/2", settle(2)),
        ("worker/2", assign(3, "never arrived")),
    ]
    assert bench.tick(2.0) == [("client", bench.broker._fleet())]
    assert bench.tell("worker/2", result(0, 1, credit=1)) == [("client", answer(["running", "finished"], 0, 1))]


def test_what_was_released_while_a_worker_was_away_is_settled_when_it_is_back() -> None:
    bench = Bench()
    bench.client()
    bench.worker()
    bench.tell("client", submit("a"))
    bench.lose("worker")
    assert bench.tell("client", Release(ids("a"))) == []
    assert bench.tell("worker/2", worker_hello("worker", credit=1))[0][0] == "worker/2"
    assert bench.tell("worker/2", hold((0, "a", True))) == [("worker/2", settle(0))]


def test_a_worker_lost_twice_in_a_row_keeps_its_ledger() -> None:
    bench = Bench()
    bench.client()
    bench.worker()
    bench.tell("client", submit("a"))
    bench.lose("worker")
    bench.tell("worker/2", worker_hello("worker", credit=1))
    bench.lose("worker/2")
    bench.tell("worker/3", worker_hello("worker", credit=0))
    assert bench.tell("worker/3", hold((0, "a", False))) == []
    assert bench.tell("worker/3", result(0, credit=1)) == [("client", answer(["a"], 0))]


def test_a_worker_that_drains_and_says_goodbye_charges_nobody() -> None:
    bench = Bench()
    bench.client()
    bench.worker("one", credit=2)
    bench.tell("client", submit("a", "b"))
    bench.worker("two", credit=2)
    bench.tell("one", grant(0, WorkerState.DRAINING, "it was told to stop"))
    assert bench.tell("one", Goodbye("it was told to stop")) == [("two", assign(2, "a", "b"))]


@pytest.mark.parametrize(
    ("state", "level"), [(WorkerState.DRAINING, "info"), (WorkerState.UNWELL, "warning")], ids=["drained", "unwell"]
)
def test_a_goodbye_is_a_warning_unless_the_worker_was_drained(state: WorkerState, level: str) -> None:
    bench = Bench()
    bench.worker("one")
    bench.tell("one", grant(0, state, "why"))
    bench.broker.received(b"one", Goodbye("why"), bench.now)
    logs = [effect for effect in bench.broker.flush(bench.now) if isinstance(effect, Log)]
    assert logs == [Log(level, "worker one:8 of 'llm' is away: why")]


def test_a_worker_that_is_killed_while_it_drains_charges_nobody() -> None:
    bench = Bench()
    bench.client()
    bench.worker("one", credit=2)
    bench.tell("client", submit("a", "b"))
    bench.tell("one", grant(2, WorkerState.DRAINING, "it was told to stop"))
    bench.end("one")
    assert [(row.record.charged, row.record.suspect_group) for row in bench.broker.ledger.rows.values()] == [
        (0, 0),
        (0, 0),
    ]
    bench.worker("two", credit=2)
    assert bench.state_of("a") is bench.state_of("b") is RowState.RUNNING


def test_a_worker_that_gives_its_connection_up_is_not_blamed_and_may_come_back() -> None:
    bench = Bench()
    bench.client()
    bench.worker(credit=1)
    bench.tell("client", submit("a"))
    assert bench.tell("worker", Reset("nothing was heard for 7 s")) == []
    assert "worker worker:8 of 'llm' is away: nothing was heard for 7 s" in bench.logs
    bench.tick(0.5)
    assert [row.record.charged for row in bench.broker.ledger.rows.values()] == [0]
    bench.worker("worker/2", held=hold((0, "a", False)))
    assert bench.tell("worker/2", result(0, credit=1)) == [("client", answer(["a"], 0))]


def test_a_client_that_gives_its_connection_up_is_away() -> None:
    bench = Bench()
    bench.client()
    bench.tell("client", submit("a"))
    bench.tell("client", Reset("nothing was heard for 7 s"))
    assert [client.lost for client in bench.broker.clients.values()] == [bench.now]
    bench.client("client/2")
    assert bench.tell("client/2", Await(ids("a"), False)) == []
    assert bench.state_of("a") is RowState.QUEUED


def test_after_a_broken_connection_somewhere_everybody_is_pinged_at_once() -> None:
    bench = Bench()
    bench.client()
    bench.tick_all(SETTINGS.ping_interval_s)
    assert bench.tick_all(0.01) == []
    bench.broker.connection_broke(bench.now)
    assert bench.tick_all(0.01) == [("client", Ping(None))]


def test_who_was_lost_while_the_broker_stood_still_has_time_to_come_back_and_is_not_blamed() -> None:
    bench = Bench()
    bench.client()
    bench.worker(credit=1)
    bench.tell("client", submit("a"))
    bench.now += 30.0
    bench.broker.stood_still(30.0, bench.now)
    bench.lose("worker")
    bench.tick(SETTINGS.settle_s - 0.1)
    assert bench.state_of("a") is RowState.RUNNING
    bench.tick(0.1)
    assert bench.state_of("a") is RowState.QUEUED
    assert [row.record.charged for row in bench.broker.ledger.rows.values()] == [0]


def test_graces_do_not_run_while_the_broker_stands_still() -> None:
    bench = Bench()
    bench.client()
    bench.worker(credit=1)
    bench.tell("client", submit("a"))
    bench.lose("worker", "client")
    bench.now += 30.0
    bench.broker.stood_still(30.0, bench.now)
    bench.tick(SETTINGS.worker_grace_s / 2)
    bench.worker("worker/2", held=hold((0, "a", False)))
    bench.client("client/2")
    assert bench.tell("client/2", Await(ids("a"), False)) == []
    assert bench.tell("worker/2", result(0, credit=1)) == [("client/2", answer(["a"], 0))]


def test_a_row_that_is_answered_is_stopped_at_a_worker_that_comes_back_with_it() -> None:
    bench = Bench()
    bench.client()
    bench.worker("one", credit=1)
    bench.tell("client", submit("a"))
    bench.worker("two", credit=1)
    bench.lose("one", silent=True)
    assert assigned(bench.tick(SETTINGS.worker_grace_s)) == {"two": ["a"]}
    bench.tell("two", result(1, credit=1))
    bench.tell("one/2", worker_hello("one", credit=0))
    assert bench.tell("one/2", hold((0, "a", False))) == [("one/2", settle(0))]


def test_a_frozen_worker_charges_nobody() -> None:
    bench = Bench()
    bench.client()
    bench.worker("one", credit=2)
    bench.tell("client", submit("a", "b"))
    bench.worker("two", credit=2)
    bench.lose("one", silent=True)
    assert assigned(bench.tick(0.5)) == {"two": ["a", "b"]}
    assert all(row.record.charged == 0 for row in bench.broker.ledger.rows.values())


def test_rows_in_messages_that_never_left_are_not_charged() -> None:
    """A batch worker gets a message for each call; the first that fails shows that the worker is gone."""
    bench = Bench()
    bench.client()
    bench.worker(batch_size=2, concurrency=2, credit=2)
    bench.gone.add("worker")
    assert bench.tell("client", submit(*"abcd")) == []
    assert not bench.broker.ledger.executions
    bench.tick(0.5)
    assert all(row.record.charged == 0 for row in bench.broker.ledger.rows.values())
    bench.worker("two", credit=4)
    assert {row.state for row in bench.broker.ledger.rows.values()} == {RowState.RUNNING}


def test_a_client_that_does_not_read_is_kept_only_the_last_news_of_the_fleet() -> None:
    bench = Bench()
    bench.client()
    bench.full.add("client")
    for number in range(20):
        bench.worker(f"worker {number}")
        bench.tick(0.1)
    assert list(bench.peer("client").outbox) == [bench.broker._fleet()]
    bench.full.clear()
    assert bench.tick(0.1) == [("client", bench.broker._fleet())]


def test_rows_that_waited_in_an_outbox_are_not_charged() -> None:
    bench = Bench()
    bench.client()
    bench.worker(credit=2)
    bench.full.add("worker")
    assert bench.tell("client", submit("a", "b")) == []
    assert len(bench.peer("worker").outbox) == 1
    bench.lose("worker")
    assert not bench.broker.ledger.executions
    bench.tick(0.5)
    assert all(row.record.charged == 0 for row in bench.broker.ledger.rows.values())


def test_finished_rows_of_a_worker_that_ends_are_not_charged() -> None:
    """Known from its last connection's end: their answers were on the way again."""
    bench = Bench()
    bench.client()
    bench.worker(credit=2)
    bench.tell("client", submit("finished", "running"))
    bench.lose("worker")
    bench.worker("worker/2", credit=0, held=hold((0, "finished", True), (1, "running", False)))
    bench.end("worker/2")
    assert {row.id: row.record.charged for row in bench.broker.ledger.rows.values()} == dict(
        zip(ids("finished", "running"), [0, 1], strict=True)
    )


def test_an_answer_that_dies_with_its_worker_while_the_client_was_away_is_computed_again() -> None:
    bench = Bench()
    bench.client()
    bench.worker("one")
    bench.tell("client", submit("a"))
    bench.lose("client")
    bench.tell("one", result(0, credit=1))
    bench.worker("two", credit=1)
    bench.client("client/2")
    assert bench.tell("client/2", Await(ids("a"), False)) == [("one", resend(0))]
    assert assigned(bench.end("one")) == {"two": ["a"]}
    assert bench.tell("two", result(1, credit=1)) == [("client/2", answer(["a"], 1))]


def test_an_answer_is_waited_for_while_its_worker_may_come_back() -> None:
    bench = Bench()
    bench.client()
    bench.worker("one")
    bench.tell("client", submit("a"))
    bench.lose("client")
    bench.tell("one", result(0, credit=1))
    bench.lose("one")
    bench.worker("two", credit=1)
    bench.client("client/2")
    assert bench.tell("client/2", Await(ids("a"), False)) == []
    assert assigned(bench.tick(0.5)) == {"two": ["a"]}
    assert bench.broker.ledger.rows[ids("a")[0]].record.charged == 0


def test_an_answer_whose_worker_is_long_gone_is_computed_again() -> None:
    bench = Bench()
    bench.client()
    bench.worker("one")
    bench.tell("client", submit("a"))
    bench.lose("client")
    bench.tell("one", result(0, credit=1))
    bench.end("one")
    bench.worker("two", credit=1)
    bench.client("client/2")
    assert bench.tell("client/2", Await(ids("a"), False)) == [("two", assign(1, "a"))]


# Blame.


def suspects_of(bench: Bench, rows: int, doomed: str = "doomed") -> None:
    """So many rows have just ended the worker that ran them together."""
    bench.client()
    bench.worker(doomed, credit=rows)
    bench.tell("client", submit(*numbered("s", rows)))
    bench.end(doomed)


def test_a_lost_workers_rows_are_charged_and_tried_again_in_groups_on_one_worker() -> None:
    bench = Bench()
    suspects_of(bench, 9)
    bench.worker("one", credit=8, concurrency=8)
    running = bench.peer("one")
    assert isinstance(running, Worker)
    assert running.running == 3
    bench.worker("two", credit=8, concurrency=8)
    assert assigned(bench.tell("client", submit(*numbered("good", 4)))) == {"two": numbered("good", 4)}
    assert assigned(bench.tell("two", grant(20))) == {}  # suspects run on one worker at a time
    numbers = [number - FIRST for number in running.executions]
    sent = bench.tell("one", result(*numbers[:2], credit=10))
    assert assigned(sent) == {}  # the group is not done
    assert len(assigned(bench.tell("one", result(numbers[2], credit=11)))["one"]) == 3
    assert all(row.record.charged in (0, 1) for row in bench.broker.ledger.rows.values())


def test_a_worker_that_tries_suspects_runs_nothing_else_meanwhile() -> None:
    bench = Bench()
    suspects_of(bench, 4)
    bench.worker("one", credit=8)
    running = bench.peer("one")
    assert isinstance(running, Worker)
    assert running.running == 2
    assert bench.tell("client", submit("good")) == []
    numbers = sorted(number - FIRST for number in running.executions)
    sent = bench.tell("one", result(*numbers, credit=10))
    assert len(assigned(sent)["one"]) == 2
    assert "good" not in assigned(sent)["one"]
    numbers = sorted(n - FIRST for n, execution in running.executions.items() if not execution.finished)
    assert assigned(bench.tell("one", result(*numbers, credit=12))) == {"one": ["good"]}


def test_a_worker_is_told_which_rows_are_suspects() -> None:
    bench = Bench()
    bench.client()
    bench.worker("doomed")
    sent = bench.tell("client", submit("row"))
    bench.worker("one")
    sent += bench.end("doomed")
    sent += bench.tell("one", result(1, credit=2))
    sent += bench.tell("client", submit("good"))
    runs = [run for _, message in sent if isinstance(message, Assign) for run in message.runs]
    told = [(*run.payloads, run.are_suspects) for run in runs]
    assert told == [(b"row", False), (b"row", True), (b"good", False)]


def test_suspects_wait_until_a_worker_is_idle() -> None:
    bench = Bench()
    bench.client("other")
    bench.worker("busy", credit=1)
    bench.tell("other", submit("long"))
    suspects_of(bench, 4)
    assert assigned(bench.tell("busy", grant(9))) == {}
    assert assigned(bench.tell("other", submit("more"))) == {}
    assert len(assigned(bench.tell("busy", result(0, credit=9)))["busy"]) == 2


def test_suspects_that_wait_for_a_busy_worker_go_to_one_that_becomes_idle_before() -> None:
    bench = Bench()
    bench.client("other")
    bench.worker("busy", credit=1)
    bench.tell("other", submit("long"))
    suspects_of(bench, 4)
    assert assigned(bench.tell("busy", grant(9))) == {}  # it is chosen, and runs its row to the end first
    bench.worker("idle", credit=8)
    idle = bench.peer("idle")
    assert isinstance(idle, Worker)
    assert idle.running == 2
    # The busy one is free for others again, and no second worker tries suspects.
    assert assigned(bench.tell("other", submit("more"))) == {"busy": ["more"]}
    bench.worker("third", credit=8)
    third = bench.peer("third")
    assert isinstance(third, Worker)
    assert third.running == 0


def test_a_suspect_is_not_taken_from_where_it_was_queued_before() -> None:
    bench = Bench()
    bench.client("other")
    bench.client()
    bench.worker("one")
    bench.worker("two", credit=2)
    bench.tell("other", submit("x", "y", "z"))
    bench.worker("first")
    bench.tell("client", submit("row"))
    bench.lose("first", silent=True)
    bench.tick(SETTINGS.worker_grace_s)
    bench.tell("client", submit("next"))
    bench.worker("first/2", credit=0, held=hold((3, "row", False)))
    assert bench.state_of("row") is RowState.RUNNING
    bench.end("first/2")
    assert bench.state_of("row") is RowState.SUSPECTED
    bench.tell("one", grant(2))  # it is to try the suspect, and ends first what it runs
    assert assigned(bench.tell("two", grant(3))) == {"two": ["next"]}


def test_a_cancelled_row_that_runs_on_is_in_the_company_of_those_who_are_suspected() -> None:
    bench = Bench(replace(SETTINGS, max_attempts=1))
    bench.client()
    bench.worker(credit=2, concurrency=2)
    bench.tell("client", submit("poison", "innocent"))
    bench.tell("client", Release(ids("poison")))
    bench.end("worker")
    assert bench.state_of("innocent") is RowState.SUSPECTED
    # Alone, it fails as a poison would.
    bench.worker("second", credit=2, concurrency=2)
    bench.end("second")
    assert bench.state_of("innocent") is RowState.ANSWERED


def test_cancelled_rows_of_a_batch_that_runs_on_are_in_the_company_of_its_other_rows() -> None:
    bench = Bench(replace(SETTINGS, max_attempts=1))
    bench.client()
    bench.worker(batch_size=8)
    bench.tell("client", submit("innocent", *numbered("cancelled", 7)))
    bench.tell("client", Release(ids(*numbered("cancelled", 7))))
    bench.end("worker")
    assert bench.state_of("innocent") is RowState.SUSPECTED
    # Alone in a call, it fails as a poison would.
    bench.worker("second", batch_size=8)
    bench.end("second")
    assert bench.state_of("innocent") is RowState.ANSWERED


def test_cancelled_rows_of_a_batch_are_nobodys_company_when_its_call_has_ended() -> None:
    bench = Bench(replace(SETTINGS, max_attempts=1))
    bench.client()
    bench.worker(credit=2, concurrency=2, batch_size=4)
    bench.tell("client", submit(*"abcd"))
    bench.tell("client", submit(*"efgh"))
    bench.tell("client", Release(ids(*"bcd")))
    worker = bench.peer("worker")
    assert isinstance(worker, Worker)
    assert worker.load == 8
    bench.tell("worker", result(0, credit=3))
    assert worker.load == 4
    bench.tell("worker", result(4, 5, 6, 7, credit=4))
    assert worker.load == 0


def test_a_suspect_is_tried_beside_a_cancelled_row_that_runs_on_only_where_no_worker_is_idle() -> None:
    bench = Bench()
    bench.client("other")
    bench.client()
    bench.worker("doomed")
    bench.tell("client", submit("suspect"))
    bench.worker("busy", credit=2, concurrency=2)
    bench.tell("other", submit("endless"))
    bench.tell("other", Release(ids("endless")))
    bench.worker("idle", credit=2, concurrency=2)
    bench.end("doomed")
    idle = bench.peer("idle")
    assert isinstance(idle, Worker)
    assert idle.running == 1


def test_a_worker_that_grants_less_than_it_has_places_for_tries_suspects() -> None:
    bench = Bench()
    suspects_of(bench, 1)
    assert bench.worker("unwell before", credit=1, concurrency=2)
    assert bench.state_of("s0") is RowState.RUNNING


def test_the_last_attempt_is_made_on_a_worker_that_has_outlived_the_last_death() -> None:
    """A bad host ends whatever it begins, and comes back idle each time."""
    bench = Bench()
    bench.client()
    bench.worker("sound")
    bench.tell("client", submit("long"))
    bench.tell("client", submit("row"))
    for life, state in (("bad1", RowState.QUEUED), ("bad2", RowState.SUSPECTED)):
        assert bench.state_of("row") is state
        bench.worker(life)
        assert bench.state_of("row") is RowState.RUNNING
        bench.end(life)
        bench.tick(1.0)
    bench.worker("bad3")
    assert bench.state_of("row") is RowState.SUSPECTED
    assert assigned(bench.tell("client", submit("next"))) == {"bad3": ["next"]}
    assert assigned(bench.tell("sound", result(0, credit=2))) == {"sound": ["row"]}


def test_the_last_attempt_waits_for_nobody_where_no_worker_has_outlived_the_last_death() -> None:
    bench = Bench()
    suspects_of(bench, 1)
    for life in ("second", "third"):
        bench.tick(1.0)
        assert bench.state_of("s0") is RowState.SUSPECTED
        bench.worker(life)
        assert bench.state_of("s0") is RowState.RUNNING
        bench.end(life)
    assert bench.state_of("s0") is RowState.ANSWERED


def last_attempt(bench: Bench, survivor: str, **said: Any) -> None:
    """Row ``row`` has one attempt left, and ``survivor``, which came before, has a row that does not end."""
    bench.client()
    bench.worker(survivor, credit=8, concurrency=8)
    bench.tell("client", submit("endless"))
    bench.tell(survivor, grant(1, **said))
    bench.tell("client", submit("row"))
    for life in ("bad1", "bad2"):
        bench.worker(life)
        assert bench.state_of("row") is RowState.RUNNING
        bench.end(life)
        bench.tick(1.0)
    assert bench.state_of("row") is RowState.SUSPECTED


def test_the_last_attempt_waits_a_minute_for_a_survivor_that_never_becomes_idle_and_goes_to_another_then() -> None:
    bench = Bench()
    last_attempt(bench, "hung")
    bench.tell("hung", grant(8))
    bench.worker("new")
    assert bench.state_of("row") is RowState.SUSPECTED
    assert assigned(bench.tick(SURVIVOR_WAIT_S - 0.1)) == {}
    assert assigned(bench.tick(0.1)) == {"new": ["row"]}


def test_the_last_attempts_behind_one_that_has_waited_in_vain_do_not_wait_again() -> None:
    bench = Bench()
    bench.client()
    bench.worker("hung", credit=1)
    bench.tell("client", submit("endless"))
    bench.worker("bad1", credit=2)
    bench.tell("client", submit("a", "b"))
    for row in bench.broker.ledger.rows.values():
        row.record = replace(row.record, charged=1)
    bench.now += 1.0
    bench.end("bad1")
    bench.worker("new")
    assert assigned(bench.tick(SURVIVOR_WAIT_S)) == {"new": ["b"]}
    assert assigned(bench.tell("new", result(3, credit=2))) == {"new": ["a"]}


def test_a_last_attempt_that_found_no_survivor_takes_nothing_of_the_time_for_which_the_next_waits_for_one() -> None:
    bench = Bench()
    bench.client()
    bench.worker("bad1", credit=2)
    bench.tell("client", submit("a", "b"))
    for row in bench.broker.ledger.rows.values():
        row.record = replace(row.record, charged=1)
    bench.end("bad1")
    bench.worker("bad2", credit=1)
    assert bench.state_of("b") is RowState.RUNNING
    bench.worker("busy", credit=1)
    bench.tell("client", submit("long"))
    bench.tick(2 * SURVIVOR_WAIT_S)
    bench.end("bad2")
    bench.worker("new")
    assert bench.state_of("a") is RowState.SUSPECTED
    assert assigned(bench.tick(SURVIVOR_WAIT_S)) == {"new": ["a"]}


@pytest.mark.parametrize("state", [WorkerState.DRAINING, WorkerState.UNWELL])
def test_the_last_attempt_waits_for_no_survivor_that_takes_no_more_rows(state: WorkerState) -> None:
    bench = Bench()
    last_attempt(bench, "leaving", state=state)
    bench.worker("new")
    assert bench.state_of("row") is RowState.RUNNING


def test_the_last_attempt_waits_for_no_survivor_that_was_told_to_drain_and_has_not_heard_it() -> None:
    bench = Bench()
    last_attempt(bench, "leaving")
    bench.tell("client", Dismiss(Role.WORKER, "leaving"))
    bench.tell("leaving", grant(1))
    bench.worker("new")
    assert bench.state_of("row") is RowState.RUNNING


def test_a_worker_is_kept_free_for_suspects_by_turns_that_grow_and_others_use_its_places_between() -> None:
    """One row that never ends there keeps neither its LLM's other rows nor the suspects waiting for ever."""
    bench = Bench()
    bench.client("other")
    bench.worker("hung", credit=1, concurrency=8)
    bench.tell("other", submit("endless"))
    suspects_of(bench, 4)
    bench.tell("hung", grant(8))
    spared: list[float] = []
    start = bench.now
    for number, waited_s in enumerate((0, 59, 60, 179, 180, 419, 420)):
        bench.tick(start + waited_s - bench.now)
        if not assigned(bench.tell("other", submit(f"more{number}"))):
            spared.append(waited_s)
        bench.tell("other", Release(ids(f"more{number}")))
    assert spared == [0, 59, 180, 419]
    bench.worker("idle", credit=8)
    idle = bench.peer("idle")
    assert isinstance(idle, Worker)
    assert idle.running == 2


def test_a_worker_is_given_other_rows_when_the_suspects_that_it_was_kept_free_for_are_cancelled() -> None:
    bench = Bench()
    bench.client("other")
    bench.worker("busy", credit=1, concurrency=8)
    bench.tell("other", submit("long"))
    suspects_of(bench, 4)
    bench.tell("busy", grant(8))
    assert assigned(bench.tell("other", submit("more"))) == {}
    assert assigned(bench.tell("client", Release(ids(*numbered("s", 4))))) == {"busy": ["more"]}


def test_suspects_do_not_wait_for_a_worker_that_was_to_try_them_and_drains() -> None:
    bench = Bench()
    bench.client("other")
    bench.worker("leaving", credit=1)
    bench.worker("busy", credit=1)
    bench.tell("other", submit("long", "longer"))
    suspects_of(bench, 4)
    bench.tell("leaving", grant(8))
    bench.tell("leaving", grant(1, WorkerState.DRAINING))
    assert len(assigned(bench.tell("busy", result(1, credit=8)))["busy"]) == 2


def test_a_poison_is_found_within_three_deaths_and_its_neighbours_are_answered() -> None:
    bench = Bench()
    bench.client()
    names = numbered("row", 100)
    poison = "row42"
    workers = count()
    deaths = 0
    answered: list[str] = []
    failed: list[Answer] = []

    def note(sent: list[Sent]) -> None:
        for _, message in sent:
            if isinstance(message, Answer) and Outcome.FAILED in message.outcomes:
                failed.append(message)

    current = bench.worker(f"worker{next(workers)}", credit=100, concurrency=100)
    note(bench.tell("client", submit(*names)))
    while len(answered) + len(failed) < 100:
        worker = bench.peer(current)
        assert isinstance(worker, Worker)
        running = {n - FIRST: e.row.payload for n, e in worker.executions.items() if not e.finished}
        assert running
        if poison.encode() in running.values():
            deaths += 1
            note(bench.end(current))
            current = bench.worker(f"worker{next(workers)}", credit=100, concurrency=100)
        else:
            note(bench.tell(current, result(*running, credit=worker.used + 100)))
            answered += [bytes(payload).decode() for payload in running.values() if payload]
    assert deaths == 3
    assert sorted([*answered, poison]) == sorted(names)
    (told,) = failed
    assert (told.ids, told.attempts) == (ids(poison), [3])
    failure = unpack_failure(told.payloads[0])
    assert failure.type == "WorkerLost"
    assert failure.message == ("the row ended 3 worker processes of 'llm', the last one (worker2:8) while it ran alone")


def test_a_row_that_must_be_alone_is_not_tried_in_a_larger_group() -> None:
    """Two workers have ended, with 3 rows and with 1: what may run in twos does not take the lonely one along."""
    bench = Bench()
    bench.client()
    bench.worker("one", credit=3)
    bench.tell("client", submit("a", "b", "c"))
    bench.worker("two", credit=1)
    bench.tell("client", submit("lonely"))
    bench.lose("one", "two")
    bench.tick(0.5)
    sizes = {row.payload: row.record.suspect_group for row in bench.broker.ledger.rows.values()}
    assert sizes == {b"a": 2, b"b": 2, b"c": 2, b"lonely": 1}
    bench.worker("three", credit=8)
    worker = bench.peer("three")
    assert isinstance(worker, Worker)
    groups: list[set[Payload | None]] = []
    while running := {n - FIRST: e.row.payload for n, e in worker.executions.items() if not e.finished}:
        groups.append(set(running.values()))
        bench.tell("three", result(*running, credit=worker.used + 8))
    assert sorted(map(len, groups)) == [1, 1, 2]
    assert {b"lonely"} in groups


def test_suspects_go_in_no_more_calls_than_a_batch_worker_has_free() -> None:
    """Rows of four kinds need a call each."""
    bench = Bench()
    bench.client()
    bench.worker("one", credit=4)
    bench.tell("client", *(submit(name, options=name.encode()) for name in "abcd"))
    bench.end("one")
    for row in bench.broker.ledger.rows.values():
        row.record = replace(row.record, suspect_group=4)
    bench.tell("two", worker_hello("two", batch_size=4, concurrency=2, credit=2))
    sent = bench.tell("two", hold())
    assert [len(run.ids) for _, m in sent if isinstance(m, Assign) for run in m.runs] == [1, 1]
    worker = bench.peer("two")
    assert isinstance(worker, Worker)
    assert (worker.used, worker.hello.credit) == (2, 2)
    assert len(bench.broker.llms["llm"].suspects) == 2


def test_a_worker_taken_for_ended_that_comes_back_is_given_its_rows_and_nobody_is_blamed() -> None:
    bench = Bench()
    bench.client()
    bench.worker("one", credit=4)
    bench.tell("client", submit(*"abcd"))
    bench.end("one")
    bench.worker("two", credit=2)
    tried = bench.peer("two")
    assert isinstance(tried, Worker)
    assert tried.running == 2
    bench.tell("one/2", worker_hello("one", credit=0))
    assert all(row.record.charged == 0 for row in bench.broker.ledger.rows.values())
    sent = bench.tell("one/2", hold(*((number, name, False) for number, name in enumerate("abcd"))))
    assert assigned(sent) == {}
    assert not bench.broker.llms["llm"].suspects
    told, (name, stopped) = bench.tell("one/2", result(0, 1, 2, 3, credit=4))
    assert told == ("client", answer(list("abcd"), 0, 1, 2, 3))
    assert name == "two"
    assert isinstance(stopped, Settle)
    assert sorted(stopped.executions) == [FIRST + 4, FIRST + 5]


def test_a_refund_is_for_the_rows_of_that_worker_alone_and_for_a_minute() -> None:
    bench = Bench()
    bench.client()
    bench.worker("one", credit=2)
    bench.tell("client", submit("a", "b"))
    bench.end("one")
    bench.tell("other", worker_hello("other", credit=0))
    assert [row.record.charged for row in bench.broker.ledger.rows.values()] == [1, 1]
    bench.tick(61.0)
    bench.tell("one/2", worker_hello("one", credit=0))
    assert [row.record.charged for row in bench.broker.ledger.rows.values()] == [1, 1]


# Stragglers.


def hedging(*others: str, usual_s: float = 1.0, settings: BrokerSettings = SETTINGS) -> Bench:
    """Worker ``one`` has done executions 0 to 7 of hedged rows, each in ``usual_s``; then came the ``others``."""
    bench = Bench(settings)
    bench.client()
    bench.worker("one")
    for number in range(8):
        do_usual(bench, number, usual_s)
    for name in others:
        bench.worker(name)
    return bench


def do_usual(bench: Bench, number: int, usual_s: float = 1.0) -> None:
    """Worker ``one`` does a row as execution ``number``."""
    bench.tell("client", submit(f"usual{number}", hedge=3.0))
    bench.now += usual_s
    bench.tell("one", result(number, credit=number + 2))
    bench.tell("client", Release(ids(f"usual{number}")))


def hedges(bench: Bench) -> tuple[int, int]:
    """How many rows were hedged, and how many hedges won."""
    (llm,) = bench.broker.report(bench.now)["llms"]
    return llm["hedged"], llm["hedges_won"]


def test_a_row_that_straggles_is_given_to_an_idle_worker_and_the_first_answer_wins() -> None:
    bench = hedging("two")
    assert assigned(bench.tell("client", submit("slow", hedge=3.0))) == {"one": ["slow"]}
    assert assigned(bench.tick(2.9)) == {}
    assert bench.tick(0.2) == [("two", assign(9, "slow"))]
    assert hedges(bench) == (1, 0)
    assert bench.tell("two", result(9, credit=2)) == [("client", answer(["slow"], 9)), ("one", settle(8))]
    assert hedges(bench) == (1, 1)
    assert bench.tell("one", result(8, credit=10)) == []  # it was under way
    assert bench.tell("client", Release(ids("slow"))) == []
    assert bench.settled() == [("two", settle(9))]
    assert not bench.broker.ledger.executions


def test_a_straggler_that_answers_first_ends_its_hedge() -> None:
    bench = hedging("two")
    bench.tell("client", submit("slow", hedge=3.0))
    bench.tick(3.1)
    assert bench.tell("one", result(8, credit=10)) == [("client", answer(["slow"], 8)), ("two", settle(9))]
    assert hedges(bench) == (1, 0)


def test_a_row_that_is_withdrawn_is_stopped_at_both_workers() -> None:
    bench = hedging("two")
    bench.tell("client", submit("slow", hedge=3.0))
    bench.tick(3.1)
    assert bench.tell("client", Release(ids("slow"))) == [("one", settle(8)), ("two", settle(9))]


def test_pings_count_a_hedge_at_its_worker() -> None:
    bench = hedging("two")
    bench.tell("client", submit("slow", hedge=3.0))
    sent = bench.tick_all(3.1)
    assert sent.index(("two", assign(9, "slow"))) < sent.index(("two", Ping(1)))
    assert ("one", Ping(1)) in sent


@pytest.mark.parametrize(
    "said",
    [{}, {"hedge": 4.0}, {"hedge": 3.0, "num_generations": 2}, {"hedge": 3.0, "options": b"long"}],
    ids=["not asked for", "another factor", "more generations", "other options"],
)
def test_rows_that_are_not_like_those_whose_usual_time_is_known_are_not_hedged(said: dict[str, Any]) -> None:
    bench = hedging("two")
    bench.tell("client", submit("slow", **said))
    assert assigned(bench.tick(60.0)) == {}


def test_nothing_is_hedged_before_the_usual_time_is_known() -> None:
    bench = Bench()
    bench.client()
    bench.worker("one")
    for number in range(7):
        do_usual(bench, number)
    bench.worker("two")
    bench.tell("client", submit("slow", hedge=3.0))
    assert assigned(bench.tick(60.0)) == {}


def test_nothing_is_hedged_while_other_rows_wait() -> None:
    bench = hedging("two")
    bench.tell("two", grant(0))
    bench.tell("client", submit("slow", "waits", hedge=3.0))
    bench.tick(10.0)
    assert assigned(bench.tell("two", grant(1))) == {"two": ["waits"]}
    assert assigned(bench.tick(1.0)) == {}


@pytest.mark.parametrize("silent", [True, False], ids=["queued", "suspected"])
def test_a_row_that_waits_again_since_the_same_tick_comes_before_a_straggler(silent: bool) -> None:
    bench = hedging("gone")
    bench.tell("client", submit("slow", hedge=3.0), submit("waits"))
    bench.now += 10.0
    bench.lose("gone", silent=silent)
    bench.worker("two")
    assert assigned(bench.tick(SETTINGS.worker_grace_s)) == {"two": ["waits"]}


def test_a_worker_is_given_no_more_stragglers_than_its_credit_carries() -> None:
    bench = hedging()
    for number in range(8, 30):
        do_usual(bench, number)
    bench.worker("other")
    bench.tell("client", submit("a", "b", hedge=3.0))
    bench.worker("two")
    assert assigned(bench.tick(10.0)) == {"two": ["a"]}


def test_a_worker_is_not_given_a_row_that_it_runs() -> None:
    bench = hedging()
    bench.tell("one", worker_hello("one", concurrency=2, credit=10))
    bench.tell("client", submit("slow", hedge=3.0))
    assert assigned(bench.tick(10.0)) == {}


def test_an_idle_worker_is_given_a_straggler_before_one_that_is_at_work() -> None:
    bench = hedging()
    bench.tell("client", submit("slow", hedge=3.0))
    bench.worker("busy", credit=2, concurrency=2)
    bench.tell("client", submit("other", hedge=3.0))
    bench.worker("idle", credit=2, concurrency=2)
    assert assigned(bench.tick(3.1)) == {"idle": ["slow"]}


def test_a_worker_that_was_outrun_is_given_stragglers_after_the_others() -> None:
    bench = hedging()
    for number in range(8, 20):
        do_usual(bench, number)
    bench.worker("two")
    bench.tell("client", submit("slow", hedge=3.0))
    assert assigned(bench.tick(3.1)) == {"two": ["slow"]}
    bench.tell("two", result(21, credit=2))
    bench.tell("one", grant(22))
    (llm,) = bench.broker.report(bench.now)["llms"]
    assert [worker["outrun"] for worker in llm["workers"]] == [1, 0]
    bench.lose("one")
    bench.worker("one/2")
    bench.worker("three")
    assert assigned(bench.tell("client", submit("slower", hedge=3.0))) == {"two": ["slower"]}
    assert assigned(bench.tick(3.1)) == {"three": ["slower"]}


def test_each_finished_row_allows_a_twentieth_of_a_hedge() -> None:
    bench = hedging("two", "three", "four")  # 1 from the start, and 8 twentieths
    bench.tell("client", submit("a", "b", hedge=3.0))
    bench.tick(3.1)
    assert hedges(bench) == (1, 0)
    bench.tick(60.0)
    assert hedges(bench) == (1, 0)
    for number in range(11, 23):
        bench.tell("client", submit(f"more{number}", hedge=3.0))
        assert hedges(bench) == (1, 0)
        bench.tell("four", result(number, credit=number - 9))
        bench.tick()
    assert hedges(bench) == (2, 0)


def test_a_row_runs_twice_at_most_and_is_hedged_anew_when_its_hedge_came_to_nothing() -> None:
    bench = hedging()
    for number in range(8, 20):
        do_usual(bench, number)
    bench.worker("two")
    bench.worker("three")
    bench.tell("client", submit("slow", hedge=3.0))
    assert assigned(bench.tick(3.1)) == {"two": ["slow"]}
    assert assigned(bench.tick(60.0)) == {}
    assert bench.tell("two", result(21, credit=1, outcome=Outcome.RETURNED)) == []
    sent = bench.tick()
    assert sent[0] == ("two", settle(21))
    assert assigned(sent) == {"three": ["slow"]}
    assert hedges(bench) == (2, 0)


def test_a_row_whose_deadline_has_passed_is_not_hedged() -> None:
    bench = hedging("two")
    bench.tell("client", submit("slow", hedge=3.0, seconds_left=3.0))
    assert assigned(bench.tick(3.1)) == {}


def test_a_row_whose_client_does_not_read_is_not_hedged() -> None:
    bench = hedging("two", settings=replace(SETTINGS, max_unread_bytes=10))
    bench.tell("client", submit("slow", hedge=3.0))
    bench.tell("client", submit("a", "b"))
    bench.tell("two", result(9, credit=2))
    bench.tell("two", result(10, credit=3))
    assert isinstance(client := bench.peer("client"), Client)
    assert client.is_stalled
    assert assigned(bench.tick(10.0)) == {}
    bench.tell("client", Release(ids("a")))
    assert assigned(bench.tick()) == {"two": ["slow"]}


def test_a_charged_row_is_not_hedged() -> None:
    bench = hedging("two")
    bench.tell("client", submit("slow", hedge=3.0))
    sent = bench.tell("one", result(8, credit=10, outcome=Outcome.RAISED))
    assert assigned(sent) == {"two": ["slow"]}
    assert assigned(bench.tick(60.0)) == {}


def test_nothing_is_hedged_before_the_workers_had_time_to_say_what_they_hold() -> None:
    bench = Bench(age=0.0)
    bench.client()
    bench.worker("one")
    for number in range(8):
        do_usual(bench, number, 0.1)
    bench.worker("two")
    bench.tell("client", submit("slow", hedge=3.0))
    assert assigned(bench.tick(1.0)) == {}
    assert assigned(bench.tick(0.3)) == {"two": ["slow"]}


def test_nothing_is_hedged_right_after_the_broker_stood_still() -> None:
    bench = hedging("two")
    bench.tell("client", submit("slow", hedge=3.0))
    bench.now += 60.0
    bench.broker.stood_still(60.0, bench.now)
    assert assigned(bench.tick()) == {}
    assert assigned(bench.tick(SETTINGS.settle_s - 0.1)) == {}
    assert assigned(bench.tick(0.1)) == {"two": ["slow"]}


def test_a_row_that_a_worker_holds_from_before_a_restart_is_not_taken_for_one_that_has_just_begun() -> None:
    bench = Bench(age=0.0)
    bench.client()
    bench.tell("client", submit(*numbered("a", 9), hedge=1.0, again=True))
    early = (5 << 38) - FIRST
    bench.worker("one", credit=0, concurrency=9, held=hold(*((early + n, f"a{n}", False) for n in range(9))))
    bench.worker("two")
    bench.now += 0.1
    bench.tell("one", result(*(early + n for n in range(8)), credit=0))
    assert assigned(bench.tick(60.0)) == {}


def test_an_error_is_final_only_when_no_other_execution_is_left() -> None:
    bench = hedging("two")
    bench.tell("client", submit("slow", hedge=3.0))
    bench.tick(3.1)
    assert bench.tell("two", result(9, credit=2, outcome=Outcome.FAILED)) == []
    assert bench.settled() == [("two", settle(9))]
    assert bench.tell("one", result(8, credit=10)) == [("client", answer(["slow"], 8))]


def test_an_error_of_both_executions_is_final() -> None:
    bench = hedging("two")
    bench.tell("client", submit("slow", hedge=3.0))
    bench.tick(3.1)
    bench.tell("one", result(8, credit=10, outcome=Outcome.FAILED))
    sent = bench.tell("two", result(9, credit=2, outcome=Outcome.FAILED))
    assert sent == [("client", answer(["slow"], 9, outcome=Outcome.FAILED, attempts=1))]


def test_an_engine_that_raises_on_a_hedged_row_is_charged_and_the_other_goes_on() -> None:
    bench = hedging("two")
    bench.tell("client", submit("slow", hedge=3.0))
    bench.tick(3.1)
    assert bench.tell("one", result(8, credit=10, outcome=Outcome.RAISED)) == []
    assert bench.settled() == [("one", settle(8))]
    assert assigned(bench.tick(60.0)) == {}
    assert bench.tell("two", result(9, credit=2)) == [("client", answer(["slow"], 9, attempts=1))]


def test_a_poison_that_was_hedged_is_found_within_three_deaths() -> None:
    bench = hedging("two")
    bench.tell("client", submit("poison", hedge=3.0))
    bench.tick(3.1)
    assert answers(bench.end("one")) == []
    assert bench.state_of("poison") is RowState.RUNNING
    assert answers(bench.end("two")) == []
    bench.worker("three")
    assert [message.outcomes for message in answers(bench.end("three"))] == [[Outcome.FAILED]]
    assert bench.broker.ledger.executions == {}


def test_a_worker_that_ends_does_not_fail_a_row_that_runs_elsewhere_too() -> None:
    bench = hedging("two", settings=replace(SETTINGS, max_attempts=1))
    bench.tell("client", submit("slow", hedge=3.0))
    bench.tick(3.1)
    assert answers(bench.end("one")) == []
    assert bench.tell("two", result(9, credit=2)) == [("client", answer(["slow"], 9, attempts=1))]


def test_a_hedged_row_is_not_charged_for_a_worker_that_was_taken_for_ended() -> None:
    bench = hedging("two")
    bench.tell("client", submit("slow", hedge=3.0))
    bench.tick(3.1)
    bench.end("one")
    bench.tell("one/2", worker_hello("one"), hold((8, "slow", False)))
    assert bench.tell("two", result(9, credit=2)) == [
        ("client", answer(["slow"], 9)),
        ("one/2", settle(8)),
    ]


def test_a_worker_that_falls_silent_leaves_a_hedged_row_to_the_other() -> None:
    bench = hedging("two")
    bench.tell("client", submit("slow", hedge=3.0))
    bench.tick(3.1)
    bench.lose("one", silent=True)
    bench.tick(SETTINGS.worker_grace_s)
    assert bench.tell("two", result(9, credit=2)) == [("client", answer(["slow"], 9))]


def test_nothing_is_hedged_while_suspects_wait_nor_on_the_worker_that_tries_them() -> None:
    bench = hedging("doomed")
    bench.tell("client", submit("slow", hedge=3.0))
    bench.tell("doomed", worker_hello("doomed", credit=2, concurrency=2))
    bench.tell("client", submit("s", "t"))
    bench.end("doomed")
    assert len(bench.broker.llms["llm"].suspects) == 2
    bench.worker("judge", credit=4, concurrency=4)
    assert len(bench.broker.llms["llm"].suspects) == 0
    assert assigned(bench.tick(10.0)) == {}
    bench.worker("other")
    assert assigned(bench.tick()) == {"other": ["slow"]}


def test_a_worker_that_has_tried_suspects_is_given_stragglers_again() -> None:
    bench = hedging("doomed")
    bench.tell("client", submit("slow", hedge=3.0))
    bench.tell("client", submit("s"))
    bench.end("doomed")
    bench.worker("judge")
    bench.tell("judge", result(10, credit=2))
    assert assigned(bench.tick(10.0)) == {"judge": ["slow"]}


# A broker's restart.


def test_rows_submitted_again_wait_until_the_workers_have_spoken() -> None:
    bench = Bench(age=0.0)
    bench.client()
    bench.worker(credit=4)
    assert bench.tell("client", submit("a", "b", again=True), submit("new")) == [("worker", assign(0, "new"))]
    assert bench.tick(1.9) == [("client", bench.broker._fleet())]
    assert bench.tick(0.2) == [("worker", assign(1, "a", "b"))]


def test_a_row_submitted_again_that_a_worker_holds_is_not_handed_out() -> None:
    bench = Bench(age=0.0)
    bench.client()
    bench.tell("client", submit("a", "b", again=True))
    earlier = 5 << 38
    bench.tell("worker", worker_hello("worker", credit=3))
    held = Hold([earlier, earlier + 1], ids("a", "b"), [False, True], False)
    assert bench.tell("worker", held) == [("worker", Resend([earlier + 1]))]
    assert assigned(bench.tick(3.0)) == {}
    sent = bench.tell("worker", Result([earlier, earlier + 1], [0, 0], 0, 3, [b"one", b"two"]))
    assert sent == [("client", Answer(ids("a", "b"), [0, 0], [0, 0], [b"one", b"two"]))]


def test_a_suspect_that_was_submitted_again_waits_until_the_workers_have_spoken_too() -> None:
    bench = Bench(age=0.0)
    bench.client()
    bench.tell("client", submit("a", again=True))
    bench.worker(credit=0, held=Hold([5 << 38], ids("a"), [False], False))
    bench.worker("two", credit=1)
    assert assigned(bench.end("worker")) == {}
    assert assigned(bench.tick(SETTINGS.settle_s)) == {"two": ["a"]}
    (execution,) = bench.broker.ledger.executions.values()
    assert execution.row.record.suspect_group


def stand_still(bench: Bench, seconds: float) -> None:
    bench.now += seconds
    bench.broker.stood_still(seconds, bench.now)


def test_a_broker_that_stands_still_before_it_has_settled_hears_the_workers_then() -> None:
    bench = Bench(age=0.0)
    bench.client()
    bench.worker("two", credit=1)
    bench.tell("client", submit("a", again=True))
    bench.tick(1.9)
    stand_still(bench, 30.0)
    assert assigned(bench.tick()) == {}
    assert bench.tell("client", submit("b", again=True)) == []
    assert assigned(bench.tick(SETTINGS.settle_s - 0.1)) == {}
    assert bench.broker.is_settling
    bench.worker(credit=0, held=Hold([5 << 38], ids("a"), [True], False))
    assert assigned(bench.tick(0.1)) == {"two": ["b"]}
    assert not bench.broker.is_settling


def test_a_broker_that_stands_still_later_hands_out_rows_that_are_submitted_again_at_once() -> None:
    bench = Bench()
    bench.client()
    bench.worker()
    stand_still(bench, 30.0)
    assert assigned(bench.tell("client", submit("a", again=True))) == {"worker": ["a"]}


def test_answers_of_an_earlier_life_are_kept_for_longer_by_as_much_as_the_broker_stands_still() -> None:
    bench = Bench(age=0.0)
    bench.worker("one", credit=0, held=Hold([5 << 38], ids("a"), [True], False))
    bench.tick(9.0)
    stand_still(bench, 30.0)
    bench.tick()
    bench.worker("two", credit=0, held=Hold([6 << 38], ids("b"), [True], False))
    assert sorted(bench.broker.ledger.rows) == ids("a", "b")
    bench.tick(1.0)
    assert sorted(bench.broker.ledger.rows) == ids("b")
    bench.worker("three", credit=0, held=Hold([7 << 38], ids("c"), [True], False))
    assert sorted(bench.broker.ledger.rows) == ids("b")


def test_a_last_attempt_waits_for_longer_by_as_much_as_the_broker_stands_still() -> None:
    bench = Bench()
    last_attempt(bench, "busy")
    bench.worker("new")
    stand_still(bench, 90.0)
    assert assigned(bench.tick(SURVIVOR_WAIT_S - 0.1)) == {}
    assert assigned(bench.tick(0.1)) == {"new": ["row"]}


def test_a_worker_taken_for_ended_may_come_back_for_longer_by_as_much_as_the_broker_stands_still() -> None:
    bench = Bench()
    bench.client()
    bench.worker("one")
    bench.tell("client", submit("a"))
    bench.end("one")
    stand_still(bench, 90.0)
    bench.tick()
    bench.worker("one/2", credit=0, held=hold((0, "a", False)))
    assert [row.record.charged for row in bench.broker.ledger.rows.values()] == [0]


@pytest.mark.parametrize("by", ["await", "submit"])
def test_answers_of_an_earlier_life_are_kept_for_the_client_that_has_yet_to_come(by: str) -> None:
    bench = Bench(age=0.0)
    earlier = 5 << 38
    bench.tell("worker", worker_hello("worker", credit=3))
    assert bench.tell("worker", Hold([earlier, earlier + 1], ids("a", "b"), [True, False], False)) == []
    bench.client()
    message = Await(ids("a", "b"), False) if by == "await" else submit("a", "b", again=True)
    assert bench.tell("client", message) == [("worker", Resend([earlier]))]
    sent = bench.tell("worker", Result([earlier, earlier + 1], [0, 0], 0, 3, [b"one", b"two"]))
    assert sent == [("client", Answer(ids("a", "b"), [0, 0], [0, 0], [b"one", b"two"]))]
    assert bench.tell("client", Release(ids("a", "b"))) == []
    assert bench.settled() == [("worker", Settle([earlier, earlier + 1]))]


def test_answers_of_an_earlier_life_that_nobody_asks_for_are_settled_after_the_grace() -> None:
    bench = Bench(age=0.0)
    earlier = 5 << 38
    bench.worker(credit=0, held=Hold([earlier], ids("a"), [True], False))
    bench.tick(9.9)
    assert len(bench.broker.ledger.rows) == 1
    assert bench.tick(0.2) == [("worker", Settle([earlier]))]
    assert not bench.broker.ledger.rows


def test_answers_of_an_earlier_life_are_settled_at_once_when_every_client_has_had_its_time() -> None:
    bench = Bench()
    earlier = 5 << 38
    bench.tell("worker", worker_hello("worker", credit=0))
    assert bench.tell("worker", Hold([earlier], ids("a"), [True], False)) == [("worker", Settle([earlier]))]


def test_an_execution_of_this_life_that_was_settled_is_settled_again() -> None:
    bench = Bench(age=0.0)
    bench.tell("worker", worker_hello("worker", credit=0))
    assert bench.tell("worker", hold((9, "a", True))) == [("worker", settle(9))]


def test_an_execution_that_was_not_handed_out_yet_can_be_claimed_by_nobody() -> None:
    bench = Bench()
    bench.client()
    bench.tell("client", submit("a", "b"))
    bench.tell("liar", worker_hello("liar", credit=0))
    assert bench.tell("liar", hold((0, "a", False))) == [("liar", settle(0))]
    bench.tell("worker", worker_hello("worker", credit=2))
    assert bench.tell("worker", hold()) == [("worker", assign(0, "a", "b"))]


def test_a_row_known_from_its_worker_alone_is_asked_for_when_that_worker_is_lost() -> None:
    bench = Bench(age=0.0)
    earlier = 5 << 38
    bench.worker(credit=0, held=Hold([earlier], ids("a"), [False], False))
    bench.client()
    assert bench.tell("client", Await(ids("a"), False)) == []
    bench.lose("worker")
    assert [sent for sent in bench.tick(0.5) if not isinstance(sent[1], Fleet)] == [("client", Missing(ids("a")))]
    bench.worker("two", credit=1)
    assert bench.tell("client", Ping(1)) == []
    assert assigned(bench.tell("client", submit("a", again=True))) == {}  # it settles first
    assert assigned(bench.tick(2.0)) == {"two": ["a"]}


def ended_by_a_row_that_is_asked_for(more_rows: int = 0) -> Bench:
    """A worker holds row ``a`` from before the restart, and has ended with it: the client is asked for the row."""
    bench = Bench(age=0.0)
    names = ["a", *numbered("more", more_rows)]
    bench.worker(
        credit=0, held=Hold([(5 << 38) + n for n in range(len(names))], ids(*names), [False] * len(names), False)
    )
    bench.client()
    bench.tell("client", Await(ids(*names), False))
    bench.end("worker")
    assert bench.state_of("a") is RowState.MISSING
    return bench


def test_a_row_that_is_asked_for_keeps_what_it_is_charged_and_is_tried_apart() -> None:
    bench = ended_by_a_row_that_is_asked_for()
    bench.tell("client", Await(ids("a"), False))
    bench.tell("client", submit("a", again=True, num_generations=4))
    bench.worker("two", credit=2)
    bench.tick(SETTINGS.settle_s)
    assert bench.broker.ledger.rows[ids("a")[0]].record.charged == 1
    assert bench.broker.llms["llm"].quarantine is bench.peer("two")
    assert bench.tell("client", submit("other")) == []
    bench.end("two")
    assert bench.broker.ledger.rows[ids("a")[0]].record.charged == 2
    bench.worker("three")
    (sent,) = answers(bench.end("three"))
    assert (sent.ids, sent.attempts) == (ids("a"), [3])


def test_a_row_that_is_asked_for_when_its_broker_has_settled_is_a_suspect_at_once() -> None:
    bench = ended_by_a_row_that_is_asked_for(more_rows=8)
    bench.tick(SETTINGS.settle_s)
    bench.worker("two", credit=9)
    sent = bench.tell("client", submit("a", *numbered("more", 8), again=True))
    assert len(assigned(sent)["two"]) == 3
    assert len(bench.broker.llms["llm"].suspects) == 6


def test_a_client_that_comes_back_does_not_clear_a_row_that_it_was_asked_for() -> None:
    bench = ended_by_a_row_that_is_asked_for()
    bench.client("client/2")
    assert bench.tell("client/2", Await(ids("a"), False)) == [("client/2", Missing(ids("a")))]
    assert bench.broker.ledger.rows[ids("a")[0]].record.charged == 1


def test_a_row_that_was_asked_for_takes_no_more_room_when_it_is_asked_for_again() -> None:
    bench = limited(max_rows=2)
    bench.client("two")
    assert bench.tell("two", Await(ids("a", "b"), False)) == [("two", Missing(ids("a", "b")))]
    bench.client("two/2")
    assert bench.tell("two/2", Await(ids("a", "b", "c"), False)) == [
        ("two/2", Busy(ids("c"), 0.5)),
        ("two/2", Missing(ids("a", "b"))),
    ]


def test_a_worker_taken_for_ended_that_comes_back_clears_a_row_that_was_asked_for_and_submitted_again() -> None:
    bench = ended_by_a_row_that_is_asked_for()
    bench.tick(SETTINGS.settle_s)
    bench.tell("client", submit("a", again=True))
    assert bench.state_of("a") is RowState.SUSPECTED
    bench.tell("worker/2", worker_hello("worker", credit=0))
    assert bench.broker.ledger.rows[ids("a")[0]].record.charged == 0
    assert bench.state_of("a") is RowState.QUEUED


def test_the_payload_of_a_row_known_from_its_worker_is_kept_for_a_second_try() -> None:
    bench = Bench(age=0.0)
    earlier = 5 << 38
    bench.worker(credit=0, held=Hold([earlier], ids("a"), [False], False))
    bench.client()
    bench.tell("client", submit("a", again=True, num_generations=4))
    bench.worker("two", credit=1)
    sent = bench.tell("worker", Result([earlier], [Outcome.RETURNED], 0, 0, [b""]))
    assert sent == [("two", assign(0, "a", num_generations=4))]
    assert bench.settled() == [("worker", Settle([earlier]))]


# What is told, and when.


def test_clients_are_told_of_the_fleet_once_a_tick_however_much_has_changed() -> None:
    bench = Bench()
    bench.client("one")
    bench.client("two")
    bench.worker("a", llm="x", credit=0, state=WorkerState.LOADING)
    bench.worker("b", llm="y", credit=2)
    bench.tell("a", grant(1), grant(1, WorkerState.UNWELL, "no server"), grant(1, WorkerState.UNWELL, "no quota"))
    fleet = bench.broker._fleet()
    assert [(info.name, info.ready, info.unwell, info.reason) for info in fleet.llms] == [
        ("x", 0, 1, "no quota"),
        ("y", 1, 0, ""),
    ]
    sent = bench.tick()
    assert sent == [("one", fleet), ("two", fleet)]
    assert sent[0][1] is sent[1][1], "it is made once for all"
    assert bench.tick(0.1) == []
    bench.tell("b", grant(3))
    assert bench.tick(0.1) == []  # credit is no news


def test_an_llm_that_somebody_only_asked_for_is_not_part_of_the_fleet() -> None:
    bench = Bench()
    bench.client()
    bench.tell("client", submit("a", llm="nobody's"))
    assert bench.broker._fleet() == Fleet([])


def test_the_name_of_an_llm_is_remembered_for_a_while_after_its_last_worker() -> None:
    bench = Bench()
    bench.client()
    bench.worker()
    bench.end("worker")
    (info,) = bench.broker._fleet().llms
    assert (info.name, info.ready, info.model_names) == ("llm", 0, ["model"])
    bench.tick(3598.0)
    assert len(bench.broker._fleet().llms) == 1
    assert bench.tick(2.0) == [("client", Fleet([]))]


def test_a_ping_goes_to_everybody_at_each_interval_with_the_count_of_the_workers_ledger() -> None:
    bench = Bench()
    bench.client()
    bench.worker("one", credit=2)
    bench.tell("two", worker_hello("two"))
    bench.tell("client", submit("a", "b"))
    bench.tick_all(1.0)
    pings = [(name, m) for name, m in bench.tick_all(1.0) if isinstance(m, Ping)]
    assert pings == [("client", Ping(None)), ("one", Ping(2)), ("two", Ping(None))]
    assert bench.tick_all(0.9) == []


def test_a_ping_counts_after_all_that_was_said_before_it() -> None:
    """Otherwise a worker whose rows were dropped in that tick would think that something was lost."""
    bench = Bench()
    bench.client()
    bench.worker(credit=2)
    bench.tell("client", submit("a", "b"))
    bench.lose("client")
    bench.tick_all(9.5)
    sent = [(name, m) for name, m in bench.tick_all(1.0) if name == "worker"]
    assert sent == [("worker", settle(0, 1)), ("worker", Ping(0))]


# Peers that do not read.


def test_what_a_full_peer_did_not_take_is_tried_again_in_order_at_each_tick() -> None:
    bench = Bench()
    bench.client()
    bench.worker(credit=3)
    bench.tell("client", submit(*"abc"))
    bench.full.add("client")
    assert bench.tell("worker", result(0, credit=3)) == []
    assert bench.tell("worker", result(1, credit=3)) == []
    assert bench.tick(0.1) == []
    bench.full.clear()
    # Behind what waits, though the peer would take it now.
    assert bench.tell("worker", result(2, credit=3)) == []
    fleet = ("client", bench.broker._fleet())
    waiting = [("client", answer([name], number)) for number, name in enumerate("abc")]
    assert bench.tick(0.1) == [waiting[0], waiting[1], fleet, waiting[2]]
    assert bench.tick(0.1) == []


def test_of_much_that_a_peer_does_not_read_little_is_tried_at_a_tick_and_when_it_reads_on_all_comes_soon() -> None:
    bench = Bench()
    bench.client()
    bench.full.add("client")
    waiting = [Busy(ids(str(number)), 1.0) for number in range(10_000)]
    for message in waiting:
        bench.peer("client").outbox.put_off(message)
    for _ in range(3):
        bench.failed = 0
        assert bench.tick(0.05) == []
        assert bench.failed < 150
    bench.full.clear()
    got = [message for _ in range(10) for _, message in bench.tick(0.05) if not isinstance(message, Fleet)]
    assert got == waiting


def test_pings_do_not_pile_up_for_a_peer_that_does_not_read() -> None:
    bench = Bench()
    bench.client()
    bench.full.add("client")
    for _ in range(50):
        bench.tick(1.0)
    assert list(bench.peer("client").outbox) == []


def test_answers_for_a_client_that_does_not_read_stay_at_their_workers_up_to_a_limit() -> None:
    bench = Bench(replace(SETTINGS, max_unread_bytes=20))
    bench.client("slow")
    bench.client("other")
    bench.worker(credit=4)
    assert assigned(bench.tell("slow", submit(*"abcdef"))) == {"worker": [*"abcd"]}
    # Each answer has eight bytes: two are within the limit.
    assert bench.tell("worker", result(0, 1, 2, credit=6)) == [("slow", answer("ab", 0, 1))]
    slow = bench.peer("slow")
    assert isinstance(slow, Client)
    assert (slow.is_stalled, slow.unread_bytes) == (True, 16)
    # Its rows are held back, and another's go on.
    assert assigned(bench.tell("other", submit("x", "y"))) == {"worker": ["x", "y"]}
    bench.tick(0.1)
    # It reads one: the withheld answer is asked for, and its rows are handed out again.
    assert bench.tell("slow", Release(ids("a"))) == []
    assert bench.tick(0.1) == [("worker", settle(0)), ("worker", resend(2))]
    assert not slow.is_stalled
    assert bench.tell("worker", result(2, credit=6)) == [("slow", answer("c", 2))]
    assert assigned(bench.tell("worker", grant(8))) == {"worker": ["e", "f"]}


def test_workers_hear_of_no_rows_that_wait_for_their_client_to_read_on() -> None:
    """Else they keep their places for these, and rows at another broker wait for as long."""
    bench = Bench(replace(SETTINGS, max_unread_bytes=7))
    bench.client("slow")
    bench.client("other")
    bench.worker(credit=2)
    bench.tell("slow", submit(*"abcd"))
    assert waiting(bench) == [2]
    bench.tell("worker", result(0, 1, credit=2))
    assert waiting(bench) == [0]
    bench.tell("other", submit("x"))
    assert waiting(bench) == [3]
    bench.tell("slow", Release(ids("a")))
    bench.tell("other", Release(ids("x")))
    assert waiting(bench) == [2]


def test_workers_hear_of_no_suspects_that_wait_for_their_client_to_read_on() -> None:
    bench = Bench(replace(SETTINGS, max_unread_bytes=7))
    bench.client()
    bench.worker("well", credit=2)
    bench.tell("client", submit("a", "b"))
    bench.worker("lost")
    bench.tell("client", submit("c"))
    bench.tell("well", result(0, 1, credit=2))
    bench.end("lost")
    assert bench.state_of("c") is RowState.SUSPECTED
    assert waiting(bench) == [0]
    bench.tell("client", Release(ids("a")))
    assert waiting(bench) == [1]


def waiting(bench: Bench) -> list[int]:
    """Of how many rows the workers hear that they wait."""
    pings = [(name, message) for name, message in bench.tick_all(1.0) if isinstance(message, Ping)]
    return [ping.waiting for name, ping in pings if isinstance(bench.peer(name), Worker)]


def test_an_answer_larger_than_the_limit_is_sent_when_it_is_the_only_one() -> None:
    bench = Bench(replace(SETTINGS, max_unread_bytes=7))
    bench.client()
    bench.worker(credit=2)
    bench.tell("client", submit(*"ab"))
    assert bench.tell("worker", result(0, 1, credit=2)) == [("client", answer("a", 0))]
    bench.tick(0.1)
    bench.tell("client", Release(ids("a")))
    assert bench.tick(0.1) == [("worker", settle(0)), ("worker", resend(1))]
    assert bench.tell("worker", result(1, credit=2)) == [("client", answer("b", 1))]


def test_a_withheld_answer_whose_worker_is_lost_is_computed_again_when_its_client_reads() -> None:
    bench = Bench(replace(SETTINGS, max_unread_bytes=7))
    bench.client()
    bench.worker("one", credit=2)
    bench.tell("client", submit(*"ab"))
    bench.tell("one", result(0, 1, credit=2))
    bench.worker("two", credit=2)
    bench.end("one")
    assert bench.state_of("b") is RowState.ANSWERED
    bench.tell("client", Release(ids("a")))
    assert assigned(bench.tick(0.1)) == {"two": ["b"]}


def test_room_that_is_kept_for_an_answer_is_given_back_when_the_row_runs_again() -> None:
    bench = Bench(replace(SETTINGS, max_unread_bytes=7))
    bench.client()
    bench.worker("one", credit=3)
    bench.tell("client", submit(*"abc"))
    bench.tell("one", result(0, 1, 2, credit=3))
    bench.tick(0.1)
    bench.tell("client", Release(ids("a")))
    assert bench.tick(0.1) == [("one", settle(0)), ("one", resend(1))]
    bench.end("one")
    client = bench.peer("client")
    assert isinstance(client, Client)
    assert client.unread_bytes == 0
    bench.tick(0.1)
    assert [bench.state_of(name) for name in "bc"] == [RowState.QUEUED, RowState.QUEUED]


def test_withheld_answers_of_a_client_that_goes_or_comes_again_are_forgotten() -> None:
    bench = Bench(replace(SETTINGS, max_unread_bytes=7))
    bench.client()
    bench.worker(credit=2)
    bench.tell("client", submit(*"ab"))
    bench.tell("worker", result(0, 1, credit=2))
    bench.lose("client")
    bench.client("client/2")
    client = bench.peer("client/2")
    assert isinstance(client, Client)
    assert (client.unread_bytes, client.is_stalled) == (0, False)
    sent = bench.tell("client/2", Await(ids("a", "b"), False))
    assert sorted(sent, key=repr) == [("worker", resend(0)), ("worker", resend(1))]
    assert bench.tell("worker", result(0, 1, credit=2)) == [("client/2", answer("a", 0))]
    bench.tell("client/2", Goodbye())
    bench.tick(0.1)
    assert not bench.broker.ledger._stalled


def test_suspects_of_a_client_that_does_not_read_are_passed_over() -> None:
    bench = Bench(replace(SETTINGS, max_unread_bytes=7))
    bench.client("slow")
    bench.client("other")
    bench.worker("one", credit=2)
    bench.worker("keeper", credit=2, llm="else")
    bench.tell("slow", submit("a", "b", llm="else"))
    bench.tell("slow", submit("s"))
    bench.tell("other", submit("o"))
    bench.end("one")
    bench.tell("keeper", result(0, 1, credit=0))
    assert assigned(bench.tell("two", worker_hello("two", credit=2), hold())) == {"two": ["o"]}


def test_suspects_of_a_client_that_does_not_read_keep_no_worker_from_the_others() -> None:
    bench = Bench(replace(SETTINGS, max_unread_bytes=7))
    bench.client("slow")
    bench.client("other")
    bench.worker("keeper", credit=2, llm="else")
    bench.tell("slow", submit("a", "b", llm="else"))
    bench.worker("one", credit=2)
    bench.tell("slow", submit("s", "t"))
    bench.tell("keeper", result(0, 1, credit=0))
    bench.end("one")
    bench.worker("two", credit=2)
    assert assigned(bench.tell("other", submit("x", "y"))) == {"two": ["x", "y"]}
    assert assigned(bench.tell("two", grant(4))) == {}
    assert assigned(bench.tell("other", submit("z"))) == {"two": ["z"]}


def test_what_waited_for_a_lost_connection_is_not_sent_to_the_next() -> None:
    bench = Bench()
    bench.client()
    bench.worker()
    bench.tell("client", submit("a"))
    bench.full.add("client")
    bench.tell("worker", result(0, credit=1))
    bench.lose("client")
    bench.client("client/2")
    assert bench.tick(0.1) == [("client/2", bench.broker._fleet())]
    assert bench.tell("client/2", Await(ids("a"), False)) == [("worker", resend(0))]


def test_a_send_that_failed_for_somebody_unknown_is_no_news() -> None:
    bench = Bench()
    bench.lose("nobody")
    assert bench.logs == []


# Everything at once.


class Chaos:
    """Two clients and three workers on two connections each, saying whatever comes to their minds."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        settings = replace(SETTINGS, max_attempts=self.chance.choice([1, 2, 3]))
        self.bench = Bench(settings, age=self.chance.choice([0.0, 100.0]))

    def step(self) -> None:
        pick = self.chance.random()
        if pick < 0.1:
            self.bench.tick(self.chance.choice([0.1, 0.5, 0.5, 12.0]))
        elif pick < 0.15:
            self.bench.lose(self.somebody(), silent=self.chance.random() < 0.3)
        else:
            name = self.somebody()
            messages = self.of_client(name) if name.startswith("c") else self.of_worker(name)
            self.bench.tell(name, *messages)

    def somebody(self) -> str:
        """Mostly one who is there."""
        there = [peer.decode() for peer in self.bench.broker.peers]
        return self.chance.choice([*CHAOTIC_PEERS, *there, *there, *there])

    def rows(self, name: str, most: int) -> list[str]:
        """Some of the rows of this client; nobody else can know their ids."""
        return self.chance.sample(numbered(name[:2], 8), self.chance.randint(0, most))

    def of_client(self, name: str) -> list[Message]:
        chance = self.chance
        if name.encode() not in self.bench.broker.peers:
            coming: list[Message] = [client_hello(name[:2]), Await(ids(*self.rows(name, 6)), False)]
            return coming[: chance.randint(1, 2)]
        said: dict[str, Any] = {
            "llm": chance.choice(["llm", "llm", "other"]),
            "num_generations": chance.choice([1, 2]),
            "seconds_left": chance.choice([None, None, 1.0]),
            "again": chance.random() < 0.3,
            "hedge": chance.choice([0.0, 1.0]),
        }
        messages = [
            submit(*self.rows(name, 4), **said),
            Release(ids(*self.rows(name, 2))),
            Await(ids(*self.rows(name, 8)), chance.random() < 0.2),
            chance.choice([client_hello(name[:2]), Goodbye()]),
        ]
        return chance.choices(messages, [8, 3, 2, 1])

    def of_worker(self, name: str) -> list[Message]:
        chance = self.chance
        llm, batch = ("other", 1) if name.startswith("w3") else ("llm", chance.choice([1, 3]))
        state = chance.choice([READY, READY, WorkerState.UNWELL])
        hello = worker_hello(name[:2], llm=llm, batch_size=batch, credit=chance.randint(0, 9), state=state)
        held = [(number, row, chance.random() < 0.4) for number, row in self.held(name)]
        if name.encode() not in self.bench.broker.peers:
            coming: list[Message] = [hello, hold(*held)]
            return coming[: chance.randint(1, 4)]
        messages = [
            hello,
            grant(chance.randint(0, 40), state),
            result(*self.executions(name), credit=chance.randint(0, 40), outcome=chance.choice(list(Outcome)[:4])),
            hold(*held, more=chance.random() < 0.1),
            hold((*self.lie(), chance.random() < 0.5)),
            Goodbye(),
        ]
        return chance.choices(messages, [1, 3, 6, 2, 1, 1])

    def executions(self, name: str) -> list[int]:
        own = [number for number, _ in self.held(name)]
        return self.chance.sample(own, self.chance.randint(0, len(own))) or [self.chance.randint(0, 20)]

    def held(self, name: str) -> list[tuple[int, str]]:
        worker = self.bench.broker.peers.get(name.encode())
        executions = worker.executions.values() if isinstance(worker, Worker) else []
        held = [(execution.id - FIRST, execution.row.id.decode().strip(".")) for execution in executions]
        return [one for one in held if self.chance.random() < 0.9]

    def lie(self) -> tuple[int, str]:
        """An execution of this life or of an earlier one, and any row."""
        number = self.chance.randint(0, 20)
        row = self.chance.choice(["c1", "c2"]) + str(self.chance.randint(0, 7))
        return self.chance.choice([number, (5 << 38) - FIRST + number]), row


CHAOTIC_PEERS = ["c1", "c1/2", "c2", "c2/2", "w1", "w1/2", "w2", "w2/2", "w3"]
READY = WorkerState.READY


@pytest.mark.parametrize("seed", range(40))
def test_whatever_anybody_says_the_books_agree_and_nothing_is_left_when_all_have_gone(seed: int) -> None:
    """The books are checked at every step, by Bench."""
    chaos = Chaos(seed)
    for _ in range(200):
        chaos.step()
    chaos.bench.lose(*CHAOTIC_PEERS)
    chaos.bench.tick(30.0)
    chaos.bench.tick(30.0)
    broker = chaos.bench.broker
    assert (broker.ledger.rows, broker.ledger.executions, broker.clients, broker.peers) == ({}, {}, {}, {})
    assert not any(len(llm.queue) or llm.suspects or llm.workers for llm in broker.llms.values())
