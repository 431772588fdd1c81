"""What is expected of a worker that falls silent and comes back, whatever made it silent.

``start_far(environment)`` starts that worker, with one row at a time; ``lose`` makes it silent and ``find`` brings it
back. The broker takes ``ARGUMENTS``: a row that is charged once, alone in its worker, would fail at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from fleet import PATIENCE_S, Fleet, until
from noted import began, ended, environment

from genpool import ProcessLLM

ARGUMENTS = ("--max-attempts", "1")

StartFar = Callable[[Mapping[str, str]], object]
Act = Callable[[], object]


def folder(fleet: Fleet, name: str) -> Path:
    """Where one worker of the fleet notes what it does."""
    path = fleet.folder / name
    path.mkdir()
    return path


def answers(future: Future[Any], patience_s: float = PATIENCE_S) -> list[str]:
    """The raw outputs."""
    return [row[0]["raw_output"] for row in future.result(patience_s)]


def is_idle(fleet: Fleet, workers: int, concurrency: int = 1) -> bool:
    """Whether nothing is left of any row, and every worker has its whole credit."""
    report = fleet.report()
    found = [worker for llm in report["llms"] for worker in llm["workers"]]
    state = [(worker["running"], worker["unsettled"], worker["credit"]) for worker in found]
    return report["rows"] == 0 and state == [(0, 0, concurrency)] * workers


def its_rows_go_elsewhere_and_it_is_stopped_when_it_is_back(
    fleet: Fleet, start_far: StartFar, lose: Act, find: Act
) -> None:
    far, near = folder(fleet, "far"), folder(fleet, "near")
    llm = ProcessLLM.connect("noted", broker=fleet.address)
    try:
        start_far(environment(far))
        lost = llm.generate([{"input": "wait lost"}], timeout=50)
        until(lambda: began(far)["lost"], "the row's start")
        fleet.start_worker("noted", "--load", "noted:load", environment=environment(near))
        fleet.wait_for(lambda report: len(report["llms"][0]["workers"]) == 2)

        lose()
        until(lambda: began(near)["lost"], "the row's start elsewhere")
        (near / "lost.go").touch()
        assert answers(lost) == ["WAIT LOST"]

        find()
        # The engine leaves the row only because it is told that nobody wants it.
        until(lambda: is_idle(fleet, 2), "the end of what is not wanted")
        assert (began(far)["lost"], ended(far)["lost"], began(near)["lost"]) == (1, 0, 1)
        _both_work(llm, far, near)
        until(lambda: is_idle(fleet, 2), "the end of all rows")
    finally:
        llm.teardown()


def _both_work(llm: ProcessLLM, far: Path, near: Path) -> None:
    """Each of two workers that take one row at a time gets one of two."""
    rows = ["wait left", "wait right"]
    future = llm.generate([{"input": row} for row in rows], timeout=50)
    until(lambda: len(began(far)) == 2 and len(began(near)) == 2, "a row at each worker")
    for name in ("left", "right"):
        (far / f"{name}.go").touch()
        (near / f"{name}.go").touch()
    assert answers(future) == [row.upper() for row in rows]


def what_it_finishes_meanwhile_is_taken_when_it_is_back(
    fleet: Fleet, start_far: StartFar, lose: Act, find: Act
) -> None:
    far = folder(fleet, "far")
    llm = ProcessLLM.connect("noted", broker=fleet.address)
    try:
        start_far(environment(far))
        future = llm.generate([{"input": "wait held"}, {"input": "quick next"}], timeout=50)
        until(lambda: began(far)["held"], "the row's start")
        lose()
        # Its grace is over, and its row waits for another worker.
        fleet.wait_for(lambda report: report["llms"][0]["queued"] == 2)
        (far / "held.go").touch()
        until(lambda: ended(far)["held"], "the row's end far away")
        assert not future.done()
        find()
        assert answers(future) == ["WAIT HELD", "QUICK NEXT"]
        until(lambda: is_idle(fleet, 1), "the end of all rows")
        assert began(far) == ended(far) == {"held": 1, "next": 1}
    finally:
        llm.teardown()
