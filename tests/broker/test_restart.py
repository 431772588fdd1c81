"""A broker that was started again, or stood still."""

from __future__ import annotations

import pytest
from driven import (
    SETTINGS,
    Bench,
    answers,
    assign,
    assigned,
    hold,
    ids,
    last_attempt,
    limited,
    numbered,
    settle,
    submit,
    worker_hello,
)

from genpool.broker.blame import SURVIVOR_WAIT_S
from genpool.broker.row import RowState
from genpool.protocol.messages import (
    Answer,
    Await,
    Busy,
    Fleet,
    Hold,
    Missing,
    Outcome,
    Ping,
    Release,
    Resend,
    Result,
    Settle,
)


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
