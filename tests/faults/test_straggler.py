"""``hedge``: a row hangs in one worker, and another one that stands idle is given it too."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from away import answers, folder, is_idle
from fleet import PATIENCE_S, Fleet, until
from noted import began, ended, environment

from genpool import ProcessLLM

# More than it takes until the usual time is known.
QUICK = [{"input": f"quick {number}"} for number in range(12)]
SLOW = {"input": "wait slow"}


def start_worker(fleet: Fleet, at: Path) -> None:
    fleet.start_worker("noted", "--load", "noted:load", environment=environment(at))


def hedges(fleet: Fleet) -> tuple[int, int]:
    """How many rows were hedged, and how many hedges won."""
    (llm,) = fleet.report()["llms"]
    return llm["hedged"], llm["hedges_won"]


def beginners(*places: Path) -> Callable[[], list[Path]]:
    """Which workers have begun the slow row."""
    return lambda: [place for place in places if began(place)["slow"]]


def test_a_row_that_hangs_in_one_worker_is_answered_by_another_and_stopped(fleet: Fleet, llm: ProcessLLM) -> None:
    far, near = folder(fleet, "far"), folder(fleet, "near")
    (near / "slow.go").touch()
    start_worker(fleet, far)
    llm.generate(QUICK, hedge=True).result(PATIENCE_S)
    slow = llm.generate([SLOW], hedge=True, timeout=50)
    until(beginners(far), "the row's start")
    start_worker(fleet, near)
    assert answers(slow) == ["WAIT SLOW"]
    until(lambda: is_idle(fleet, 2), "the end of what is not wanted")
    assert (began(far)["slow"], ended(far)["slow"], ended(near)["slow"]) == (1, 0, 1)
    assert hedges(fleet) == (1, 1)


def test_a_file_is_finished_though_a_worker_hangs(fleet: Fleet, tmp_path: Path) -> None:
    places = [folder(fleet, "far"), folder(fleet, "near")]
    for place in places:
        start_worker(fleet, place)
    fleet.wait_for(lambda report: sum(llm["capacity"] for llm in report["llms"]) == 2)
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in [*QUICK, SLOW]))
    files = ("-i", str(source), "-o", str(target), "--broker", fleet.address)
    run = fleet.start("generate", *files, "--timeout", "50", "--hedge", "5")
    until(lambda: len(beginners(*places)()) == 2, "the row's start at a second worker")
    (places[0] / "slow.go").touch()
    assert run.wait(PATIENCE_S) == 0
    assert json.loads(target.read_text().splitlines()[-1])["raw_generation_responses"] == ["WAIT SLOW"]
    assert hedges(fleet)[0] == 1
