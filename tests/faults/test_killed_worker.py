"""A worker that is killed (``kill -9``) while it runs rows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from fleet import Fleet, until
from noted import began, ended, environment, noted

from genpool import ProcessLLM

CONCURRENCY = 4

# Far below the heartbeat timeout: that the process has ended is seen by its connection.
SEEN_S = 2.0


def start_workers(fleet: Fleet, folder: Path, count: int, *, there: int = 0) -> None:
    for _ in range(count):
        fleet.start_worker("noted", "--load", "noted:load", environment=environment(folder, concurrency=CONCURRENCY))
    rows = (there + count) * CONCURRENCY
    fleet.wait_for(lambda report: sum(llm["capacity"] for llm in report["llms"]) == rows)


def test_its_rows_are_begun_elsewhere_within_two_seconds_and_its_neighbours_run_on(
    fleet: Fleet, llm: ProcessLLM, tmp_path: Path
) -> None:
    names = [f"row{number}" for number in range(2 * CONCURRENCY)]
    start_workers(fleet, tmp_path, 2)
    future = llm.generate([{"input": f"wait {name}"} for name in names], timeout=50)
    until(lambda: len(began(tmp_path)) == len(names), "the start of all rows")
    # Suspects run apart from other rows, so they wait for a worker that is idle: here is one.
    start_workers(fleet, tmp_path, 1, there=2)
    killed = fleet.processes[1]
    killed.kill()
    until(lambda: max(began(tmp_path).values()) == 2, "the second start of a lost row", patience_s=SEEN_S)

    for name in names:
        (tmp_path / f"{name}.go").touch()
    assert [row[0]["raw_output"].split()[1] for row in future.result()] == [name.upper() for name in names]
    lost = {name for name, pid in noted(tmp_path, "began") if pid == killed.pid}
    assert len(lost) == CONCURRENCY
    assert began(tmp_path) == {name: 2 if name in lost else 1 for name in names}
    assert ended(tmp_path) == dict.fromkeys(names, 1)


def test_in_the_midst_of_many_rows_each_is_answered_once_and_at_most_its_credit_is_computed_twice(
    fleet: Fleet, llm: ProcessLLM, tmp_path: Path
) -> None:
    names = [f"row{number}" for number in range(400)]
    start_workers(fleet, tmp_path, 3)
    told: list[int] = []
    future = llm.generate(
        [{"input": f"sleep:0.03 {name}"} for name in names],
        timeout=50,
        progress_callback_func=lambda advance: told.append(advance),
    )
    for killed in (1, 2):
        # The second one goes in the midst of it too: perhaps while it tries the suspects of the first.
        until(lambda killed=killed: len(ended(tmp_path)) >= 100 * killed, "the end of some rows")
        fleet.processes[killed].kill()

    assert [row[0]["raw_output"].split()[1] for row in future.result()] == [name.upper() for name in names]
    assert sum(told) == len(names)
    assert ended(tmp_path).keys() == set(names)
    again = began(tmp_path) - Counter(names)
    assert sum(again.values()) <= 2 * CONCURRENCY
