"""An engine that holds the interpreter's lock for long, as C code that never gives it up does."""

from __future__ import annotations

from pathlib import Path

import pytest
from fleet import Fleet, until
from noted import began, ended, environment

from genpool import ProcessLLM


@pytest.mark.timeout(120)
def test_a_worker_whose_engine_holds_the_lock_for_half_a_minute_is_not_taken_for_dead(tmp_path: Path) -> None:
    with Fleet(tmp_path) as fleet:
        fleet.start_broker()
        worker = fleet.start_worker("noted", "--load", "noted:load", environment=environment(tmp_path))
        llm = ProcessLLM.connect("noted", broker=fleet.address)
        try:
            held = llm.generate([{"input": "gil:30 held"}], timeout=100)
            until(lambda: began(tmp_path)["held"], "the row's start")
            # A replica would be given the row as soon as the first worker were taken for dead.
            fleet.start_worker("noted", "--load", "noted:load", environment=environment(tmp_path))
            assert held.result(100)[0][0]["raw_output"] == "GIL:30 HELD"
            assert (began(tmp_path), ended(tmp_path)) == ({"held": 1}, {"held": 1})
            # It is the same process, and still serves.
            assert [row[0]["raw_output"] for row in llm.generate([{"input": "quick a"}] * 4).result(30)] == [
                "QUICK A"
            ] * 4
            states = [one["state"] for one in fleet.report()["llms"][0]["workers"]]
            assert (states, worker.poll()) == (["ready", "ready"], None)
        finally:
            llm.teardown()
        log = (tmp_path / "0-broker.log").read_text()
        assert "is away" not in log
