from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from genpool.broker import report as module
from genpool.broker.machine import Broker
from genpool.broker.settings import BrokerSettings
from genpool.broker.tally import LAG_BOUNDS_S, LoopTally
from genpool.protocol.codec import decode, encode
from genpool.protocol.messages import (
    Goodbye,
    Hello,
    Hold,
    Outcome,
    Result,
    Role,
    Status,
    Submit,
    SubmitRun,
    WorkerState,
)

IDLE_LOOP = {
    "received_bytes": 0,
    "sent_bytes": 0,
    "loop_lag_s": {"bounds": list(LAG_BOUNDS_S), "counts": [0] * (len(LAG_BOUNDS_S) + 1), "sum": 0.0},
}


def broker() -> Broker:
    return Broker(BrokerSettings(), bytes(16), now=10.0)


def tell(machine: Broker, peer: bytes, *messages: object, now: float = 20.0) -> None:
    for message in messages:
        machine.received(peer, message, now)  # type: ignore[arg-type]
    machine.flush(now)


def client(name: str) -> Hello:
    return Hello(role=Role.CLIENT, instance=name.encode(), host=name, pid=1)


def worker(name: str, llm: str, **said: object) -> Hello:
    hello = Hello(role=Role.WORKER, instance=name.encode(), host=name, pid=2, llm=llm, release="0.1.0")
    for key, value in said.items():
        setattr(hello, key, value)
    return hello


def submit(llm: str, rows: int) -> Submit:
    ids = [bytes([number]) * 16 for number in range(rows)]
    return Submit([SubmitRun(llm, "input", 1, b"", None, False, ids, [b"row"] * rows)])


def test_an_idle_broker_reports_how_long_it_has_been_there() -> None:
    assert broker().report(now=12.3456) == {
        "uptime_s": 2.346,
        "rows": 0,
        **IDLE_LOOP,
        "llms": [],
        "clients": [],
        "lost": [],
        "slowest": [],
    }


def test_a_fleet_at_work_is_reported_in_full() -> None:
    machine = broker()
    ready = worker(
        "gpu1", "small", state=WorkerState.READY, model_name="SmolLM2", concurrency=2, credit=2, task={"t": 1}
    )
    tell(machine, b"w", ready, Hold([], [], [], False))
    tell(machine, b"c", client("laptop"), submit("small", 5))
    first = next(iter(machine.ledger.executions))
    tell(machine, b"w", Result([first], [Outcome.DONE], 7, 3, [b"answer"]))
    assert machine.report(now=21.0) == {
        "uptime_s": 11.0,
        "rows": 5,
        **IDLE_LOOP,
        "llms": [
            {
                "name": "small",
                "announced": True,
                "model_names": ["SmolLM2"],
                "task": {"t": 1},
                "queued": 2,
                "oldest_s": 1.0,
                "running": 2,
                "capacity": 2,
                "rows_per_s": None,
                "tokens_per_s": None,
                "done": 0,
                "failed": 0,
                "expired": 0,
                "cancelled": 0,
                "requeued": 0,
                "tokens": 7,
                "lost": 0,
                "hedged": 0,
                "hedges_won": 0,
                "workers": [
                    {
                        "host": "gpu1",
                        "pid": 2,
                        "state": "ready",
                        "reason": "",
                        "busy": True,
                        "model_name": "SmolLM2",
                        "release": "0.1.0",
                        "batch_size": 1,
                        "concurrency": 2,
                        "credit": 0,
                        "running": 2,
                        "unsettled": 1,
                        "rows_per_s": None,
                        "tokens_per_s": None,
                        "done": 1,
                        "failed": 0,
                        "outrun": 0,
                        "tokens": 7,
                    }
                ],
            }
        ],
        "clients": [
            {
                "host": "laptop",
                "pid": 1,
                "rows": 5,
                "answered": 1,
                "unread_bytes": 6,
                "withheld": 0,
                "away_s": None,
            }
        ],
        "lost": [],
        "slowest": [{"llm": "small", "host": "gpu1", "pid": 2, "running_s": 1.0}] * 2,
    }


