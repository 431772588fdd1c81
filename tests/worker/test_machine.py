"""The worker's machine, driven by hand: messages, the engine's doings and the time go in, effects are compared."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from genpool.protocol.content import unpack_failure
from genpool.protocol.limits import MAX_COUNT, Limits
from genpool.protocol.messages import (
    Assign,
    AssignRun,
    Drain,
    Goodbye,
    Grant,
    Hello,
    Hold,
    Message,
    Missing,
    Outcome,
    Ping,
    Refuse,
    Resend,
    Reset,
    Result,
    Role,
    Settle,
    Welcome,
    WorkerState,
)
from genpool.protocol.session import Close, Log, Open, Send, SessionSettings, SessionState
from genpool.protocol.trace import short
from genpool.worker.machine import MAX_HELD_BYTES, Exit, Guard, Load, RowResult, StartCall, StopRow, Worker

LOADING = Hello(role=Role.WORKER, instance=b"instance", host="host", pid=1, llm="llm")
READY, UNWELL, DRAINING = WorkerState.READY, WorkerState.UNWELL, WorkerState.DRAINING


def ids(first: int, count: int) -> list[bytes]:
    return [b"row %12d" % number for number in range(first, first + count)]


def payloads(first: int, count: int) -> list[bytes]:
    return [b"%d" % number for number in range(first, first + count)]


def run(first: int, count: int = 1, **said: Any) -> AssignRun:
    defaults: dict[str, Any] = {
        "kind": "input",
        "num_generations": 1,
        "options": b"",
        "seconds_left": None,
        "charged": 0,
    }
    return AssignRun(
        first_execution=first, ids=ids(first, count), payloads=payloads(first, count), **{**defaults, **said}
    )


def start(call: int, first: int, count: int = 1, **said: Any) -> StartCall:
    defaults: dict[str, Any] = {"kind": "input", "num_generations": 1, "options": b""}
    executions = list(range(first, first + count))
    return StartCall(call, executions=executions, payloads=payloads(first, count), **{**defaults, **said})


def hold(*held: tuple[int, bool], more: bool = False) -> Send:
    numbers = [number for number, _ in held]
    names = [ids(number, 1)[0] for number in numbers]
    return Send(Hold(numbers, names, [finished for _, finished in held], more))


def result(*numbers: int, credit: int, outcome: int = Outcome.DONE, tokens: int = 0) -> Send:
    """What ``Bench.done`` has the worker say."""
    answers = [b"answer %d" % number if outcome == Outcome.DONE else b"" for number in numbers]
    return Send(Result(list(numbers), [outcome] * len(numbers), tokens, credit, answers))


class Bench:
    """A worker of ``concurrency`` calls of ``batch_size`` rows, connected to nothing yet."""

    def __init__(
        self,
        concurrency: int = 1,
        batch_size: int = 1,
        wait_s: float | None = None,
        row_timeout_s: float | None = None,
    ) -> None:
        self.now = 100.0
        self.identity = replace(LOADING, model_name="model", concurrency=concurrency, batch_size=batch_size)
        loading = replace(self.identity, model_name="")
        self.worker = Worker("broker", loading, SessionSettings(), lambda: 0.0, self.now, wait_s, row_timeout_s)
        self.logs: list[str] = []

    @classmethod
    def ready(
        cls,
        concurrency: int = 1,
        batch_size: int = 1,
        limits: Limits | None = None,
        row_timeout_s: float | None = None,
    ) -> Bench:
        """One that has loaded and is connected, with nothing to do."""
        bench = cls(concurrency, batch_size, row_timeout_s=row_timeout_s)
        bench.worker.loaded(bench.identity, bench.now)
        bench.connect(limits)
        return bench

    def connect(self, limits: Limits | None = None) -> list[object]:
        """Open a connection and be welcomed; returns what is said then."""
        self.tick()
        if self.worker.state is SessionState.WAITING:
            self.tick(1.0)
        assert self.worker.state is SessionState.GREETING
        return self.tell(Welcome(b"epoch", 1.0, limits or Limits()))

    def tell(self, *messages: Message) -> list[object]:
        for message in messages:
            self.worker.received(message, self.now)
        return self.flush()

    def tick(self, seconds: float = 0.0) -> list[object]:
        """Time passes, and then comes a tick. Pings to the broker are left out."""
        self.now += seconds
        effects = self._effects(self.worker.tick(self.now))
        return [effect for effect in effects if not (isinstance(effect, Send) and isinstance(effect.message, Ping))]

    def flush(self) -> list[object]:
        return self._effects(self.worker.flush(self.now))

    def done(
        self, *executions: int, outcome: int = Outcome.DONE, payload: bytes | None = None, tokens: int = 0
    ) -> None:
        """The engine is done with these rows (its call goes on)."""
        for number in executions:
            answer = b"answer %d" % number if outcome == Outcome.DONE else b""
            ended = RowResult(number, outcome, answer if payload is None else payload, tokens)
            running = next(call.number for call in self.worker.calls.values() if number in call.row_ids)
            self.worker.rows_ended(running, [ended], self.now)

    def end(self, *calls: int) -> list[object]:
        """These calls return; what the worker does then."""
        for call in calls:
            self.worker.call_ended(call, self.now)
        return self.flush()

    def work(self, call: int, *executions: int) -> list[object]:
        """A call ends, with answers to these rows."""
        self.done(*executions)
        return self.end(call)

    def cut(self) -> None:
        self.worker.broken("it was cut", self.now)
        self.flush()

    def picture(self) -> tuple[Any, ...]:
        """All that a message may change."""
        worker = self.worker
        rows = dict(worker.held), dict(worker.finished)
        return worker.state, worker.health.state, *rows, sorted(worker.calls), worker._used, worker._credit()

    def _effects(self, effects: list[object]) -> list[object]:
        self.logs += [effect.text for effect in effects if isinstance(effect, Log)]
        return [effect for effect in effects if not isinstance(effect, Log)]


# Hello.


def test_it_says_hello_at_once_in_state_loading_without_credit() -> None:
    bench = Bench(concurrency=4)
    assert bench.tick() == [Open(), Send(replace(bench.identity, model_name="", state="loading", credit=0))]
    assert bench.tell(Welcome(b"epoch", 1.0, Limits())) == [hold()]


def test_it_says_hello_again_with_its_credit_when_it_is_ready() -> None:
    bench = Bench(concurrency=4)
    bench.connect()
    bench.worker.loaded(bench.identity, bench.now)
    assert bench.flush() == [Send(replace(bench.identity, state="ready", credit=4))]
    assert bench.flush() == []


def test_an_llm_loaded_before_the_broker_is_there_is_announced_once() -> None:
    bench = Bench(concurrency=4)
    bench.worker.loaded(bench.identity, bench.now)
    assert bench.tick() == [Open(), Send(replace(bench.identity, state="ready", credit=4))]
    assert bench.tell(Welcome(b"epoch", 1.0, Limits())) == [hold()]


def test_an_llm_loaded_between_hello_and_welcome_is_announced_after_it() -> None:
    bench = Bench(concurrency=4)
    bench.tick()
    bench.worker.loaded(bench.identity, bench.now)
    assert bench.flush() == []
    ready = Send(replace(bench.identity, state="ready", credit=4))
    assert bench.tell(Welcome(b"epoch", 1.0, Limits())) == [hold(), ready]


def test_a_refused_worker_stays_away() -> None:
    bench = Bench()
    bench.tick()
    assert bench.tell(Refuse("another version")) == [Close()]
    assert (bench.worker.state, bench.worker.trouble) == (SessionState.REFUSED, "another version")
    assert bench.tick(100.0) == []


# Credit.


def test_the_results_of_one_moment_and_the_credit_for_their_place_are_one_message() -> None:
    bench = Bench.ready(batch_size=3)
    bench.tell(Assign([run(0, 3)]), Settle([1]))
    results = [RowResult(number, Outcome.DONE, b"answer %d" % number, tokens=2) for number in range(3)]
    bench.worker.rows_ended(0, results, bench.now)
    assert bench.end(0) == [result(0, 2, credit=2, tokens=4)]


def test_more_tokens_than_a_message_can_carry_are_as_many_as_it_can() -> None:
    bench = Bench.ready(batch_size=3)
    bench.tell(Assign([run(0, 3)]))
    bench.worker.rows_ended(0, [RowResult(number, Outcome.DONE, b"", MAX_COUNT) for number in range(3)], bench.now)
    (sent,) = bench.end(0)
    assert sent_result(sent).tokens == MAX_COUNT


def test_a_row_is_run_answered_and_kept_until_it_is_settled() -> None:
    bench = Bench.ready()
    assert bench.tell(Assign([run(7, num_generations=3, options=b"hot", kind="prompt", trace="trace")])) == [
        start(0, 7, num_generations=3, options=b"hot", kind="prompt", trace="trace")
    ]
    bench.done(7, tokens=5)
    # The answer goes out before the call ends; the credit comes when its place is free.
    assert bench.flush() == [result(7, credit=1, tokens=5)]
    assert bench.end(0) == [Send(Grant(2, READY))]
    assert list(bench.worker.held) == [7]
    assert bench.tell(Settle([7])) == []
    assert not bench.worker.held


def test_credit_is_what_was_handed_out_and_what_is_free() -> None:
    bench = Bench.ready(concurrency=3)
    assert bench.tell(Assign([run(0, 2)])) == [start(0, 0), start(1, 1)]
    assert bench.work(0, 0) == [result(0, credit=4)]
    assert bench.tell(Assign([run(2, 2)])) == [start(2, 2), start(3, 3)]
    bench.done(2)
    assert bench.work(3, 3) == [result(2, 3, credit=5)]
    assert bench.end(1, 2) == [Send(Grant(7, READY))]


def test_rows_of_one_assignment_that_end_together_are_answered_in_one_message() -> None:
    bench = Bench.ready(concurrency=3)
    bench.tell(Assign([run(0, 3)]))
    bench.done(0, 1, 2, tokens=2)
    assert bench.end(0, 1, 2) == [result(0, 1, 2, credit=6, tokens=6)]


def test_a_run_is_one_call_of_a_batch_engine_and_one_of_its_credit() -> None:
    bench = Bench.ready(concurrency=2, batch_size=4)
    assert bench.tell(Assign([run(0, 4), run(4, 2)])) == [start(0, 0, 4), start(1, 4, 2)]
    assert bench.work(1, 4, 5) == [result(4, 5, credit=3)]
    assert bench.tell(Assign([run(6, 4)])) == [start(2, 6, 4)]
    bench.done(0)
    assert bench.flush() == [result(0, credit=3)]  # its call goes on
    bench.done(1, 2, 3)
    assert bench.end(0) == [result(1, 2, 3, credit=4)]


def test_a_run_longer_than_a_call_is_as_many_calls() -> None:
    bench = Bench.ready(concurrency=3, batch_size=2)
    assert bench.tell(Assign([run(0, 5)])) == [start(0, 0, 2), start(1, 2, 2), start(2, 4)]
    bench.end(0, 1, 2)
    assert bench.worker._credit() == 6


def test_what_comes_beyond_its_places_is_handed_back_and_never_runs() -> None:
    bench = Bench.ready(concurrency=2)
    returned = result(2, 3, credit=4, outcome=Outcome.RETURNED)
    assert bench.tell(Assign([run(0, 4)])) == [start(0, 0), start(1, 1), returned]
    assert bench.work(0, 0) == [result(0, credit=5)]
    assert bench.tell(Assign([run(4, 2)])) == [start(2, 4), result(5, credit=6, outcome=Outcome.RETURNED)]
    bench.tell(Settle([0, 2, 3, 5]))
    assert bench.end(1, 2) == [Send(Grant(8, READY))]


def test_a_batch_beyond_its_places_is_handed_back_as_a_whole() -> None:
    bench = Bench.ready(batch_size=2)
    assert bench.tell(Assign([run(0, 2), run(2, 2)])) == [
        start(0, 0, 2),
        result(2, 3, credit=2, outcome=Outcome.RETURNED),
    ]


def test_no_more_is_asked_for_while_too_many_bytes_of_answers_wait_for_their_clients() -> None:
    bench = Bench.ready(concurrency=2, limits=Limits(max_row_bytes=MAX_HELD_BYTES))
    bench.tell(Assign([run(0, 2)]))
    half = b"x" * (MAX_HELD_BYTES // 2 + 1)
    bench.done(0, payload=half)
    (sent,) = bench.end(0)
    assert isinstance(sent, Send)
    assert isinstance(sent.message, Result)
    assert sent.message.credit == 3
    bench.done(1, payload=half)
    (sent,) = bench.end(1)
    assert isinstance(sent, Send)
    assert isinstance(sent.message, Result)
    assert sent.message.credit == 2
    assert bench.tell(Settle([0])) == [Send(Grant(4, READY))]


def test_an_assignment_that_comes_twice_counts_once() -> None:
    bench = Bench.ready(concurrency=2)
    assert bench.tell(Assign([run(0)])) == [start(0, 0)]
    assert bench.tell(Assign([run(0)])) == []
    assert bench.work(0, 0) == [result(0, credit=3)]
    assert bench.tell(Assign([run(0)])) == []


# Settle and Resend.


def test_a_settled_row_that_runs_is_stopped_and_its_place_is_free_when_its_call_ends() -> None:
    bench = Bench.ready()
    bench.tell(Assign([run(0)]))
    assert bench.tell(Settle([0])) == [StopRow(0)]
    assert bench.tell(Settle([0])) == []
    bench.done(0)
    assert bench.flush() == []
    assert bench.end(0) == [Send(Grant(2, READY))]


def test_a_row_settled_before_its_answer_was_sent_is_not_answered() -> None:
    bench = Bench.ready()
    bench.tell(Assign([run(0)]))
    bench.done(0)
    bench.worker.received(Settle([0]), bench.now)
    assert bench.end(0) == [Send(Grant(2, READY))]


def test_answers_are_sent_again_when_they_are_asked_for() -> None:
    bench = Bench.ready(concurrency=3)
    bench.tell(Assign([run(0, 3)]))
    bench.done(0, 1)
    bench.end(0, 1)
    assert bench.tell(Resend([0, 1, 2, 99])) == [result(0, 1, credit=5)]
    bench.tell(Settle([1]))
    assert bench.tell(Resend([0, 1])) == [result(0, credit=5)]


def test_answers_are_sent_in_messages_of_bounded_size_and_count() -> None:
    bench = Bench.ready(concurrency=9, limits=Limits(target_message_bytes=100, max_rows=3))
    bench.tell(Assign([run(0, 9)]))
    bench.done(0, 1, payload=b"x" * 60)
    bench.done(2, payload=b"x" * 500)
    bench.done(3, 4, 5, 6, payload=b"x")
    sent = [effect.message for effect in bench.flush() if isinstance(effect, Send)]
    assert [message.executions for message in sent if isinstance(message, Result)] == [[0], [1], [2], [3, 4, 5], [6]]


def test_an_answer_over_the_brokers_limit_fails_its_row_in_a_sentence() -> None:
    bench = Bench.ready(limits=Limits(max_row_bytes=1000))
    bench.tell(Assign([run(0)]))
    bench.done(0, payload=b"x" * 1001)
    (sent,) = bench.flush()
    assert isinstance(sent, Send)
    assert isinstance(sent.message, Result)
    assert sent.message.outcomes == [Outcome.FAILED]
    failure = unpack_failure(sent.message.payloads[0])
    assert failure.message == "the answer has 1001 bytes and this broker carries answers of up to 1000"
    assert (failure.type, failure.builtin, failure.host) == ("RowError", "ValueError", "host")
    assert bench.worker.held_bytes == len(sent.message.payloads[0])


# New connections.


def test_a_new_connection_tells_what_is_held_and_counts_credit_anew() -> None:
    bench = Bench.ready(concurrency=4)
    bench.tell(Assign([run(0, 3)]))
    bench.work(0, 0)
    bench.cut()
    bench.work(1, 1)
    effects = bench.tick(1.0)
    assert effects == [Open(), Send(replace(bench.identity, state="ready", credit=3))]
    assert bench.tell(Welcome(b"epoch", 1.0, Limits())) == [hold((0, True), (1, True), (2, False))]
    assert bench.tell(Resend([0, 1])) == [result(0, 1, credit=3)]
    assert bench.work(2, 2) == [result(2, credit=4)]


def test_answers_that_came_between_hello_and_welcome_are_told_of_and_not_sent_unasked() -> None:
    bench = Bench.ready()
    bench.tell(Assign([run(0)]))
    bench.cut()
    bench.tick(1.0)
    bench.work(0, 0)
    assert bench.tell(Welcome(b"epoch", 1.0, Limits())) == [hold((0, True)), Send(Grant(1, READY))]


def test_what_is_held_is_told_in_messages_of_bounded_count() -> None:
    bench = Bench.ready(concurrency=5)
    bench.tell(Assign([run(0, 5)]))
    bench.cut()
    effects = bench.connect(Limits(max_rows=2))
    assert effects == [
        hold((0, False), (1, False), more=True),
        hold((2, False), (3, False), more=True),
        hold((4, False)),
    ]


@pytest.mark.parametrize("count", [0, 2])
def test_a_ledger_that_differs_ends_the_connection(count: int) -> None:
    bench = Bench.ready(concurrency=2)
    bench.tell(Assign([run(0)]))
    assert bench.tell(Ping(1), Ping(None)) == []
    reason = f"it counts {count} rows here and I hold 1"
    assert bench.tell(Ping(count)) == [Send(Reset(reason)), Close(1.0)]
    assert bench.logs == [f"lost the broker at broker ({reason}); trying again"]
    assert bench.connect() == [hold((0, False))]


@pytest.mark.parametrize("message", [Reset("say hello first"), Goodbye("it was stopped")])
def test_a_connection_that_the_broker_ends_is_opened_anew(message: Message) -> None:
    bench = Bench.ready()
    bench.tell(Assign([run(0)]))
    assert bench.tell(message) == [Close()]
    assert bench.connect() == [hold((0, False))]


def test_a_row_goes_on_without_a_connection() -> None:
    bench = Bench.ready()
    bench.tell(Assign([run(0)]))
    bench.cut()
    assert bench.work(0, 0) == []
    assert bench.connect() == [hold((0, True))]


def test_a_message_that_is_not_for_a_worker_is_passed_over() -> None:
    bench = Bench.ready()
    assert bench.tell(Missing(ids(0, 1))) == []
    assert bench.logs == ["the broker sent a Missing, which is not for a worker"]


def test_it_pings_without_a_count_for_it_writes_no_ledger() -> None:
    bench = Bench.ready()
    assert bench._effects(bench.worker.tick(bench.now + 1.0)) == [Send(Ping(None))]


# Drain.


def test_a_drain_finishes_what_runs() -> None:
    bench = Bench.ready()
    bench.tell(Assign([run(0)]))
    bench.worker.drain(bench.now)
    assert bench.flush() == [Send(Grant(1, DRAINING, "it was told to stop"))]
    assert bench.logs == ["this worker drains: it was told to stop"]
    assert bench.tick(6.0) == []  # it runs as long as it takes
    assert bench.work(0, 0) == [result(0, credit=1)]
    assert bench.tick(0.1) == []  # until its client has the answer
    bench.tell(Settle([0]))
    assert bench.tick(0.1) == [Send(Goodbye("it was told to stop")), Close(linger_s=1.0), Exit(0)]
    assert bench.tick(100.0) == []


def test_a_drained_worker_does_not_wait_for_ever_for_clients_to_take_their_answers() -> None:
    bench = Bench.ready()
    bench.tell(Assign([run(0)]))
    bench.worker.drain(bench.now)
    bench.work(0, 0)
    assert bench.tick() == []
    assert bench.tick(5.0) == []
    assert bench.tick(0.1)[-1] == Exit(0)


def test_an_idle_worker_drains_at_once() -> None:
    bench = Bench.ready()
    bench.worker.drain(bench.now)
    assert bench.flush() == [Send(Grant(0, DRAINING, "it was told to stop"))]
    assert bench.tick() == [Send(Goodbye("it was told to stop")), Close(linger_s=1.0), Exit(0)]


def test_rows_that_cross_a_drain_are_handed_back() -> None:
    bench = Bench.ready()
    bench.worker.drain(bench.now)
    bench.flush()
    assert bench.tell(Assign([run(0)])) == [Send(Result([0], [Outcome.RETURNED], 0, 1, [b""]))]


def test_a_worker_that_still_loads_leaves_at_once() -> None:
    bench = Bench()
    bench.connect()
    bench.worker.drain(bench.now)
    assert bench.flush() == [Send(Goodbye("it was told to stop")), Close(linger_s=1.0), Exit(0)]


def test_a_worker_without_a_broker_leaves_at_once() -> None:
    bench = Bench.ready()
    bench.cut()
    bench.worker.drain(bench.now)
    assert bench.tick() == [Exit(0)]


def test_a_drain_outlasts_a_cut() -> None:
    bench = Bench.ready(concurrency=2)
    bench.tell(Assign([run(0)]))
    bench.worker.drain(bench.now)
    bench.cut()
    effects = bench.tick(1.0)
    assert effects == [
        Open(),
        Send(replace(bench.identity, state="draining", reason="it was told to stop", credit=0)),
    ]
    assert bench.tell(Welcome(b"epoch", 1.0, Limits())) == [hold((0, False))]


def test_the_broker_can_have_it_drain() -> None:
    bench = Bench.ready(concurrency=2)
    bench.tell(Assign([run(0)]))
    assert bench.tell(Drain("so says an admin")) == [Send(Grant(1, DRAINING, "so says an admin"))]
    assert bench.logs == ["this worker drains: so says an admin"]
    assert bench.tell(Drain("so says an admin"), Assign([run(1)])) == [
        Send(Result([1], [Outcome.RETURNED], 0, 2, [b""]))
    ]
    assert len(bench.logs) == 1
    bench.work(0, 0)
    bench.tell(Settle([0, 1]))
    assert bench.tick(0.1) == [Send(Goodbye("so says an admin")), Close(linger_s=1.0), Exit(0)]


def test_the_broker_can_have_one_drain_that_still_loads() -> None:
    bench = Bench()
    bench.connect()
    assert bench.tell(Drain("")) == [Send(Goodbye("")), Close(linger_s=1.0), Exit(0)]


# Unwell.


def test_an_unwell_worker_hands_back_grants_nothing_and_probes_with_one_call() -> None:
    bench = Bench.ready(concurrency=2)
    bench.tell(Assign([run(0, 2)]))
    bench.worker.unwell("no quota", bench.now)
    bench.done(0, outcome=Outcome.RETURNED)
    assert bench.end(0) == [
        result(0, credit=2, outcome=Outcome.RETURNED),
        Send(Grant(2, UNWELL, "no quota")),
    ]
    assert bench.tell(Assign([run(2)])) == [result(2, credit=3, outcome=Outcome.RETURNED)]
    assert bench.logs == ["'llm' is unwell: no quota"]
    bench.done(1, outcome=Outcome.RETURNED)
    assert bench.end(1) == [result(1, credit=3, outcome=Outcome.RETURNED)]
    assert bench.tick(0.9) == []
    assert bench.tick(0.2) == [Send(Grant(4, UNWELL, "no quota"))]  # until it has shown that it is well
    assert bench.tell(Assign([run(3)])) == [start(2, 3)]
    assert bench.work(2, 3) == [result(3, credit=6), Send(Grant(6, READY))]  # all its places are there again


def test_an_llm_that_stays_unwell_is_probed_ever_more_seldom() -> None:
    bench = Bench.ready()
    waits: list[float] = []
    for number in range(8):
        bench.tell(Assign([run(number)]))
        bench.worker.unwell("no server", bench.now)
        bench.done(number, outcome=Outcome.RETURNED)
        bench.end(number)
        since = bench.now
        while not bench.worker.health.takes_rows:
            assert bench.worker.health.state is UNWELL
            bench.tick(0.5)
            bench.tell(Ping(None))
        waits.append(bench.now - since)
    assert waits == [1, 2, 4, 8, 16, 30, 30, 30]


def test_calls_that_find_it_unwell_together_lengthen_the_wait_once() -> None:
    bench = Bench.ready(concurrency=16)
    bench.tell(Assign([run(0, 16)]))
    for number in range(16):
        bench.worker.unwell("no server", bench.now)
        bench.done(number, outcome=Outcome.RETURNED)
    bench.end(*range(16))
    bench.tick(1.0)
    assert bench.worker.health.takes_rows
    assert bench.logs == ["'llm' is unwell: no server"]


def test_an_unwell_worker_that_could_be_tried_and_is_given_no_row_calls_itself_ready() -> None:
    bench = Bench.ready(concurrency=2)
    bench.worker.unwell("no server", bench.now)
    bench.flush()
    assert bench.tick(1.0) == [Send(Grant(1, UNWELL, "no server"))]
    assert bench.tick(0.9) == []
    assert bench.tick(0.2) == [Send(Grant(1, READY))]
    bench.tell(Assign([run(0)]))
    bench.worker.unwell("still no server", bench.now)
    bench.done(0, outcome=Outcome.RETURNED)
    assert bench.end(0)[-1] == Send(Grant(1, UNWELL, "still no server"))


def unwell_with_old_calls(concurrency: int, count: int) -> Bench:
    """An unwell worker whose engine still works on so many rows of before."""
    bench = Bench.ready(concurrency)
    bench.tell(Assign([run(0, count)]))
    bench.worker.unwell("no server", bench.now)
    bench.flush()
    return bench


def test_an_unwell_worker_is_tried_with_one_call_whatever_still_runs_of_before() -> None:
    bench = unwell_with_old_calls(4, count=2)
    assert bench.tick(1.0) == [Send(Grant(3, UNWELL, "no server"))]
    assert bench.tell(Assign([run(2)])) == [start(2, 2)]
    assert bench.tick(1.5) == []  # the one that it is tried with has not ended
    assert bench.work(2, 2) == [result(2, credit=5), Send(Grant(5, READY))]
    assert bench.tell(Assign([run(3, 2)])) == [start(3, 3), start(4, 4)]


def test_an_unwell_worker_whose_old_calls_leave_no_place_is_tried_when_one_of_them_has_ended() -> None:
    bench = unwell_with_old_calls(2, count=2)
    assert bench.tick(1.0) == []
    assert bench.tick(1.5) == []  # it has asked for no row, and is not well for being given none
    bench.done(0, outcome=Outcome.RETURNED)
    assert bench.end(0) == [result(0, credit=3, outcome=Outcome.RETURNED)]
    assert bench.tell(Assign([run(2)])) == [start(2, 2)]


def test_an_unwell_worker_that_is_given_no_row_calls_itself_ready_though_an_old_one_runs() -> None:
    bench = unwell_with_old_calls(2, count=1)
    assert bench.tick(1.0) == [Send(Grant(2, UNWELL, "no server"))]
    assert bench.tick(0.9) == []
    assert bench.tick(0.2) == [Send(Grant(2, READY))]


def test_an_unwell_worker_whose_server_answers_that_a_row_is_bad_is_well() -> None:
    bench = Bench.ready(concurrency=2)
    bench.worker.unwell("no server", bench.now)
    bench.tick(1.0)
    bench.tell(Assign([run(0)]))
    bench.done(0, outcome=Outcome.FAILED)
    bench.end(0)
    assert (bench.worker.health.state, bench.worker.health.reason) == (READY, "")


def test_an_llm_whose_server_is_not_there_yet_is_loaded_again_and_again_until_it_is() -> None:
    bench = Bench(concurrency=2)
    bench.connect()
    bench.worker.unwell("no server", bench.now)
    assert bench.flush() == [Send(Grant(0, UNWELL, "no server"))]
    waits: list[float] = []
    for _ in range(4):
        since = bench.now
        while Load() not in (effects := bench.tick(0.5)):
            assert effects == []
            bench.tell(Ping(None))
        waits.append(bench.now - since)
        bench.worker.unwell("no server", bench.now)
        assert bench.flush() == []
    assert waits == [1, 2, 4, 8]
    assert bench.logs == ["'llm' is unwell: no server"]
    bench.worker.loaded(bench.identity, bench.now)
    assert bench.flush() == [Send(replace(bench.identity, state="ready", credit=2))]


def test_another_reason_for_being_unwell_is_told() -> None:
    bench = Bench()
    bench.connect()
    for reason in ("no server", "wrong key"):
        bench.worker.unwell(reason, bench.now)
        assert bench.flush() == [Send(Grant(0, UNWELL, reason))]
        bench.tick(1.0)


def test_an_llm_that_could_not_be_loaded_yet_does_not_keep_its_worker_from_ending() -> None:
    bench = Bench()
    bench.connect()
    bench.worker.unwell("no server", bench.now)
    bench.worker.drain(bench.now)
    assert bench.flush() == [Send(Goodbye("it was told to stop")), Close(linger_s=1.0), Exit(0)]


@pytest.mark.parametrize("connected", [False, True])
def test_a_worker_that_waits_for_its_first_broker_no_longer_than_it_was_told_to(connected: bool) -> None:
    bench = Bench(wait_s=3.0)
    if connected:
        bench.connect()
        bench.cut()
    assert Exit(3) not in bench.tick(2.9)
    assert (Exit(3) in bench.tick(0.2)) is not connected
    assert any(log.startswith("no broker at broker in the time given") for log in bench.logs) is not connected
    assert Exit(3) not in bench.tick(0.5)


def test_a_worker_that_has_given_up_says_no_more() -> None:
    bench = Bench(wait_s=1.0)
    bench.tick()
    assert bench.tick(1.1)[-1] == Exit(3)
    assert bench.tick(1.1) == []
    assert bench.logs == ["no broker at broker in the time given: it has not answered yet"]


def test_an_unwell_worker_that_is_told_to_stop_drains() -> None:
    bench = Bench.ready()
    bench.worker.drain(bench.now)
    bench.worker.unwell("no server", bench.now)
    assert bench.worker.health.state is DRAINING
    assert bench.tick()[-1] == Exit(0)


def test_an_unwell_worker_says_why_in_the_hello_of_a_new_connection() -> None:
    bench = Bench.ready()
    bench.worker.unwell("no server", bench.now)
    bench.cut()
    effects = bench.tick(0.5)
    assert effects == [Open(), Send(replace(bench.identity, state="unwell", reason="no server", credit=0))]


# Rows that run too long.


def timed(concurrency: int = 1, batch_size: int = 1) -> Bench:
    return Bench.ready(concurrency, batch_size, row_timeout_s=10.0)


def wait(bench: Bench, seconds: float) -> list[object]:
    """Time passes as it does for a process that runs, with a broker that is alive; guards are left out."""
    effects: list[object] = []
    for _ in range(round(seconds * 2)):
        effects += bench.tick(0.5)
        effects += bench.tell(Ping(None))
    return [effect for effect in effects if not isinstance(effect, Guard)]


def sent_result(effect: object) -> Result:
    assert isinstance(effect, Send)
    assert isinstance(effect.message, Result)
    return effect.message


def test_a_row_may_run_for_ever_without_a_limit() -> None:
    bench = Bench.ready()
    assert bench.tell(Assign([run(0)])) == [start(0, 0)]
    assert wait(bench, 100_000 / 500) == []


def test_a_row_that_runs_too_long_is_aborted_and_charged_and_the_worker_goes_on() -> None:
    bench = timed(concurrency=2)
    bench.tell(Assign([run(0, 2)]))
    bench.work(1, 1)
    assert wait(bench, 10.0) == []
    assert wait(bench, 0.5) == [StopRow(0)]
    assert wait(bench, 2.5) == []
    bench.done(0, outcome=Outcome.RETURNED)  # as every engine answers a row that it has aborted
    (sent,) = bench.end(0)
    answer = sent_result(sent)
    assert (answer.executions, answer.outcomes, answer.credit) == ([0], [Outcome.RAISED], 4)
    failure = unpack_failure(answer.payloads[0])
    assert (failure.type, failure.builtin, failure.host) == ("TimeoutError", "TimeoutError", "host")
    assert failure.message == "the row ran for longer than 10 s and was ended (--row-timeout)"
    assert wait(bench, 20.0) == []
    assert bench.worker.health.state is READY
    assert bench.logs == [f"row {short(ids(0, 1)[0])} of 'llm' failed: {failure.message}"]


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.RAISED])
def test_what_an_engine_says_of_a_row_that_it_was_told_to_end_is_that_it_took_too_long(outcome: Outcome) -> None:
    bench = timed()
    bench.tell(Assign([run(0)]))
    wait(bench, 10.5)
    bench.done(0, outcome=outcome)
    assert sent_result(bench.end(0)[0]).outcomes == [Outcome.RAISED]


def test_an_answer_that_comes_while_its_row_is_aborted_is_taken() -> None:
    bench = timed()
    bench.tell(Assign([run(0)]))
    wait(bench, 10.5)
    assert sent_result(bench.work(0, 0)[0]) == result(0, credit=2).message
    assert bench.worker.health.state is READY


def test_an_engine_that_does_not_abort_ends_its_process_once_all_that_is_finished_was_taken() -> None:
    bench = timed(concurrency=4)
    bench.tell(Assign([run(0, 3)]))
    bench.work(2, 2)
    wait(bench, 8.0)
    bench.tell(Assign([run(3)]))
    assert wait(bench, 2.5) == [StopRow(0), StopRow(1)]
    bench.work(1, 1)
    effects = wait(bench, 3.5)
    assert effects[0] == StopRow(3)
    answer = sent_result(effects[1])
    assert (answer.executions, answer.outcomes) == ([0, 3], [Outcome.RAISED, Outcome.RETURNED])
    assert effects[2:] == [Send(Grant(answer.credit, UNWELL, "its engine does not end a row"))]
    assert bench.logs[-1] == (
        f"the engine did not end row {short(ids(0, 1)[0])} within 10 s nor within 3 s after it was told to end; "
        "this process ends"
    )
    bench.tell(Settle([0, 1, 3]))
    assert bench.tick(0.1)[:-1] == []  # the answer to 2 is still on its way
    bench.tell(Settle([2]))
    assert bench.tick(0.1)[-3:] == [Send(Goodbye("its engine does not end a row")), Close(1.0), Exit(70)]


def test_a_worker_whose_engine_hangs_does_not_wait_for_ever_for_clients_to_take_their_answers() -> None:
    bench = timed()
    bench.tell(Assign([run(0)]))
    assert Exit(70) not in wait(bench, 18.0)
    assert wait(bench, 1.5)[-1] == Exit(70)


def test_rows_that_overrun_together_are_all_charged() -> None:
    bench = timed(concurrency=2)
    bench.tell(Assign([run(0)]))
    wait(bench, 1.0)
    bench.tell(Assign([run(1)]))
    (answer,) = [
        effect for effect in wait(bench, 13.0) if isinstance(effect, Send) and isinstance(effect.message, Result)
    ]
    assert sent_result(answer).outcomes == [Outcome.RAISED] * 2


def test_a_batch_that_hangs_is_charged_by_the_end_of_its_process_for_none_of_its_rows_is_known_to_be_at_fault() -> None:
    bench = timed(concurrency=2, batch_size=3)
    bench.tell(Assign([run(0, 3)]))
    wait(bench, 5.0)
    bench.tell(Assign([run(3)]))
    effects = wait(bench, 9.0)
    (answer,) = [effect for effect in effects if isinstance(effect, Send) and isinstance(effect.message, Result)]
    assert (sent_result(answer).executions, sent_result(answer).outcomes) == ([3], [Outcome.RETURNED])
    bench.tell(Settle([3]))
    assert bench.tick(0.1)[-2:] == [Close(1.0), Exit(70)]  # no goodbye


def test_a_row_of_a_batch_that_is_tried_alone_may_run_as_long_as_any_other() -> None:
    bench = timed(batch_size=3)
    bench.tell(Assign([run(0, 3)]))
    wait(bench, 9.0)
    bench.done(0, outcome=Outcome.FAILED)
    wait(bench, 9.0)
    assert wait(bench, 2.0) == [StopRow(1), StopRow(2)]
    bench.done(1, outcome=Outcome.RAISED)
    answer = sent_result(bench.end(0)[0])
    assert (answer.executions, answer.outcomes) == ([1, 2], [Outcome.RAISED, Outcome.RETURNED])


def test_a_batch_that_fails_as_a_whole_after_it_was_told_to_end_is_charged_by_the_end_of_its_process() -> None:
    bench = timed(batch_size=2)
    bench.tell(Assign([run(0, 2)]))
    wait(bench, 10.5)
    bench.end(0)
    assert [effect for effect in bench.tick(0.1) if not isinstance(effect, Guard)] == [Close(1.0), Exit(70)]


def test_a_cancelled_row_that_the_engine_does_not_end_ends_the_process_and_charges_nobody() -> None:
    bench = timed()
    bench.tell(Assign([run(0)]))
    assert StopRow(0) in bench.tell(Settle([0]))
    effects = wait(bench, 14.0)
    assert effects[-3:] == [Send(Goodbye("its engine does not end a row")), Close(1.0), Exit(70)]
    assert not [effect for effect in effects if isinstance(effect, Send) and isinstance(effect.message, Result)]


def test_what_was_handed_back_is_not_answered_again() -> None:
    bench = timed(concurrency=2)
    bench.tell(Assign([run(0)]))
    wait(bench, 10.0)
    bench.tell(Assign([run(1)]))
    wait(bench, 4.0)
    bench.done(1)
    assert not [effect for effect in bench.end(1) if isinstance(effect, Send) and isinstance(effect.message, Result)]


def test_a_process_that_stood_still_does_not_hold_that_against_its_rows() -> None:
    bench = timed()
    bench.tell(Assign([run(0)]))
    wait(bench, 8.0)
    bench.tick(60.0)
    bench.connect()  # which takes a second
    assert StopRow(0) not in wait(bench, 1.0)
    assert StopRow(0) in wait(bench, 1.0)


def test_a_drain_does_not_wait_for_a_row_that_never_ends() -> None:
    bench = timed()
    bench.tell(Assign([run(0)]))
    bench.worker.drain(bench.now)
    wait(bench, 14.0)
    bench.tell(Settle([0]))
    assert bench.tick(0.1)[-1] == Exit(70)


def test_the_process_is_guarded_while_a_call_runs_and_no_longer() -> None:
    bench = timed()
    assert bench.tick(0.1) == []
    assert bench.tell(Assign([run(0)])) == [Guard(15.0), start(0, 0)]
    assert bench.tick(0.1) == [Guard(15.0)]
    bench.work(0, 0)
    assert bench.tick(0.1) == [Guard(None)]
    assert bench.tick(0.1) == []


def test_a_dead_engine_hands_over_what_is_finished_and_leaves_without_a_goodbye() -> None:
    bench = Bench.ready(concurrency=2)
    bench.tell(Assign([run(0, 2)]))
    bench.done(0)
    bench.worker.crash(bench.now)
    assert bench.flush() == [result(0, credit=2), Close(1.0), Exit(70)]
    assert bench.tick(1.0) == []


# Every message in every state: twice, late, and from another life.


def loading() -> Bench:
    bench = Bench(concurrency=2, row_timeout_s=10.0)
    bench.connect()
    return bench


def at_work() -> Bench:
    """One row finished, one running, one handed back; one place free."""
    bench = Bench.ready(concurrency=2, row_timeout_s=10.0)
    bench.tell(Assign([run(0, 3)]))
    bench.work(0, 0)
    return bench


def greeting() -> Bench:
    bench = at_work()
    bench.cut()
    bench.tick(1.0)
    return bench


def cut_off() -> Bench:
    bench = at_work()
    bench.cut()
    return bench


def unwell() -> Bench:
    bench = at_work()
    bench.worker.unwell("no quota", bench.now)
    bench.flush()
    return bench


def on_probation() -> Bench:
    bench = unwell()
    bench.tick(1.0)
    return bench


def draining() -> Bench:
    bench = at_work()
    bench.worker.drain(bench.now)
    bench.flush()
    return bench


def overrun() -> Bench:
    bench = at_work()
    wait(bench, 10.5)
    return bench


def given_up() -> Bench:
    bench = at_work()
    wait(bench, 14.0)
    return bench


def crashed() -> Bench:
    bench = at_work()
    bench.worker.crash(bench.now)
    bench.flush()
    return bench


def refused() -> Bench:
    bench = at_work()
    bench.tell(Refuse("another version"))
    return bench


STATES = {
    one.__name__: one
    for one in (
        loading,
        at_work,
        greeting,
        cut_off,
        unwell,
        on_probation,
        draining,
        overrun,
        given_up,
        crashed,
        refused,
    )
}
MESSAGES: dict[str, Message] = {
    "welcome": Welcome(b"epoch", 1.0, Limits()),
    "welcome of another life": Welcome(b"another", 1.0, Limits(max_rows=1, target_message_bytes=1)),
    "welcome of another version": Welcome(b"epoch", 1.0, Limits(), version=99),
    "refuse": Refuse("another version"),
    "reset": Reset("say hello first"),
    "goodbye": Goodbye("it was stopped"),
    "ping": Ping(None),
    "ping that counts": Ping(3),
    "ping that differs": Ping(77),
    "assign": Assign([run(10, 2)]),
    "assign again": Assign([run(0, 3)]),
    "assign none": Assign([]),
    "assign too much": Assign([run(20, 50)]),
    "assign of another life": Assign([run(1 << 60)]),
    "settle running": Settle([1]),
    "settle finished": Settle([0]),
    "settle handed back": Settle([2]),
    "settle unknown": Settle([1 << 60, 99]),
    "settle twice in one": Settle([0, 0, 1, 1]),
    "resend finished": Resend([0]),
    "resend running": Resend([1]),
    "resend unknown": Resend([1 << 60, 99]),
    "hello": LOADING,
    "missing": Missing(ids(0, 1)),
    "grant": Grant(7, READY),
}


def check(bench: Bench, effects: list[object], after: tuple[str, str]) -> None:
    """What must hold of a worker at any time."""
    worker = bench.worker
    assert len(worker.calls) <= worker.identity.concurrency, after
    assert worker.finished.keys() <= worker.held.keys(), after
    assert worker.held_bytes == sum(len(result.payload) for result in worker.finished.values()), after
    free = worker._credit() - worker._used
    assert 0 <= free <= worker.identity.concurrency, after
    assert free == 0 or worker.health.takes_rows, after
    started = [number for effect in effects if isinstance(effect, StartCall) for number in effect.executions]
    assert len(started) == len(set(started)), after
    assert not started or worker.health.takes_rows, after


def finish_all(bench: Bench) -> None:
    """The engine ends all that runs, however it was told to."""
    for call in list(bench.worker.calls.values()):
        bench.done(*call.row_ids)
        bench.end(call.number)


@pytest.mark.parametrize("state", STATES)
def test_any_two_messages_and_both_again_break_nothing(state: str) -> None:
    for first, second in product(MESSAGES, MESSAGES):
        bench = STATES[state]()
        for what in (first, second, first, second):
            check(bench, bench.tell(MESSAGES[what]), (first, second))
            check(bench, bench.tick(0.1), (first, second))
        finish_all(bench)
        check(bench, [], (first, second))
        assert not bench.worker.calls, (first, second)


@pytest.mark.parametrize("state", STATES)
def test_a_message_that_comes_twice_is_not_worked_on_twice(state: str) -> None:
    for what, message in MESSAGES.items():
        bench = STATES[state]()
        bench.tell(message)
        before = bench.picture()
        again = bench.tell(message)
        assert bench.picture() == before, what
        assert not [effect for effect in again if isinstance(effect, (StartCall, StopRow, Exit))], what


@pytest.mark.parametrize("state", ["cut_off", "crashed", "refused"])
def test_a_message_of_a_connection_that_is_gone_changes_nothing(state: str) -> None:
    for what, message in MESSAGES.items():
        bench = STATES[state]()
        assert bench.tell(message) == [], what
        assert sorted(bench.worker.held) == [0, 1, 2], what
