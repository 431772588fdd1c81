"""Which executions straggle, by the times of those that were done."""

from __future__ import annotations

from itertools import count

from genpool.broker.peer import Client, Worker
from genpool.broker.row import Execution, Row, RowSpec, RowState
from genpool.broker.straggler import Stragglers
from genpool.protocol.messages import Hello

CLIENT = Client(b"client", Hello(), "")
WORKER = Worker(b"worker", Hello(), "")
numbers = count()


def begun(stragglers: Stragglers, since: float, *, options: bytes = b"", hedge: float = 3.0) -> Execution:
    spec = RowSpec("llm", "input", 1, options, None, hedge)
    row = Row(b"%d" % next(numbers), spec, CLIENT, b"row", RowState.RUNNING)
    execution = Execution(next(numbers), row, WORKER, since)
    row.executions += (execution,)
    stragglers.begin(execution)
    return execution


def do(stragglers: Stragglers, *durations: float, options: bytes = b"", hedge: float = 3.0) -> None:
    for duration in durations:
        stragglers.done(begun(stragglers, 0.0, options=options, hedge=hedge), duration)


def test_the_usual_time_is_the_median_which_a_slow_worker_does_not_raise() -> None:
    stragglers = Stragglers()
    do(stragglers, *[1.0] * 9, *[100.0] * 7)
    slow = begun(stragglers, 50.0)
    assert stragglers.due(52.9) == []
    assert stragglers.due(53.0) == [slow.row]


def test_the_usual_time_follows_the_last_rows() -> None:
    stragglers = Stragglers()
    do(stragglers, *[1.0] * 1000)
    slow = begun(stragglers, 50.0)
    assert stragglers.due(53.0) == [slow.row]
    do(stragglers, *[10.0] * 128)
    assert stragglers.due(79.0) == []
    assert stragglers.due(80.0) == [slow.row]


def test_those_that_have_run_longest_come_first_as_many_as_the_allowance_carries() -> None:
    stragglers = Stragglers()
    do(stragglers, *[1.0] * 20)
    slow = [begun(stragglers, 50.0 + number) for number in range(5)]
    assert stragglers.due(60.0) == [slow[0].row, slow[1].row]
    stragglers.hedge(begun(stragglers, 60.0))
    assert stragglers.due(60.0) == [slow[0].row]  # who hedges it gives it another execution
    stragglers.hedge(begun(stragglers, 60.0))
    assert stragglers.due(60.0) == []


def test_hedges_that_answer_their_row_are_counted() -> None:
    stragglers = Stragglers()
    hedges = [begun(stragglers, 0.0) for _ in range(3)]
    for hedge in hedges:
        stragglers.hedge(hedge)
    stragglers.done(hedges[0], 1.0)
    stragglers.forget(hedges[0])
    stragglers.forget(hedges[1])
    stragglers.done(begun(stragglers, 0.0), 1.0)
    assert (stragglers.hedged, stragglers.hedges_won) == (3, 1)


def test_the_allowance_is_bounded() -> None:
    stragglers = Stragglers()
    do(stragglers, *[1.0] * 5000)
    for _ in range(60):
        begun(stragglers, 50.0)
    assert len(stragglers.due(60.0)) == 50


def test_what_has_ended_straggles_no_more() -> None:
    stragglers = Stragglers()
    do(stragglers, *[1.0] * 8)
    slow, other = begun(stragglers, 50.0), begun(stragglers, 50.0)
    stragglers.forget(slow)
    assert stragglers.due(60.0) == [other.row]
    stragglers.done(other, 60.0)
    stragglers.forget(other)  # a second time
    assert stragglers.due(60.0) == []


def test_what_was_not_seen_to_begin_tells_nothing_of_the_usual_time() -> None:
    stragglers = Stragglers()
    do(stragglers, *[1.0] * 7)
    slow = begun(stragglers, 50.0)
    stragglers.done(Execution(next(numbers), slow.row, WORKER, 50.0), 50.1)
    assert stragglers.due(60.0) == []


def test_rows_that_take_unlike_long_are_told_apart_up_to_a_limit() -> None:
    stragglers = Stragglers()
    do(stragglers, *[30.0] * 8, options=b"long")
    do(stragglers, *[1.0] * 8, options=b"short")
    long, short = begun(stragglers, 50.0, options=b"long"), begun(stragglers, 50.0, options=b"short")
    assert stragglers.due(60.0) == [short.row]
    for number in range(62):
        begun(stragglers, 60.0, options=b"%d" % number)
    begun(stragglers, 60.0, options=b"long")  # so the short ones are those that were not seen for longest
    assert stragglers.due(60.0) == [short.row]
    begun(stragglers, 60.0, options=b"one too many")
    assert stragglers.due(60.0) == []
    stragglers.done(short, 60.0)  # which nobody remembers
    assert stragglers.due(140.0) == [long.row]
