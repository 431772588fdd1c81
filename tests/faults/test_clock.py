"""A wall clock that is set back an hour: nothing goes by it."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import Fleet, until
from noted import began, ended, environment
from process import Program

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("broker", "client", "protocol", "tasks", "worker")

# What does not go by the wall clock, of the module `time`.
STEADY = {"monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "process_time", "thread_time", "sleep"}

CONCURRENCY = 2
TIMEOUT_S = 3.0

# Sets the wall clock of a Python process back as soon as there is a file for it, and tells that it can.
SITE = """
import datetime, os, pathlib, time

_folder = pathlib.Path(os.environ["CLOCKS"])
_time, _time_ns = time.time, time.time_ns

def _back_s():
    return 3600 * (_folder / "back").exists()

class _DateTime(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(time.time(), tz)

time.time = lambda: _time() - _back_s()
time.time_ns = lambda: _time_ns() - _back_s() * 10**9
datetime.datetime = _DateTime
(_folder / f"{os.getpid()}.clock").touch()
"""

CLIENT = """
import pathlib, time
exec(pathlib.Path({site!r}).read_text())
from genpool import ProcessLLM
llm = ProcessLLM.connect("noted", broker={address!r})
words = [f"wait row{{number}}" for number in range({running})] + [f"quick row{{number}}" for number in range(50, 70)]
future = llm.generate([{{"input": word}} for word in words], timeout=50)
while not pathlib.Path({back!r}).exists():
    time.sleep(0.01)
print("set back", int(time.time()), flush=True)
try:
    llm.generate([{{"input": "wait never"}}], timeout=1.0).result(30)
except TimeoutError as error:
    print("expired:", type(error).__name__, flush=True)
assert [row[0]["raw_output"] for row in future.result()] == [word.upper() for word in words]
print("has everything", flush=True)
llm.generate([{{"input": "wait left"}}]).result()
"""


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    """Its processes have a clock that can be set back."""
    (tmp_path / "sitecustomize.py").write_text(SITE)
    monkeypatch.setenv("CLOCKS", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    with Fleet(tmp_path) as fleet:
        yield fleet


def test_nothing_notices_and_all_times_run_on(fleet: Fleet, tmp_path: Path) -> None:
    timeout = ("--heartbeat-timeout", str(TIMEOUT_S))
    fleet.start_broker("--client-grace", "1", *timeout)
    for _ in range(2):
        noted = environment(tmp_path, concurrency=CONCURRENCY)
        fleet.start_worker("noted", "--load", "noted:load", *timeout, environment=noted)
    fleet.wait_for(lambda report: sum(llm["capacity"] for llm in report["llms"]) == 2 * CONCURRENCY)
    site, back = tmp_path / "sitecustomize.py", tmp_path / "back"
    source = CLIENT.format(site=str(site), back=str(back), address=fleet.address, running=2 * CONCURRENCY)
    with Program(source) as client:
        until(lambda: len(began(tmp_path)) == 2 * CONCURRENCY, "the start of the first rows")
        pids = [process.pid for process in [*fleet.processes, client.process]]
        assert all((tmp_path / f"{pid}.clock").exists() for pid in pids)

        before = fleet.report()["uptime_s"]
        back.touch()
        client.wait_for("expired")
        fleet.wait_for(lambda report: report["uptime_s"] > before + TIMEOUT_S + 1)
        for log in tmp_path.glob("*.log"):
            assert "WARNING" not in log.read_text()
        assert "lost the broker" not in client.said

        # A loss is still a loss, its grace ends, and its rows go on.
        fleet.processes[1].kill()
        for number in range(2 * CONCURRENCY):
            (tmp_path / f"row{number}.go").touch()
        client.wait_for("has everything")
        assert set(ended(tmp_path).values()) == {1}
        until(lambda: began(tmp_path)["left"], "the start of the row that is left")
        client.process.kill()
        fleet.wait_for(lambda report: not report["rows"])


def wall_clocks(source: str) -> list[str]:
    """What in a module goes by the wall clock, with its line."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(value=ast.Name(id="time"), attr=name) if name not in STEADY:
                found.append(f"line {node.lineno}: time.{name}")
            case ast.ImportFrom(module="time", names=names):
                found += [f"line {node.lineno}: time.{one.name}" for one in names if one.name not in STEADY]
            case ast.ImportFrom(module="datetime" | "email.utils"):
                found.append(f"line {node.lineno}: {node.module}")
            case ast.Import(names=names):
                found += [f"line {node.lineno}: {one.name}" for one in names if one.name in ("datetime", "email.utils")]
                renamed = [one.asname for one in names if one.name == "time" and one.asname]
                found += [f"line {node.lineno}: time as {name}" for name in renamed]
            case _:
                pass
    return found


# What a file may take of dates, and why nothing goes by it.
DATED = {
    "client/report.py": {"datetime"},  # when a run began and ended, for people
    "client/formats/batch.py": {"time.time"},  # when an answer was written, as OpenAI's format has it
    "client/formats/arrow.py": {"datetime"},  # dates in a dataset
    "protocol/logs.py": {"time.strftime", "time.gmtime"},  # when a log line was written, for people
    "worker/engines/retry.py": {"email.utils"},  # two dates of a server's answer, against each other
}


def names_of(found: list[str]) -> set[str]:
    return {line.partition(": ")[2] for line in found}


@pytest.mark.parametrize("folder", PACKAGES)
def test_no_module_goes_by_the_wall_clock(folder: str) -> None:
    files = {str(file.relative_to(ROOT)): file for file in (ROOT / folder).rglob("*.py")}
    assert files
    found = {name: wall_clocks(file.read_text("utf-8")) for name, file in files.items()}
    assert not {name: clocks for name, clocks in found.items() if names_of(clocks) - DATED.get(name, set())}


@pytest.mark.parametrize("file", DATED)
def test_a_file_takes_what_it_may_of_dates(file: str) -> None:
    assert names_of(wall_clocks((ROOT / file).read_text("utf-8"))) == DATED[file]


def test_every_way_to_the_wall_clock_is_found() -> None:
    source = """
import time
import time as clock
import datetime
from time import monotonic, time_ns
from datetime import datetime as when
def later():
    from email.utils import parsedate
    time.sleep(time.monotonic() - time.time())
"""
    assert sorted(line.partition(": ")[2] for line in wall_clocks(source)) == [
        "datetime",
        "datetime",
        "email.utils",
        "time as clock",
        "time.time",
        "time.time_ns",
    ]
