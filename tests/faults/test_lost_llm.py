"""Two LLMs, one of which loses its only worker in mid-call: its shares become what ``if_lost`` says."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fleet import PATIENCE_S, Fleet, until
from noted import began, ended, environment

from genpool import LLMPool

NAMES = [f"row{number}" for number in range(6)]
CONCURRENCY = 2
LOST_AFTER_S = 2.0


class Two:
    """The LLMs "one" and "two", a worker each, with a folder for what each notes."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.one, self.two = fleet.folder / "one", fleet.folder / "two"
        for folder in (self.one, self.two):
            folder.mkdir()
        fleet.start_broker()
        self._worker = self.serve(self.one)
        self.serve(self.two)
        # Who has not come yet would be lost as well.
        fleet.wait_for(lambda report: sum(llm["capacity"] for llm in report["llms"]) == 2 * CONCURRENCY)
        self.pool = LLMPool.connect(["one", "two"], broker=fleet.address)

    def serve(self, folder: Path) -> subprocess.Popen[bytes]:
        extra = environment(folder, concurrency=CONCURRENCY)
        return self.fleet.start_worker(folder.name, "--load", "noted:load", environment=extra)

    def kill_one(self) -> None:
        """Kill the worker of "one" when it runs rows."""
        until(lambda: len(began(self.one)) == CONCURRENCY, "the start of rows")
        self._worker.kill()
        self._worker.wait()

    def release(self, folder: Path) -> None:
        """What waits there may end."""
        for name in NAMES:
            (folder / f"{name}.go").touch()


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Two]:
    with Fleet(tmp_path) as fleet:
        two = Two(fleet)
        yield two
        two.pool.teardown()


def inputs() -> list[dict[str, str]]:
    return [{"input": f"wait {name}"} for name in NAMES]


def texts(outputs: list[Any]) -> list[list[Any]]:
    return [[output["raw_output"] for output in row] for row in outputs]


def whole() -> list[list[str]]:
    """Both outputs of each input."""
    return [[f"WAIT {name.upper()}"] * 2 for name in NAMES]


def test_redraw_has_the_other_llm_make_them_until_it_is_back(two: Two, caplog: pytest.LogCaptureFixture) -> None:
    future = two.pool.submit(inputs(), 2, if_lost="redraw", lost_after_s=LOST_AFTER_S, timeout=50)
    two.kill_one()
    two.release(two.two)
    assert texts(future.result(PATIENCE_S)) == whole()
    assert ended(two.two) == dict.fromkeys(NAMES, 2)
    assert ended(two.one) == {}
    (said,) = [text for text in caplog.messages if "drawn anew" in text]
    assert re.fullmatch(
        r"nobody has served 'one' for \d+ s: no worker is ready \(none is loading\); "
        "its shares are drawn anew over two, until it is served again",
        said,
    )
    two.fleet.wait_for(lambda report: report["rows"] == 0)

    two.serve(two.one)
    until(lambda: any(text.startswith("'one' is served again") for text in caplog.messages), "its return")
    assert len(two.pool.generate([{"input": "quick again"}], 2, timeout=50)[0]) == 2
    assert began(two.one)["again"] == began(two.two)["again"] == 1


def test_wait_keeps_waiting_and_its_new_worker_makes_them(two: Two) -> None:
    patient = two.pool.submit(inputs(), 2, timeout=50)
    two.kill_one()
    two.release(two.two)
    # What another call does shows that the time has passed.
    impatient = two.pool.submit(inputs(), 2, if_lost="fill", lost_after_s=LOST_AFTER_S, timeout=50)
    assert texts(impatient.result(PATIENCE_S)) == [[None, row[1]] for row in whole()]
    assert not patient.done()
    two.release(two.one)
    two.serve(two.one)
    assert texts(patient.result(PATIENCE_S)) == whole()
    assert ended(two.one) == dict.fromkeys(NAMES, 1)


def test_fill_leaves_a_whole_file_that_says_what_is_missing(two: Two, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(given) + "\n" for given in inputs()))
    files = ["-i", str(source), "-o", str(target), "-n", "2", "--broker", two.fleet.address]
    run = two.fleet.start("generate", *files, "--if-lost", "fill", "--lost-after", str(LOST_AFTER_S))
    two.kill_one()
    two.release(two.two)
    assert run.wait(PATIENCE_S) == 1
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert [row["raw_generation_responses"] for row in rows] == [[None, row[1]] for row in whole()]
    for row in rows:
        assert row["error"].startswith("LLMLost: nobody has served 'one' for ")


def test_a_broker_that_is_away_makes_no_llm_lost(two: Two) -> None:
    # Longer than the workers take to come back to the broker on a busy host.
    lost_after_s = 5.0
    future = two.pool.submit(inputs(), 2, if_lost="redraw", lost_after_s=lost_after_s, timeout=50)
    until(lambda: len(began(two.one)) == len(began(two.two)) == CONCURRENCY, "the start of rows")
    two.fleet.processes[0].kill()
    two.fleet.processes[0].wait()
    back_at = time.monotonic() + lost_after_s + 1.0
    until(lambda: time.monotonic() > back_at, "the end of the time without a broker")
    two.fleet.start_broker()
    two.release(two.one)
    two.release(two.two)
    assert texts(future.result(PATIENCE_S)) == whole()
    assert began(two.one) == began(two.two) == dict.fromkeys(NAMES, 1)
