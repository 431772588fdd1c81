"""Rows that the broker's machine gives to a second worker."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from driven import (
    FIRST,
    SETTINGS,
    Bench,
    answer,
    answers,
    assign,
    assigned,
    grant,
    hold,
    ids,
    numbered,
    result,
    settle,
    submit,
    worker_hello,
)

from genpool.broker.peer import Client
from genpool.broker.row import RowState
from genpool.broker.settings import BrokerSettings
from genpool.protocol.messages import (
    Outcome,
    Ping,
    Release,
)


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
