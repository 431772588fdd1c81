"""A row is followed through the JSON logs of real commands, from the client to the worker and back."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from echo import ECHO, command
from fleet import PATIENCE_S, Fleet, until

JSON = {"GENPOOL_LOG_FORMAT": "json", "GENPOOL_LOG_LEVEL": "debug"}
USUAL = {"time", "level", "logger", "message", "pid"}


def lines(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def about(log: Path, row: str) -> list[str]:
    return [line["message"].partition(": rows")[0] for line in lines(log) if row in line.get("rows", ())]


@pytest.fixture(autouse=True)
def _json(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in JSON.items():
        monkeypatch.setenv(name, value)


def test_every_line_is_json_and_a_row_can_be_followed(tmp_path: Path) -> None:
    (tmp_path / "echo_llm.py").write_text(ECHO)
    (tmp_path / "in.jsonl").write_text('{"input": "hello"}\n{"input": "fail"}\n')
    with Fleet(tmp_path) as fleet:
        broker = fleet.start_broker()
        given = {"MODEL": "m", "PYTHONPATH": str(tmp_path)}
        worker = fleet.start_worker("echo", "--load", "echo_llm:load", environment=given)
        files = ("-i", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl"))
        client = fleet.start("generate", "--broker", fleet.address, *files)
        assert client.wait(PATIENCE_S) == 1
        for process in (worker, broker):
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == 0
        logs = [tmp_path / f"{number}-{name}.log" for number, name in enumerate(("broker", "worker", "generate"))]
        assert all(line.keys() >= USUAL for log in logs for line in lines(log))
        at_broker, at_worker, at_client = logs
        sent = [line for line in lines(at_client) if line["message"].startswith("sent: Submit of 'echo'")]
        row = sent[0]["rows"][0]
        assert len(row) == 12
        assert about(at_client, row) == ["sent: Submit of 'echo'", "received: Answer", "sent: Release"]
        # The broker tells of a settled execution that it no longer knows whose it was, and the worker does.
        who, whom = f"client {line_of(at_broker, 'client')}", f"worker {line_of(at_broker, 'worker')}"
        assert about(at_broker, row) == [
            f"received from {who}: Submit of 'echo'",
            f"sent to {whom}: Assign",
            f"received from {whom}: Result",
            f"sent to {who}: Answer",
            f"received from {who}: Release",
        ]
        assert about(at_worker, row) == ["received: Assign", "sent: Result", "received: Settle"]
        assert {line["llm"] for line in lines(at_worker)} == {"echo"}
        assert {line["pid"] for line in lines(at_worker)} == {worker.pid}
        assert any(line["message"].startswith("2 rows are written, 1 of them failed") for line in lines(at_client))


@pytest.mark.parametrize(
    ("arguments", "level", "message"),
    [
        (
            ["worker", "--llm", "a", "--batch-size", "0"],
            "error",
            "Invalid value for '--batch-size': 0 is not in the range",
        ),
        (["keys", "new", "keys"], "info", "Start the broker with --keys keys, and give each peer its file"),
    ],
    ids=["wrong usage", "what to do next"],
)
def test_what_a_command_says_of_its_use_is_json_too(
    tmp_path: Path, arguments: list[str], level: str, message: str
) -> None:
    done = subprocess.run(
        command(*arguments), cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    line = json.loads(done.stderr)
    assert (line["level"], line["logger"]) == (level, "genpool")
    assert line["message"].startswith(message)


def line_of(log: Path, role: str) -> str:
    """Who the lines of the log are about."""
    (name,) = {line[role] for line in lines(log) if role in line}
    return name


def test_a_complaint_is_json_too_and_nothing_of_rows_is_told_at_the_level_info(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENPOOL_LOG_LEVEL", "info")
    with Fleet(tmp_path) as fleet:
        fleet.start_broker()
        drain = fleet.start("drain", "nowhere", "--broker", fleet.address)
        assert drain.wait(PATIENCE_S) == 2
        (line,) = lines(tmp_path / "1-drain.log")
        assert (line["level"], line["logger"]) == ("error", "genpool")
        assert line["message"] == "there is no worker 'nowhere'; there is none at all"
        until(lambda: (tmp_path / "0-broker.log").read_text(), "a word of the broker")
        assert [line["message"].partition(" on ")[0] for line in lines(tmp_path / "0-broker.log")] == ["listening"]
