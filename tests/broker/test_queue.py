from __future__ import annotations

import random

import pytest

from genpool.broker.peer import Client
from genpool.broker.queue import FairQueue
from genpool.broker.row import Row, RowSpec, RowState
from genpool.protocol.messages import Hello

NOW = 100.0
PLENTY = 1 << 40


def client(name: str) -> Client:
    return Client(name.encode(), Hello(host=name), "")


def spec(*, n: int = 1, kind: str = "input", options: bytes = b"", deadline: float | None = None) -> RowSpec:
    return RowSpec("llm", kind, n, options, deadline)


def row(of: Client, name: str, about: RowSpec | None = None, payload: bytes = b"") -> Row:
    return Row(name.encode(), about or spec(), of, payload)


def pushed(queue: FairQueue, of: Client, *names: str, about: RowSpec | None = None) -> list[Row]:
    rows = [row(of, name, about) for name in names]
    for one in rows:
        queue.push(one)
    return rows


def names(rows: list[Row]) -> list[str]:
    return [one.id.decode() for one in rows]


def entries(queue: FairQueue) -> int:
    return sum(len(line) for line in queue._turns.values())


def test_first_come_first_served_within_a_client() -> None:
    queue = FairQueue()
    one = client("one")
    rows = pushed(queue, one, "a", "b", "c")
    assert len(queue) == 3
    assert names(queue.take(2, NOW)) == ["a", "b"]
    assert [r.state for r in rows] == [RowState.RUNNING, RowState.RUNNING, RowState.QUEUED]
    assert names(queue.take(2, NOW)) == ["c"]
    assert queue.take(1, NOW) == []
    assert len(queue) == 0


def test_clients_take_turns_row_by_row_whatever_they_have() -> None:
    queue = FairQueue()
    big, small, late = client("big"), client("small"), client("late")
    pushed(queue, big, "b1", "b2", "b3", "b4", "b5")
    pushed(queue, small, "s1", "s2")
    assert names(queue.take(3, NOW)) == ["b1", "s1", "b2"]
    pushed(queue, late, "l1")
    assert names(queue.take(9, NOW)) == ["s2", "b3", "l1", "b4", "b5"]


def test_a_turn_goes_on_where_the_last_take_stopped() -> None:
    queue = FairQueue()
    one, two = client("one"), client("two")
    pushed(queue, one, "a1", "a2", "a3")
    pushed(queue, two, "b1", "b2", "b3")
    taken = [names(queue.take(1, NOW)) for _ in range(6)]
    assert taken == [["a1"], ["b1"], ["a2"], ["b2"], ["a3"], ["b3"]]


def test_a_row_that_comes_back_goes_to_the_head() -> None:
    queue = FairQueue()
    one = client("one")
    pushed(queue, one, "a", "b", "c")
    (first,) = queue.take(1, NOW)
    queue.push(first, front=True)
    assert names(queue.take(3, NOW)) == ["a", "b", "c"]


def test_a_withdrawn_row_is_passed_over() -> None:
    queue = FairQueue()
    one, two = client("one"), client("two")
    _, b, c = pushed(queue, one, "a", "b", "c")
    (only,) = pushed(queue, two, "only")
    queue.withdraw(b, RowState.GONE)
    queue.withdraw(only, RowState.ANSWERED)
    assert (len(queue), b.state, only.state) == (2, RowState.GONE, RowState.ANSWERED)
    assert names(queue.take(9, NOW)) == ["a", "c"]
    assert c.state is RowState.RUNNING
    assert entries(queue) == 0


def test_a_row_that_was_withdrawn_and_came_back_is_taken_once() -> None:
    queue = FairQueue()
    one = client("one")
    _, b = pushed(queue, one, "a", "b")
    queue.withdraw(b, RowState.RUNNING)
    queue.push(b, front=True)
    assert len(queue) == 2
    assert names(queue.take(9, NOW)) == ["b", "a"]
    assert len(queue) == 0


def test_dead_entries_never_outnumber_the_living_by_much() -> None:
    queue = FairQueue()
    one, two = client("one"), client("two")
    kept = pushed(queue, one, *(f"kept {number}" for number in range(100)))
    most = 0
    for number in range(5000):
        (gone,) = pushed(queue, two, f"gone {number}")
        queue.withdraw(gone, RowState.GONE)
        most = max(most, entries(queue))
    assert most <= 2 * len(kept) + 65
    assert names(queue.take(200, NOW)) == names(kept)


def test_rows_that_leave_and_come_back_again_and_again_do_not_pile_up() -> None:
    queue = FairQueue()
    rows = pushed(queue, client("one"), *(f"row {number}" for number in range(200)))
    for _ in range(20):
        for one in rows:
            queue.withdraw(one, RowState.RUNNING)
            queue.push(one, front=True)
    assert len(queue) == 200
    assert entries(queue) <= 3 * 200 + 65
    assert sorted(names(queue.take(1000, NOW))) == sorted(names(rows))


