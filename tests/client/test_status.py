"""What the fleet looks like, to people and as JSON."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

from echo import Genpool, Start
from fleet import PATIENCE_S, Fleet
from rich.console import Console

from genpool.client.status import tables

REPORT: dict[str, Any] = {
    "uptime_s": 3725.4,
    "rows": 12,
    "llms": [
        {
            "name": "qwen",
            "announced": True,
            "model_names": ["Qwen [7B]"],
            "task": {"name": "TextGenerationTask"},
            "queued": 8,
            "running": 4,
            "capacity": 64,
            "workers": [
                {"host": "gpu1", "pid": 11, "state": "ready", "reason": "", "running": 4, "done": 90, "failed": 2},
                {
                    "host": "gpu2",
                    "pid": 12,
                    "state": "unwell",
                    "reason": "no server",
                    "running": 0,
                    "done": 0,
                    "failed": 0,
                },
            ],
        },
        {"name": "typo", "announced": False, "queued": 1, "running": 0, "capacity": 0, "workers": []},
    ],
    "clients": [{"host": "desk", "pid": 21, "rows": 12, "answered": 78, "away_s": 1.5}],
}


def shown(report: dict[str, Any]) -> list[str]:
    """The lines with their cells, without the frames."""
    console = Console(file=io.StringIO(), width=200)
    console.print(tables(report))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().replace("┃", "│").splitlines()
    return [" ".join(cell.strip() for cell in line.strip("│").split("│")).strip() for line in lines]


def test_the_tables_tell_of_llms_workers_and_clients() -> None:
    lines = shown(REPORT)
    assert lines[0] == "broker up for 1 h 2 min, 12 rows there"
    assert "qwen Qwen [7B] TextGenerationTask 1 ready, 1 unwell 8 4 64" in lines
    assert "typo   none, ever 1 0 0" in lines
    assert "qwen gpu1 11 ready 4 90 2" in lines
    assert "qwen gpu2 12 unwell 0 0 0 no server" in lines
    assert "desk 21 12 78 1.5" in lines


def test_hedges_are_told_of_where_there_were_some() -> None:
    assert not any("hedges" in line or "outrun" in line for line in shown(REPORT))
    one, other = REPORT["llms"]
    workers = [one["workers"][0] | {"outrun": 9}, one["workers"][1] | {"outrun": 0}]
    llms = [one | {"hedged": 12, "hedges_won": 9, "workers": workers}, other | {"hedged": 0, "hedges_won": 0}]
    lines = shown(REPORT | {"llms": llms})
    assert "LLM model task workers queued running at once hedges" in lines
    assert "qwen Qwen [7B] TextGenerationTask 1 ready, 1 unwell 8 4 64 9 of 12 won" in lines
    assert "typo   none, ever 1 0 0" in lines
    assert "qwen gpu1 11 ready 4 90 2  9" in lines


def test_the_client_that_asks_is_not_among_the_clients() -> None:
    asking = {"host": socket.gethostname(), "pid": os.getpid(), "rows": 0, "answered": 0, "away_s": None}
    assert "Clients" not in shown(REPORT | {"clients": [asking]})


def test_an_empty_fleet_and_a_report_of_another_release_are_shown_too() -> None:
    assert shown({"uptime_s": 61, "rows": 0, "llms": [], "clients": []}) == [
        "broker up for 1 min 1 s, 0 rows there",
        "no LLMs: no worker has connected",
    ]
    assert shown({"llms": None}) == ["broker up for ?, ? rows there", "no LLMs: no worker has connected"]


def test_status_of_a_fleet(genpool: Genpool) -> None:
    done = genpool("status")
    assert done.returncode == 0
    assert "model-a" in done.stdout
    assert "1 ready" in done.stdout


def test_status_as_json_is_the_brokers_report(genpool: Genpool, echo_fleet: Fleet) -> None:
    done = genpool("status", "--json")
    assert done.returncode == 0
    report = json.loads(done.stdout)
    assert report.keys() == echo_fleet.report().keys()
    assert [llm["name"] for llm in report["llms"]] == ["a", "b"]


def test_without_a_broker_it_says_where_and_how_long(genpool: Genpool, tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/none"
    done = genpool("status", "--broker", address, "--timeout", "0.3")
    assert done.returncode == 3
    assert f"genpool: no broker at {address} within 0.3 s" in done.stderr


def test_watching_prints_again_and_again_until_a_signal(start: Start) -> None:
    process = start("status", "--watch", "--json")
    assert process.stdout is not None
    reports = [json.loads(process.stdout.readline()) for _ in range(2)]
    assert reports[1]["uptime_s"] > reports[0]["uptime_s"]
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE_S) == 0
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()


def test_watching_outlives_the_broker(start: Start, tmp_path: Path) -> None:
    with Fleet(tmp_path) as fleet:
        broker = fleet.start_broker()
        process = start("status", "--watch", broker=fleet.address)
        assert process.stdout is not None
        assert "broker up for" in process.stdout.readline()
        broker.kill()
        until_said(process.stdout, f"no broker at {fleet.address}")
        fleet.start_broker()
        until_said(process.stdout, "broker up for")
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 0


def until_said(stream: Any, words: str) -> None:
    """Read until a line has ``words``; fails at the stream's end."""
    assert any(words in line for line in iter(stream.readline, ""))
