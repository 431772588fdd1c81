"""Peers that do not read what the broker's machine sends them."""

from __future__ import annotations

from dataclasses import replace

from driven import (
    SETTINGS,
    Bench,
    answer,
    assigned,
    grant,
    hold,
    ids,
    resend,
    result,
    settle,
    submit,
    worker_hello,
)

from genpool.broker.peer import Client, Worker
from genpool.broker.row import RowState
from genpool.protocol.messages import (
    Await,
    Busy,
    Fleet,
    Goodbye,
    Ping,
    Release,
)


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
