"""The page of metrics, from reports of a machine."""

from __future__ import annotations

from typing import Any

import pytest

from genpool.broker.machine import Broker
from genpool.broker.settings import BrokerSettings
from genpool.broker.tally import ROW_BOUNDS_S
from genpool.protocol.messages import (
    Await,
    Grant,
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

pytest.importorskip("prometheus_client")

from prometheus_client.parser import text_string_to_metric_families

from genpool.broker.metrics import render


def tell(machine: Broker, peer: bytes, *messages: Message, now: float) -> None:
    for message in messages:
        machine.received(peer, message, now)
    machine.flush(now)


def worker(name: bytes, llm: str, state: str, concurrency: int = 1) -> Hello:
    return Hello(Role.WORKER, name, "secret-host", 7, llm=llm, state=state, concurrency=concurrency, credit=concurrency)


def submit(llm: str, *names: bytes) -> Submit:
    ids = [name.ljust(16, b".") for name in names]
    return Submit([SubmitRun(llm, "input", 1, b"", None, False, ids, [b"row"] * len(ids))])


def at_work() -> Broker:
    """A broker with an LLM of four workers, at 100.0 s."""
    machine = Broker(BrokerSettings(settle_s=0.0, has_row_times=True), bytes(16), now=90.0)
    tell(machine, b"c", Hello(Role.CLIENT, b"client", "secret-desk", 1), Await([], False), now=95.0)
    tell(machine, b"w", worker(b"w", "a", WorkerState.READY, 2), Hold([], [], [], False), now=95.0)
    tell(machine, b"u", worker(b"u", "a", WorkerState.UNWELL), Grant(0, WorkerState.UNWELL, "no quota"), now=95.0)
    tell(machine, b"d", worker(b"d", "a", WorkerState.DRAINING), now=95.0)
    tell(machine, b"l", worker(b"l", "a", WorkerState.LOADING), now=95.0)
    tell(machine, b"c", submit("a", b"1", b"2", b"3", b"4"), submit("of a client's making", b"5"), now=95.0)
    first = next(iter(machine.ledger.executions))
    tell(machine, b"w", Result([first], [Outcome.DONE], 11, 3, [b"answer"]), now=97.0)
    tell(machine, b"c", Release([b"1".ljust(16, b".")]), now=97.0)
    machine.loop.received_bytes, machine.loop.sent_bytes = 1000, 2000
    machine.loop.lag.observe(0.003)
    return machine


def samples(report: dict[str, Any]) -> dict[tuple[str, ...], float]:
    """Every sample but this process's own, by its name and its labels' values."""
    text = render(report).decode()
    return {
        (one.name, *(value for _, value in sorted(one.labels.items()))): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
        if not one.name.startswith("process_")
    }


def test_metrics_say_what_the_report_does() -> None:
    found = samples(at_work().report(100.0))
    assert {key: value for key, value in found.items() if "_bucket" not in key[0]} == {
        ("genpool_rows_total", "a", "done"): 1,
        ("genpool_rows_total", "a", "failed"): 0,
        ("genpool_rows_total", "a", "expired"): 0,
        ("genpool_rows_total", "a", "cancelled"): 0,
        ("genpool_rows_requeued_total", "a"): 0,
        ("genpool_tokens_total", "a"): 11,
        ("genpool_workers_lost_total", "a"): 0,
        ("genpool_hedges_total", "a"): 0,
        ("genpool_hedges_won_total", "a"): 0,
        ("genpool_queued_rows", "a"): 1,
        ("genpool_oldest_queued_row_seconds", "a"): 5,
        ("genpool_running_rows", "a"): 2,
        ("genpool_capacity_rows", "a"): 2,
        ("genpool_workers", "a", "loading"): 1,
        ("genpool_workers", "a", "ready"): 0,
        ("genpool_workers", "a", "busy"): 1,
        ("genpool_workers", "a", "unwell"): 1,
        ("genpool_workers", "a", "draining"): 1,
        ("genpool_row_wait_seconds_count", "a"): 3,
        ("genpool_row_wait_seconds_sum", "a"): 2,
        ("genpool_row_run_seconds_count", "a"): 1,
        ("genpool_row_run_seconds_sum", "a"): 2,
        ("genpool_unknown_llm_queued_rows",): 1,
        ("genpool_clients",): 1,
        ("genpool_held_rows",): 4,
        ("genpool_received_bytes_total",): 1000,
        ("genpool_sent_bytes_total",): 2000,
        ("genpool_loop_lag_seconds_count",): 1,
        ("genpool_loop_lag_seconds_sum",): 0.003,
    }


def test_buckets_are_cumulative() -> None:
    found = samples(at_work().report(100.0))
    waits = {key[1]: value for key, value in found.items() if key[0] == "genpool_row_wait_seconds_bucket"}
    assert waits == {str(bound): 2 if bound < 2.0 else 3 for bound in ROW_BOUNDS_S} | {"+Inf": 3}


def test_no_host_user_or_row_is_named() -> None:
    text = render(at_work().report(100.0)).decode()
    assert "secret" not in text
    assert "of a client's making" not in text


@pytest.mark.parametrize("name", ["half \ud800 a character", 'a "quoted" name\nof two lines', "back\\slash", "é"])
def test_any_name_of_an_llm_can_be_told(name: str) -> None:
    machine = Broker(BrokerSettings(has_row_times=True), bytes(16), now=90.0)
    names = {name, name.encode("utf-8", "backslashreplace").decode()}
    for number, llm in enumerate(sorted(names)):
        tell(machine, b"%d" % number, worker(b"%d" % number, llm, WorkerState.READY), now=95.0)
    lengths = [key for key in samples(machine.report(100.0)) if key[0] == "genpool_queued_rows"]
    assert len(lengths) == len(names)


def test_an_empty_broker_has_metrics_too() -> None:
    machine = Broker(BrokerSettings(has_row_times=True), bytes(16), now=90.0)
    assert samples(machine.report(100.0))["genpool_held_rows",] == 0