def test_who_is_loading_unwell_or_away_is_shown_and_llms_stand_in_order() -> None:
    machine = broker()
    tell(machine, b"1", worker("gpu1", "zeta", state=WorkerState.UNWELL, reason="no quota"))
    tell(machine, b"2", worker("gpu2", "alpha"))
    tell(machine, b"c", client("laptop"), submit("asked for", 1))
    machine.send_failed(b"c", Goodbye(), gone=True, now=21.0)
    shown = machine.report(now=23.5)
    assert [llm["name"] for llm in shown["llms"]] == ["alpha", "asked for", "zeta"]
    assert [(llm["announced"], llm["queued"]) for llm in shown["llms"]] == [(True, 0), (False, 1), (True, 0)]
    assert [(w["state"], w["reason"]) for llm in shown["llms"] for w in llm["workers"]] == [
        ("loading", ""),
        ("unwell", "no quota"),
    ]
    assert shown["llms"][0]["model_names"] == []
    assert shown["clients"][0]["away_s"] == 2.5


def test_a_report_travels_as_it_is() -> None:
    machine = broker()
    tell(machine, b"w", worker("gpu1", "small", state=WorkerState.READY))
    tell(machine, b"c", client("laptop"), submit("small", 2))
    status = Status(machine.report(now=21.0))
    assert decode(encode(status, 1 << 20)) == status


def test_a_worker_that_went_without_a_word_is_reported_once_it_cannot_come_back() -> None:
    machine = broker()
    tell(
        machine,
        b"w",
        worker("gpu1", "small", state=WorkerState.READY, concurrency=2, credit=2),
        Hold([], [], [], False),
    )
    tell(machine, b"polite", worker("gpu2", "small", state=WorkerState.READY), Goodbye("it was drained"))
    tell(machine, b"c", client("laptop"), submit("small", 2))
    machine.send_failed(b"w", Goodbye(), gone=True, now=21.0)
    machine.tick(21.0)
    assert machine.report(now=21.0)["lost"] == []
    machine.tick(21.0 + BrokerSettings().worker_grace_s)
    assert machine.report(now=30.0)["lost"] == [
        {"llm": "small", "host": "gpu1", "pid": 2, "ago_s": 9.0, "why": "its connection broke", "rows": 2}
    ]


def test_the_rows_that_have_run_longest_are_told_and_answered_ones_are_not() -> None:
    machine = broker()
    ready = worker("gpu1", "small", state=WorkerState.READY, concurrency=40, credit=40)
    tell(machine, b"w", ready, Hold([], [], [], False))
    tell(machine, b"c", client("laptop"))
    for number in range(14):
        one = SubmitRun("small", "input", 1, b"", None, False, [bytes([number]) * 16], [b"row"])
        tell(machine, b"c", Submit([one]), now=20.0 + number)
    _, second, *_ = machine.ledger.executions
    tell(machine, b"w", Result([second], [Outcome.DONE], 40, 0, [b"answer"]), now=40.0)
    assert [one["running_s"] for one in machine.report(now=40.0)["slowest"]] == [20.0, *map(float, range(18, 9, -1))]


def test_a_bounded_number_of_executions_is_looked_at() -> None:
    looked_at: list[int] = []

    def executions() -> Iterator[Any]:
        for number in range(10_000):
            looked_at.append(number)
            yield SimpleNamespace(finished=True)

    shown = module.report(0.0, 0, [], [], [], LoopTally(), 1.0, executions=executions())
    assert shown["slowest"] == []
    assert len(looked_at) == 500


def test_counts_say_what_grows_and_waits() -> None:
    machine = broker()
    tell(machine, b"c", client("laptop"), submit("small", 2))
    assert machine.counts(now=21.0) == {
        "uptime_s": 11.0,
        "llms": [{"name": "small", "queued": 2, "done": 0, "failed": 0, "expired": 0, "requeued": 0}],
    }
