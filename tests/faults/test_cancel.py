"""What is taken back: queued rows are withdrawn, running rows are aborted where the engine can, else thrown away."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from chat import ChatServer
from fleet import PATIENCE_S, Fleet, until
from inputs import inputs
from noted import began, ended, environment

from genpool import LLMPool, ProcessLLM

CONCURRENCY = 2


def start_workers(fleet: Fleet, *names: str) -> None:
    for name in names:
        given = environment(fleet.folder, concurrency=CONCURRENCY)
        fleet.start_worker(name, "--load", "noted:load", environment=given)
    fleet.wait_for(lambda report: sum(llm["capacity"] for llm in report["llms"]) == CONCURRENCY * len(names))


def wait_until_nothing_is_left(fleet: Fleet) -> None:
    """No row at the broker, nothing running in a worker, and every place free again."""

    def is_free(worker: dict[str, Any]) -> bool:
        return (worker["running"], worker["unsettled"]) == (0, 0) and worker["credit"] == worker["concurrency"]

    fleet.wait_for(
        lambda report: report["rows"] == 0 and all(is_free(one) for llm in report["llms"] for one in llm["workers"])
    )


def test_a_cancelled_future_withdraws_what_waits_and_stops_what_runs(fleet: Fleet, tmp_path: Path) -> None:
    start_workers(fleet, "noted")
    llm = ProcessLLM.connect("noted", broker=fleet.address)
    future = llm.generate(inputs("wait one", "sleep:600 two", *(f"quick queued{number}" for number in range(20))))
    until(lambda: len(began(tmp_path)) == CONCURRENCY, "the start of two rows")
    assert future.cancel()
    wait_until_nothing_is_left(fleet)
    assert [row[0]["raw_output"] for row in llm.generate(inputs("quick next")).result(PATIENCE_S)] == ["QUICK NEXT"]
    llm.teardown()
    assert began(tmp_path) == {"one": 1, "two": 1, "next": 1}
    assert ended(tmp_path) == {"next": 1}


def test_what_an_engine_cannot_stop_is_thrown_away_when_it_ends(fleet: Fleet, tmp_path: Path) -> None:
    start_workers(fleet, "noted")
    llm = ProcessLLM.connect("noted", broker=fleet.address)
    future = llm.generate(inputs("gil:1 stubborn", "gil:1 other", "quick queued"))
    until(lambda: began(tmp_path), "the start of a row")
    assert future.cancel()
    fleet.wait_for(lambda report: report["rows"] == 0)
    until(lambda: ended(tmp_path)["stubborn"] or ended(tmp_path)["other"], "the end of a row that nobody wants")
    wait_until_nothing_is_left(fleet)
    assert [row[0]["raw_output"] for row in llm.generate(inputs("quick next")).result(PATIENCE_S)] == ["QUICK NEXT"]
    llm.teardown()
    assert "queued" not in began(tmp_path)
    (worker,) = fleet.report()["llms"][0]["workers"]
    assert worker["done"] == 1, "an answer that nobody wants does not travel"


def test_a_cancelled_pool_call_is_taken_back_from_every_llm(fleet: Fleet, tmp_path: Path) -> None:
    start_workers(fleet, "noted", "other")
    with LLMPool.connect(["noted", "other"], broker=fleet.address) as pool:
        texts = [f"wait row{number}" for number in range(10)]
        future = pool.submit(inputs(*texts), num_generations=2)
        until(lambda: sum(began(tmp_path).values()) == 2 * CONCURRENCY, "the start of rows in both LLMs")
        assert future.cancel()
        wait_until_nothing_is_left(fleet)
        assert ended(tmp_path) == {}
        assert sum(began(tmp_path).values()) == 2 * CONCURRENCY
        assert [len(row) for row in pool.generate(inputs("quick next"), num_generations=2)] == [2]


def test_a_request_to_a_server_is_closed(fleet: Fleet) -> None:
    pytest.importorskip("openai")
    with ChatServer() as server:
        pairs = ["--set", f"base_url={server.url}", "--set", f"concurrency={CONCURRENCY}"]
        fleet.start_worker("served", "--engine", "openai", *pairs)
        llm = ProcessLLM.connect("served", broker=fleet.address)
        future = llm.generate(inputs("hold one", "hold two", "queued"))
        until(lambda: len(server.held) == CONCURRENCY, "two requests under way")
        assert server.left == []
        assert future.cancel()
        until(lambda: sorted(server.left) == ["hold one", "hold two"], "the end of both connections")
        wait_until_nothing_is_left(fleet)
        assert [row[0]["raw_output"] for row in llm.generate(inputs("next")).result(PATIENCE_S)] == ["NEXT"]
        llm.teardown()
        assert sorted(server.prompts) == ["hold one", "hold two", "next"]


def test_ctrl_c_leaves_a_whole_file_and_no_row_behind_and_the_same_command_finishes_the_rest(
    fleet: Fleet, tmp_path: Path
) -> None:
    start_workers(fleet, "noted", "other")
    count, source, target = 120, tmp_path / "in put.jsonl", tmp_path / "out.jsonl"
    texts = [f"sleep:0.05 row{number}" for number in range(count)]
    source.write_text("".join(json.dumps({"input": text}) + "\n" for text in texts))
    options = ["--broker", fleet.address, "--llm", "noted", "--llm", "other", "-n", "2"]
    process = fleet.start("generate", "-i", str(source), "-o", str(target), *options)
    until(lambda: target.exists() and len(target.read_text().splitlines()) >= 10, "some rows in the file")
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE_S) == 128 + signal.SIGINT
    (log,) = tmp_path.glob("*-generate.log")
    said = log.read_text()
    wait_until_nothing_is_left(fleet)
    assert all(llm["queued"] == 0 for llm in fleet.report()["llms"])

    written = target.read_text()
    assert written.endswith("\n")
    rows = [json.loads(line) for line in written.splitlines()]
    assert 10 <= len(rows) < count
    assert [row["input"] for row in rows] == texts[: len(rows)]
    assert {len(row["generations"]) for row in rows} == {2}
    assert f"{len(rows)} rows are written whole" in said

    assert "to go on, run the same command again" in said
    assert fleet.start("generate", "-i", str(source), "-o", str(target), *options).wait(PATIENCE_S) == 0
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert [row["input"] for row in rows] == texts
    assert {(len(row["generations"]), row.get("error")) for row in rows} == {(2, None)}
