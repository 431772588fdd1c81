"""Whom the broker's machine blames for a worker's end, and how suspects are tried."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import pytest
from driven import (
    FIRST,
    SETTINGS,
    Bench,
    Sent,
    answer,
    assigned,
    grant,
    hold,
    ids,
    last_attempt,
    numbered,
    result,
    submit,
    worker_hello,
)

from genpool.broker.blame import SURVIVOR_WAIT_S
from genpool.broker.peer import Worker
from genpool.broker.row import RowState
from genpool.protocol.content import unpack_failure
from genpool.protocol.frames import Payload
from genpool.protocol.messages import (
    Answer,
    Assign,
    Dismiss,
    Outcome,
    Release,
    Role,
    Settle,
    WorkerState,
)


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
