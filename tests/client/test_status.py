"""What the fleet looks like, to people and as JSON."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from echo import Genpool, Start, command
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
            "oldest_s": 75.2,
            "running": 4,
            "capacity": 64,
            "rows_per_s": 12.345,
            "tokens_per_s": 4567.0,
            "failed": 2,
            "expired": 1,
            "workers": [
                {
                    "host": "gpu1",
                    "pid": 11,
                    "state": "ready",
                    "busy": True,
                    "reason": "",
                    "running": 4,
                    "rows_per_s": 12.345,
                    "tokens_per_s": 4567.0,
                    "done": 90,
                    "failed": 2,
                },
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
        {
            "name": "typo",
            "announced": False,
            "queued": 1,
            "oldest_s": 3.0,
            "running": 0,
            "capacity": 0,
            "rows_per_s": None,
            "tokens_per_s": None,
            "workers": [],
        },
    ],
    "clients": [{"host": "desk", "pid": 21, "rows": 12, "answered": 78, "away_s": 1.5}],
}


def shown(report: dict[str, Any], width: int = 200) -> list[str]:
    """The lines with their cells, without the frames."""
    console = Console(file=io.StringIO(), width=width)
    console.print(tables(report, width))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().replace("┃", "│").splitlines()
    return [" ".join(cell.strip() for cell in line.strip("│").split("│")).strip() for line in lines]


def test_the_tables_tell_of_llms_workers_and_clients() -> None:
    lines = shown(REPORT)
    assert lines[0] == "broker up for 1 h 2 min, 12 rows there"
    assert "LLM model task workers queued oldest running rows/s tokens/s failed" in lines
    assert "qwen Qwen [7B] TextGenerationTask 1 busy, 1 unwell 8 75 s 4/64 12.3 4567.0 3" in lines
    assert "typo   none, ever 1 3 s 0/0" in lines
    assert "LLM host pid state running rows/s tokens/s done failed reason" in lines
    assert "qwen gpu1 11 busy 4 12.3 4567.0 90 2" in lines
    assert "qwen gpu2 12 unwell 0   0 0 no server" in lines
    assert "desk 21 12 78 1.5" in lines


def test_hedges_are_told_of_where_there_were_some() -> None:
    assert not any("hedges" in line or "outrun" in line for line in shown(REPORT))
    one, other = REPORT["llms"]
    workers = [one["workers"][0] | {"outrun": 9}, one["workers"][1] | {"outrun": 0}]
    llms = [one | {"hedged": 12, "hedges_won": 9, "workers": workers}, other | {"hedged": 0, "hedges_won": 0}]
    lines = shown(REPORT | {"llms": llms})
    assert "LLM model task workers queued oldest running rows/s tokens/s failed hedges" in lines
    assert "qwen Qwen [7B] TextGenerationTask 1 busy, 1 unwell 8 75 s 4/64 12.3 4567.0 3 9 of 12 won" in lines
    assert "qwen gpu1 11 busy 4 12.3 4567.0 90 2 9" in lines


def test_the_client_that_asks_is_not_among_the_clients() -> None:
    asking = {"host": socket.gethostname(), "pid": os.getpid(), "rows": 0, "answered": 0, "away_s": None}
    assert "Clients" not in shown(REPORT | {"clients": [asking]})


def lost(number: int, ago_s: float) -> dict[str, Any]:
    return {"llm": "qwen", "host": "gpu3", "pid": number, "ago_s": ago_s, "why": "it fell silent", "rows": 4}


def test_lost_workers_of_the_last_hour_are_told_of_the_last_one_first() -> None:
    assert not any("Lost" in line for line in shown(REPORT | {"lost": [lost(1, 3601.0)]}))
    lines = shown(REPORT | {"lost": [lost(1, 3601.0), lost(2, 3600.0), lost(3, 65.0)]})
    start = lines.index("Lost workers of the last hour")
    assert [line for line in lines[start:] if "gpu3" in line] == [
        "qwen gpu3 3 65 s 4 it fell silent",
        "qwen gpu3 2 60 min 4 it fell silent",
    ]
    assert not any("more" in line for line in lines)


def test_of_many_lost_workers_the_last_ones_are_shown() -> None:
    lines = shown(REPORT | {"lost": [lost(number, number) for number in range(15)]})
    assert sum("gpu3" in line for line in lines) == 10
    assert "and 5 more, which --json tells of" in lines


def test_in_120_columns_no_figure_is_broken() -> None:
    long = "a-model/of-a-very-long-name-70B-Instruct-Q4_K_M"
    big = {"rows_per_s": 12345.6, "tokens_per_s": 1234567.8, "running": 1024, "done": 12345678, "failed": 123456}
    worker = REPORT["llms"][0]["workers"][0] | big | {"pid": 1234567, "outrun": 1234, "reason": f"no server: {long}"}
    llm = REPORT["llms"][0] | big | {"name": long, "model_names": [long], "queued": 123456, "oldest_s": 7325.0}
    report = REPORT | {"llms": [llm | {"hedged": 99, "hedges_won": 9, "workers": [worker] * 2}], "lost": [lost(1, 9.0)]}
    lines = shown(report, width=120)
    assert any("reason" in line and "tokens/s" in line for line in lines)
    for figures in (
        ["123456", "2 h", "1024/64", "12345.6", "1234567.8", "123457"],
        ["1234567", "1024", "12345.6", "1234567.8", "12345678", "123456", "1234"],
    ):
        assert any(all(figure in line for figure in figures) for line in lines), figures


def test_a_narrow_terminal_is_shown_less() -> None:
    lines = shown(REPORT, width=80)
    assert "LLM workers queued oldest running rows/s failed" in lines
    assert "LLM host pid state running rows/s failed reason" in lines
    assert "qwen 1 busy, 1 unwell 8 75 s 4/64 12.3 3" in lines


def test_an_empty_fleet_and_a_report_of_another_release_are_shown_too() -> None:
    assert shown({"uptime_s": 61, "rows": 0, "llms": [], "clients": []}) == [
        "broker up for 1 min 1 s, 0 rows there",
        "no LLMs: no worker has connected",
    ]
    assert shown({"uptime_s": 61, "rows": 1})[0] == "broker up for 1 min 1 s, 1 row there"
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


@pytest.mark.parametrize(
    "what",
    [[], ["--json"], ["--watch"], ["--watch", "--json"]],
    ids=["table", "json", "watched table", "watched json"],
)
@pytest.mark.parametrize(
    ("redirection", "why"),
    [(">&-", "standard output is closed"), (">/dev/full", "No space left on device")],
    ids=["closed", "full"],
)
def test_a_report_that_cannot_be_written_is_one_sentence(
    echo_fleet: Fleet, redirection: str, why: str, what: list[str]
) -> None:
    asked = command("status", "--broker", echo_fleet.address, *what)
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" "$@" {redirection}', *asked],
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (done.stderr, done.returncode) == (f"genpool: the report cannot be written: {why}\n", 2)


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
