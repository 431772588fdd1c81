from __future__ import annotations

from typing import Any

from driven import Bench, submit

from genpool.broker.overview import overview
from genpool.protocol.messages import WorkerState


def shown(bench: Bench, unready: str = "") -> dict[str, Any]:
    return overview(bench.broker.report(bench.now), unready)


def test_an_idle_broker_has_nothing_to_show() -> None:
    page = shown(Bench(), "it has just started")
    assert (page["unready"], page["llms"], page["workers"], page["slowest"], page["lost"]) == (
        "it has just started",
        [],
        [],
        [],
        [],
    )
    assert page["totals"] == {
        "queued": 0,
        "running": 0,
        "capacity": 0,
        "done": 0,
        "failed": 0,
        "expired": 0,
        "rows_per_s": None,
        "tokens_per_s": None,
        "workers": 0,
        "ready": 0,
        "clients": 0,
        "clients_away": 0,
        "held": 0,
    }
    assert page["left_out"] == {"llms": 0, "workers": 0, "lost": 0}


def test_a_fleet_at_work() -> None:
    bench = Bench()
    bench.client("laptop")
    bench.worker("gpu1")
    bench.worker("gpu2", state=WorkerState.UNWELL, reason="no quota", credit=0)
    bench.tell("laptop", submit("a", "b"))
    bench.flush()
    page = shown(bench)
    assert (
        page["totals"] | {"queued": 1, "running": 1, "workers": 2, "ready": 1, "clients": 1, "held": 2}
        == page["totals"]
    )
    (llm,) = page["llms"]
    assert llm | {"queued": 1, "running": 1, "workers": 2, "ready": 1} == llm
    assert sorted((one["state"], one["reason"]) for one in page["workers"]) == [("busy", ""), ("unwell", "no quota")]
    (slow,) = page["slowest"]
    assert set(slow) == {"llm", "host", "pid", "running_s"}


def test_who_was_lost_within_the_hour_is_shown_the_last_one_first() -> None:
    bench = Bench()
    for name in ("gpu1", "gpu2", "gpu3"):
        bench.worker(name)
    bench.end("gpu1")
    bench.tick(3000)
    bench.end("gpu2")
    bench.tick(700)
    bench.end("gpu3")
    page = shown(bench)
    assert [(one["host"], one["why"]) for one in page["lost"]] == [
        ("gpu3", "its connection broke"),
        ("gpu2", "its connection broke"),
    ]


def test_what_is_shown_is_bounded_and_what_is_not_is_counted() -> None:
    bench = Bench()
    for number in range(120):
        bench.worker(f"host{number:03}", llm=f"{number:03}" + "x" * 1000, reason="r" * 10_000)
    report = bench.broker.report(bench.now)
    report["llms"][0]["workers"] *= 500
    report["lost"] = [{"llm": "a", "host": "h", "pid": 1, "ago_s": 1.0, "why": "w", "rows": 0}] * 1000
    page = overview(report, "")
    assert (len(page["llms"]), len(page["workers"]), len(page["lost"])) == (100, 500, 50)
    assert page["left_out"] == {"llms": 20, "workers": 119, "lost": 950}
    assert page["totals"]["workers"] == 619
    assert max(len(llm["name"]) for llm in page["llms"]) == 200
    assert max(len(worker["reason"]) for worker in page["workers"]) == 500


def test_who_is_unwell_is_among_the_workers_that_are_shown() -> None:
    bench = Bench()
    bench.worker("alpha")
    bench.worker("zeta", state=WorkerState.UNWELL, reason="no server")
    report = bench.broker.report(bench.now)
    report["llms"][0]["workers"] = [report["llms"][0]["workers"][0]] * 600 + report["llms"][0]["workers"][1:]
    assert shown_workers(report) == ["alpha"] * 499 + ["zeta"]


def shown_workers(report: dict[str, Any]) -> list[str]:
    return [one["host"] for one in overview(report, "")["workers"]]
