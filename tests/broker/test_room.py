"""What becomes of peers and rows that the broker has no room for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from driven import (
    FIRST,
    SETTINGS,
    Bench,
    Sent,
    assigned,
    client_hello,
    ids,
    limited,
    numbered,
    reasons,
    result,
    submit,
    welcomed,
    worker_hello,
)

from genpool.broker.row import RowState
from genpool.protocol.limits import Limits
from genpool.protocol.messages import (
    Ask,
    Await,
    Busy,
    Goodbye,
    Hold,
    Missing,
    Ping,
    Release,
    Reset,
    Settle,
)

# A broker that is full.


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
