"""The broker's books: what they count, and that each row is counted once."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from genpool.broker.machine import Broker
from genpool.broker.settings import BrokerSettings
from genpool.broker.tally import ROW_BOUNDS_S, SAMPLE_S, Histogram, Rate, Tally
from genpool.protocol.limits import MAX_COUNT
from genpool.protocol.messages import (
    Await,
    Goodbye,
    Hello,
    Hold,
    Message,
    Outcome,
    Release,
    Result,
    Role,
    Submit,
    SubmitRun,
    WorkerState,
)

SETTINGS = BrokerSettings(settle_s=0.0, max_attempts=2, has_row_times=True)


class Driven:
    """A broker with a client and a worker of the LLM "a" that takes two rows at once."""

    def __init__(self, settings: BrokerSettings = SETTINGS) -> None:
        self.now = 100.0
        self.machine = Broker(settings, bytes(16), self.now)
        self.credit = 0
        self.hello_client()
        self.hello_worker(b"w")

    def tell(self, peer: bytes, *messages: Message) -> None:
        for message in messages:
            self.machine.received(peer, message, self.now)
        self.machine.flush(self.now)

    def hello_client(self, peer: bytes = b"c", *awaited: bytes) -> None:
        self.tell(peer, Hello(role=Role.CLIENT, instance=b"client"), Await(list(awaited), False))

    def hello_worker(self, peer: bytes) -> None:
        hello = Hello(role=Role.WORKER, instance=peer, llm="a", state=WorkerState.READY, concurrency=2, credit=2)
        self.credit = 2
        self.tell(peer, hello, Hold([], [], [], False))

    def submit(self, *names: str, seconds_left: float | None = None, hedge: float = 0.0) -> None:
        ids = [row(name) for name in names]
        run = SubmitRun("a", "input", 1, b"", seconds_left, False, ids, [b"row"] * len(ids), hedge)
        self.tell(b"c", Submit([run]))

    def answer(self, name: str, outcome: Outcome = Outcome.DONE, tokens: int = 0, peer: bytes = b"w") -> None:
        (number,) = [e.id for e in self.machine.ledger.executions.values() if e.row.id == row(name) and not e.finished]
        self.credit += 1
        self.tell(peer, Result([number], [outcome], tokens, self.credit, [b"answer"]))

    def release(self, *names: str) -> None:
        self.tell(b"c", Release([row(name) for name in names]))

    def after(self, seconds: float) -> None:
        self.now += seconds
        self.machine.tick(self.now)

    def lose(self, peer: bytes) -> None:
        """The connection of ``peer`` ends, and its grace."""
        self.machine.send_failed(peer, Goodbye(), gone=True, now=self.now)
        self.after(1.0)

    @property
    def tally(self) -> Tally:
        return self.machine.llms["a"].tally

    @property
    def ended(self) -> dict[str, int]:
        counts = {name: getattr(self.tally, name) for name in ("done", "failed", "expired", "cancelled", "requeued")}
        return {name: count for name, count in counts.items() if count}

    def reported(self) -> dict[str, Any]:
        (llm,) = self.machine.report(self.now)["llms"]
        return llm


def row(name: str) -> bytes:
    return name.encode().ljust(16, b".")


def test_a_histogram_counts_up_to_each_bound() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.0, 1.0, 1.5, 2.0, 7.0):
        histogram.observe(value)
    assert histogram.plain() == {"bounds": [1.0, 2.0], "counts": [2, 2, 1], "sum": 11.5}


def test_a_rate_is_that_of_the_last_seconds() -> None:
    rate = Rate()
    assert rate.per_s(10.0, 5, 50) is None
    rate.sample(10.0, 5, 50)
    assert rate.per_s(10.5, 6, 60) is None
    assert rate.per_s(12.0, 9, 250) == (2.0, 100.0)
    for number in range(1, 100):
        rate.sample(10.0 + number * SAMPLE_S, 5, 50)
    assert rate.per_s(10.0 + 99 * SAMPLE_S + 1.0, 5 + 18, 50) == (2.0, 0.0)


def test_tokens_are_no_more_than_a_count() -> None:
    tally = Tally()
    tally.add_tokens(MAX_COUNT)
    tally.add_tokens(MAX_COUNT)
    assert tally.tokens == MAX_COUNT


def test_a_row_counts_when_its_client_has_the_answer() -> None:
    driven = Driven()
    driven.submit("1", "2", "3")
    driven.answer("1", tokens=7)
    assert driven.ended == {}
    assert driven.tally.tokens == 7
    driven.release("1")
    assert driven.ended == {"done": 1}
    driven.answer("2", Outcome.FAILED)
    driven.answer("3", tokens=5)
    driven.release("2", "3")
    assert driven.ended == {"done": 2, "failed": 1}
    assert driven.tally.tokens == 12


def test_a_row_that_its_client_wants_no_more_is_cancelled() -> None:
    driven = Driven()
    driven.submit("runs", "answered", "waits")
    driven.answer("answered")
    driven.release("runs", "waits", "answered", "never submitted")
    assert driven.ended == {"cancelled": 2, "done": 1}


def test_a_client_that_does_not_come_back_has_cancelled_what_was_not_answered() -> None:
    driven = Driven()
    driven.submit("answered", "runs", "waits")
    driven.answer("answered")
    driven.machine.send_failed(b"c", Goodbye(), gone=True, now=driven.now)
    driven.after(SETTINGS.client_grace_s)
    assert driven.ended == {"cancelled": 2, "done": 1}


def test_a_row_whose_deadline_passes_is_expired() -> None:
    driven = Driven()
    driven.submit("1", "2")
    driven.submit("late", seconds_left=1.0)
    driven.after(2.0)
    driven.answer("1")
    driven.release("1", "late")
    assert driven.ended == {"done": 1, "expired": 1}


def test_a_row_that_is_tried_again_is_requeued_and_ends_once() -> None:
    driven = Driven()
    driven.submit("1", "2")
    driven.answer("1", Outcome.RETURNED)
    driven.answer("1", Outcome.RAISED)
    assert driven.ended == {"requeued": 2}
    driven.answer("1")
    driven.answer("2", Outcome.RAISED)
    driven.answer("2", Outcome.RAISED)
    driven.release("1", "2")
    assert driven.ended == {"requeued": 3, "done": 1, "failed": 1}


def test_the_rows_of_a_lost_worker_are_requeued_and_it_counts_as_lost() -> None:
    driven = Driven(replace(SETTINGS, max_attempts=3))
    driven.submit("1", "2")
    driven.lose(b"w")
    assert driven.ended == {"requeued": 2}
    assert driven.tally.lost == 1
    driven.hello_worker(b"other")
    driven.answer("1", peer=b"other")
    driven.answer("2", peer=b"other")
    driven.release("1", "2")
    assert driven.ended == {"requeued": 2, "done": 2}


def test_a_worker_that_says_goodbye_is_not_lost() -> None:
    driven = Driven()
    driven.tell(b"w", Goodbye("it was drained"))
    driven.after(1.0)
    assert driven.tally.lost == 0


@pytest.mark.parametrize("outcome", [Outcome.DONE, Outcome.FAILED])
def test_an_answer_that_is_sent_again_counts_once(outcome: Outcome) -> None:
    driven = Driven()
    driven.submit("1")
    driven.answer("1", outcome)
    driven.machine.send_failed(b"c", Goodbye(), gone=True, now=driven.now)
    driven.hello_client(b"c", row("1"))
    (number,) = driven.machine.ledger.executions
    driven.tell(b"w", Result([number], [outcome], 0, driven.credit, [b"answer"]))
    driven.release("1")
    assert driven.ended == {outcome.name.lower(): 1}


def test_a_failure_that_was_lost_with_its_worker_and_ran_again_is_no_failure() -> None:
    driven = Driven()
    driven.submit("1")
    driven.answer("1", Outcome.FAILED)
    driven.machine.send_failed(b"c", Goodbye(), gone=True, now=driven.now)
    driven.hello_client(b"c", row("1"))
    driven.lose(b"w")
    driven.hello_worker(b"other")
    driven.answer("1", peer=b"other")
    driven.release("1")
    assert driven.ended == {"requeued": 1, "done": 1}


def test_a_hedged_row_counts_once() -> None:
    driven = Driven()
    driven.hello_worker(b"v")
    for number in range(8):
        driven.submit(str(number), hedge=2.0)
        driven.after(0.1)
        (execution,) = [e for e in driven.machine.ledger.executions.values() if not e.finished]
        driven.answer(str(number), peer=execution.worker.id)
        driven.release(str(number))
    driven.submit("slow", hedge=2.0)
    driven.after(5.0)
    first, second = (e for e in driven.machine.ledger.executions.values() if not e.finished)
    driven.tell(second.worker.id, Result([second.id], [Outcome.DONE], 0, 9, [b"answer"]))
    driven.tell(first.worker.id, Result([first.id], [Outcome.DONE], 0, 9, [b"answer"]))
    driven.release("slow")
    assert driven.ended == {"done": 9}


@pytest.mark.parametrize("seed", range(40))
def test_whatever_happens_each_row_that_has_left_is_counted_once(seed: int) -> None:
    chance = random.Random(seed)
    driven = Driven()
    workers = {b"w": 2}  # the credit of those that are connected
    submitted: set[bytes] = set()
    released: set[bytes] = set()
    for number in range(300):
        awaited = sorted(submitted - released)
        running = [one for one in driven.machine.ledger.executions.values() if not one.finished]
        match chance.choice(("submit", "submit", "answer", "answer", "answer", "release", "tick", "lose", "reconnect")):
            case "submit":
                run_ids = [row(f"{number}-{at}") for at in range(chance.randint(1, 4))]
                seconds_left = chance.choice((None, None, 0.7))
                payloads = [b"row"] * len(run_ids)
                run = SubmitRun("a", "input", 1, b"", seconds_left, False, run_ids, payloads, chance.choice((0.0, 2.0)))
                driven.tell(b"c", Submit([run]))
                submitted.update(run_ids)
            case "answer" if running:
                one = chance.choice(running)
                workers[one.worker.id] += 1
                outcome = chance.choice((Outcome.DONE, Outcome.DONE, Outcome.FAILED, Outcome.RAISED, Outcome.RETURNED))
                driven.tell(one.worker.id, Result([one.id], [outcome], 1, workers[one.worker.id], [b"answer"]))
            case "release" if awaited:
                some = chance.sample(awaited, chance.randint(1, len(awaited)))
                driven.tell(b"c", Release(some))
                released.update(some)
            case "tick":
                driven.after(chance.choice((0.1, 1.0)))
            case "lose":
                driven.lose(chance.choice(sorted(workers)))
                workers = {bytes([number % 256]) * 2: 2} | {
                    peer: credit for peer, credit in workers.items() if peer in driven.machine.peers
                }
                for peer in set(workers) - set(driven.machine.peers):
                    driven.hello_worker(peer)
            case "reconnect":
                driven.machine.send_failed(b"c", Goodbye(), gone=True, now=driven.now)
                driven.hello_client(b"c", *awaited)
            case _:
                pass
        tally = driven.tally
        left = tally.done + tally.failed + tally.expired + tally.cancelled
        assert left == len(submitted) - len(driven.machine.ledger.rows)
    driven.tell(b"c", Goodbye())
    tally = driven.tally
    assert tally.done + tally.failed + tally.expired + tally.cancelled == len(submitted)


def test_histograms_have_how_long_rows_waited_and_ran() -> None:
    driven = Driven()
    driven.submit("1", "2", "3")
    driven.after(4.0)
    driven.answer("1")
    driven.after(0.3)
    driven.answer("2", Outcome.FAILED)
    driven.answer("3", Outcome.RETURNED)  # its next hand-out is no wait that a client sees
    driven.after(0.2)
    driven.answer("3")
    wait, run = driven.tally.wait, driven.tally.run
    assert wait.sum == pytest.approx(4.0)
    assert {ROW_BOUNDS_S[at]: count for at, count in enumerate(wait.counts) if count} == {0.01: 2, 5.0: 1}
    assert run.sum == pytest.approx(4.2)
    assert {ROW_BOUNDS_S[at]: count for at, count in enumerate(run.counts) if count} == {0.25: 1, 5.0: 1}


def test_without_the_setting_no_row_is_timed() -> None:
    driven = Driven(BrokerSettings(settle_s=0.0))
    driven.submit("1")
    driven.answer("1")
    assert not any(driven.tally.wait.counts + driven.tally.run.counts)
    assert not driven.reported().keys() & {"wait_s", "run_s"}
    assert Driven().reported().keys() > {"wait_s", "run_s"}


def test_the_oldest_row_is_the_one_that_has_waited_longest() -> None:
    driven = Driven()
    assert driven.reported()["oldest_s"] is None
    driven.submit("1", "2", "3", "4")
    driven.after(5.0)
    driven.submit("5")
    assert driven.reported()["oldest_s"] == 5.0
    driven.release("3", "4")
    driven.after(1.0)
    assert driven.reported()["oldest_s"] == 1.0
    driven.answer("1", Outcome.RETURNED)  # it is first in line again, and the credit that comes with it takes it out
    driven.lose(b"w")
    assert driven.reported()["oldest_s"] == 7.0


@pytest.mark.parametrize(("tokens", "tokens_per_s"), [(15, 15.0), (0, None)])  # an engine may never tell counts
def test_rates_are_reported_for_the_llm_and_its_workers(tokens: int, tokens_per_s: float | None) -> None:
    driven = Driven()
    driven.after(0.0)
    assert driven.reported()["rows_per_s"] is None
    driven.submit("1", "2")
    driven.answer("1", tokens=tokens)
    driven.answer("2", tokens=tokens)
    driven.release("1", "2")
    driven.after(2.0)
    reported = driven.reported()
    assert (reported["rows_per_s"], reported["tokens_per_s"]) == (1.0, tokens_per_s)
    assert [(one["rows_per_s"], one["tokens_per_s"]) for one in reported["workers"]] == [(1.0, tokens_per_s)]


def test_a_worker_is_busy_while_it_runs_all_that_it_takes() -> None:
    driven = Driven()
    busy: list[bool] = [driven.reported()["workers"][0]["busy"]]
    for name in ("1", "2"):
        driven.submit(name)
        busy.append(driven.reported()["workers"][0]["busy"])
    driven.answer("1")
    busy.append(driven.reported()["workers"][0]["busy"])
    assert busy == [False, False, True, False]
