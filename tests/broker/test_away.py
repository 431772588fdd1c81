"""Clients and workers that come, go and come back, in the broker's machine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from driven import (
    FIRST,
    SETTINGS,
    Bench,
    Sent,
    answer,
    assign,
    assigned,
    grant,
    hold,
    ids,
    numbered,
    resend,
    result,
    settle,
    submit,
    worker_hello,
)

from genpool.broker.outgoing import Log
from genpool.broker.row import RowState
from genpool.protocol.limits import Limits
from genpool.protocol.messages import (
    Ask,
    Assign,
    Await,
    Goodbye,
    Hold,
    Message,
    Missing,
    Outcome,
    Ping,
    Release,
    Reset,
    Result,
    Status,
    WorkerState,
)

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
