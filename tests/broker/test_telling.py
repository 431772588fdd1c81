"""What the broker's machine tells of the whole, and when."""

from __future__ import annotations

from driven import (
    Bench,
    grant,
    settle,
    submit,
    worker_hello,
)

from genpool.protocol.messages import (
    Fleet,
    Ping,
    WorkerState,
)


def test_clients_are_told_of_the_fleet_once_a_tick_however_much_has_changed() -> None:
    bench = Bench()
    bench.client("one")
    bench.client("two")
    bench.worker("a", llm="x", credit=0, state=WorkerState.LOADING)
    bench.worker("b", llm="y", credit=2)
    bench.tell("a", grant(1), grant(1, WorkerState.UNWELL, "no server"), grant(1, WorkerState.UNWELL, "no quota"))
    fleet = bench.broker._fleet()
    assert [(info.name, info.ready, info.unwell, info.reason) for info in fleet.llms] == [
        ("x", 0, 1, "no quota"),
        ("y", 1, 0, ""),
    ]
    sent = bench.tick()
    assert sent == [("one", fleet), ("two", fleet)]
    assert sent[0][1] is sent[1][1], "it is made once for all"
    assert bench.tick(0.1) == []
    bench.tell("b", grant(3))
    assert bench.tick(0.1) == []  # credit is no news


def test_an_llm_that_somebody_only_asked_for_is_not_part_of_the_fleet() -> None:
    bench = Bench()
    bench.client()
    bench.tell("client", submit("a", llm="nobody's"))
    assert bench.broker._fleet() == Fleet([])


def test_the_name_of_an_llm_is_remembered_for_a_while_after_its_last_worker() -> None:
    bench = Bench()
    bench.client()
    bench.worker()
    bench.end("worker")
    (info,) = bench.broker._fleet().llms
    assert (info.name, info.ready, info.model_names) == ("llm", 0, ["model"])
    bench.tick(3598.0)
    assert len(bench.broker._fleet().llms) == 1
    assert bench.tick(2.0) == [("client", Fleet([]))]


def test_a_ping_goes_to_everybody_at_each_interval_with_the_count_of_the_workers_ledger() -> None:
    bench = Bench()
    bench.client()
    bench.worker("one", credit=2)
    bench.tell("two", worker_hello("two"))
    bench.tell("client", submit("a", "b"))
    bench.tick_all(1.0)
    pings = [(name, m) for name, m in bench.tick_all(1.0) if isinstance(m, Ping)]
    assert pings == [("client", Ping(None)), ("one", Ping(2)), ("two", Ping(None))]
    assert bench.tick_all(0.9) == []


def test_a_ping_counts_after_all_that_was_said_before_it() -> None:
    """Otherwise a worker whose rows were dropped in that tick would think that something was lost."""
    bench = Bench()
    bench.client()
    bench.worker(credit=2)
    bench.tell("client", submit("a", "b"))
    bench.lose("client")
    bench.tick_all(9.5)
    sent = [(name, m) for name, m in bench.tick_all(1.0) if name == "worker"]
    assert sent == [("worker", settle(0, 1)), ("worker", Ping(0))]