def test_a_client_that_reads_nothing_is_passed_over_until_it_reads() -> None:
    queue = FairQueue()
    stalled, other = client("stalled"), client("other")
    pushed(queue, stalled, "s1", "s2")
    pushed(queue, other, "o1", "o2")
    stalled.withheld[row(stalled, "answered")] = 1
    assert names(queue.take(9, NOW)) == ["o1", "o2"]
    assert queue.take_run(9, NOW, PLENTY) == []
    assert len(queue) == 2
    stalled.withheld.clear()
    assert names(queue.take(9, NOW)) == ["s1", "s2"]


def test_a_run_is_of_one_client_and_of_rows_that_share_a_call() -> None:
    queue = FairQueue()
    one, two = client("one"), client("two")
    pushed(queue, one, "a1", "a2", about=spec(n=1))
    pushed(queue, one, "a3", about=spec(n=1))  # of another call, with all the same that matters
    pushed(queue, one, "a4", about=spec(n=2))
    pushed(queue, one, "a5", about=spec(n=2, options=b"hot"))
    pushed(queue, one, "a6", about=spec(n=2, options=b"hot", kind="prompt"))
    pushed(queue, two, "b1")
    runs = [names(queue.take_run(8, NOW, PLENTY)) for _ in range(6)]
    assert runs == [["a1", "a2", "a3"], ["b1"], ["a4"], ["a5"], ["a6"], []]


def test_a_run_has_no_more_rows_than_asked_for() -> None:
    queue = FairQueue()
    pushed(queue, client("one"), "a", "b", "c")
    assert names(queue.take_run(2, NOW, PLENTY)) == ["a", "b"]
    assert names(queue.take_run(2, NOW, PLENTY)) == ["c"]


def test_a_run_ends_before_it_is_too_large_for_a_message() -> None:
    queue = FairQueue()
    one = client("one")
    for name, size in (("a", 40), ("b", 40), ("c", 40), ("huge", 500), ("d", 1)):
        queue.push(row(one, name, payload=b"x" * size))
    runs = [names(queue.take_run(8, NOW, 100)) for _ in range(4)]
    assert runs == [["a", "b"], ["c"], ["huge"], ["d"]]


def test_rows_past_their_deadline_are_set_aside_when_their_turn_comes() -> None:
    queue = FairQueue()
    one = client("one")
    pushed(queue, one, "old 1", about=spec(deadline=NOW))
    pushed(queue, one, "good", about=spec(deadline=NOW + 0.1))
    pushed(queue, one, "old 2", about=spec(deadline=NOW - 5))
    pushed(queue, one, "endless")
    assert names(queue.take(2, NOW)) == ["good", "endless"]
    assert names(queue.expired) == ["old 1", "old 2"]
    assert len(queue) == 0


def test_expired_rows_do_not_count_in_a_run() -> None:
    queue = FairQueue()
    one = client("one")
    queue.push(row(one, "old", spec(deadline=NOW - 1), payload=b"x" * 99))
    for name in "ab":
        queue.push(row(one, name, payload=b"x" * 50))
    assert names(queue.take_run(2, NOW, 100)) == ["a", "b"]
    assert names(queue.expired) == ["old"]


def test_a_client_whose_rows_are_all_withdrawn_is_forgotten_by_who_looks_for_the_first_rows() -> None:
    queue = FairQueue()
    one, other = client("one"), client("other")
    (gone,) = pushed(queue, one, "a")
    (waiting,) = pushed(queue, other, "b")
    queue.withdraw(gone, RowState.GONE)
    assert list(queue.first_rows()) == [waiting]
    assert list(queue._turns) == [other]


@pytest.mark.parametrize("seed", range(10))
def test_whatever_is_pushed_and_withdrawn_each_waiting_row_is_taken_once(seed: int) -> None:
    chance = random.Random(seed)
    queue = FairQueue()
    clients = [client(f"client {number}") for number in range(4)]
    waiting: set[Row] = set()
    away: list[Row] = []
    made = 0
    for _ in range(2000):
        what = chance.random()
        if what < 0.4:
            made += 1
            fresh = row(chance.choice(clients), f"row {made}")
            queue.push(fresh)
            waiting.add(fresh)
        elif what < 0.55 and away:
            back = away.pop(chance.randrange(len(away)))
            queue.push(back, front=chance.random() < 0.8)
            waiting.add(back)
        elif what < 0.75 and waiting:
            gone = chance.choice(sorted(waiting, key=lambda one: one.id))
            queue.withdraw(gone, RowState.RUNNING)
            waiting.remove(gone)
            away.append(gone)
        else:
            count = chance.randint(1, 4)
            taken = queue.take(count, NOW) if chance.random() < 0.5 else queue.take_run(count, NOW, PLENTY)
            assert len(taken) == len(set(taken)) <= count
            assert set(taken) <= waiting
            waiting -= set(taken)
            away += taken
        assert len(queue) == len(waiting)
        assert entries(queue) == queue._entries
    assert set(queue.take(10_000, NOW)) == waiting
