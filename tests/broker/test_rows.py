"""The way of rows through the broker's machine: submitted, handed out by credit, answered, expired."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from driven import (
    EPOCH,
    FIRST,
    SETTINGS,
    Bench,
    answer,
    assign,
    assigned,
    client_hello,
    grant,
    hold,
    ids,
    numbered,
    result,
    run_of,
    settle,
    submit,
    welcomed,
    worker_hello,
)

from genpool.broker.peer import Worker
from genpool.broker.row import RowState
from genpool.protocol.content import unpack_failure
from genpool.protocol.limits import MAX_COUNT, Limits
from genpool.protocol.messages import (
    Answer,
    Ask,
    Assign,
    Await,
    Fleet,
    Goodbye,
    Grant,
    Hold,
    Missing,
    Outcome,
    Ping,
    Release,
    Reset,
    Result,
    Status,
    Welcome,
    WorkerState,
)

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
