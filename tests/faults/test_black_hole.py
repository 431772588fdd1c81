"""Networks that carry nothing for a while: both ends live, and no connection is closed."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from away import (
    ARGUMENTS,
    answers,
    is_idle,
    its_rows_go_elsewhere_and_it_is_stopped_when_it_is_back,
    what_it_finishes_meanwhile_is_taken_when_it_is_back,
)
from fleet import Fleet, until
from forwarder import Direction, Forwarder
from noted import began, ended, environment

from genpool import ProcessLLM

SHORT = ("--heartbeat-timeout", "1")
DIRECTIONS = pytest.mark.parametrize("direction", ["up", "down", "both"])

ROWS = 100
WORDS = "word " * 50


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(tmp_path) as fleet:
        yield fleet


class Far:
    """A worker, or a client, behind a forwarder."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.forwarder = Forwarder(fleet.address)

    def __enter__(self) -> Far:
        return self

    def __exit__(self, *_: object) -> None:
        self.forwarder.close()

    def start_worker(self, environment: Mapping[str, str], *arguments: str) -> None:
        self._fleet.start_worker(
            "noted", "--load", "noted:load", *arguments, broker=self.forwarder.address, environment=environment
        )

    def start_short_worker(self, environment: Mapping[str, str]) -> None:
        self.start_worker(environment, *SHORT)


@DIRECTIONS
def test_the_rows_of_a_worker_go_elsewhere_uncharged_and_it_is_stopped_when_it_is_back(
    fleet: Fleet, direction: Direction
) -> None:
    fleet.start_broker(*SHORT, *ARGUMENTS)
    with Far(fleet) as far:
        its_rows_go_elsewhere_and_it_is_stopped_when_it_is_back(
            fleet, far.start_short_worker, lambda: far.forwarder.hole(direction), far.forwarder.heal
        )


@DIRECTIONS
def test_what_a_worker_finishes_meanwhile_is_taken_when_it_is_back(fleet: Fleet, direction: Direction) -> None:
    fleet.start_broker(*SHORT, *ARGUMENTS)
    with Far(fleet) as far:
        what_it_finishes_meanwhile_is_taken_when_it_is_back(
            fleet, far.start_short_worker, lambda: far.forwarder.hole(direction), far.forwarder.heal
        )


@DIRECTIONS
def test_what_is_finished_while_a_client_is_cut_off_is_answered_when_it_is_back(
    fleet: Fleet, direction: Direction
) -> None:
    """A client that only cannot be heard may have its answers at once."""
    fleet.start_broker(*SHORT, "--client-grace", "60")
    fleet.start_worker("noted", "--load", "noted:load", *SHORT, environment=environment(fleet.folder))
    rows = ["wait held", "quick next", "quick last"]
    with Far(fleet) as far:
        llm = ProcessLLM.connect("noted", broker=far.forwarder.address)
        future = llm.generate([{"input": row} for row in rows], timeout=50)
        until(lambda: began(fleet.folder)["held"], "the first row's start")
        far.forwarder.hole(direction)
        (fleet.folder / "held.go").touch()
        until(lambda: ended(fleet.folder)["last"], "the last row's end")
        until(lambda: far.forwarder.connections > 1, "the end of its first connection")
        far.forwarder.heal()
        assert answers(future) == [row.upper() for row in rows]
        llm.teardown()
        # The forwarder carries the goodbye, so it must not end before.
        until(lambda: is_idle(fleet, 1), "the end of all rows")
    assert began(fleet.folder) == ended(fleet.folder) == {"held": 1, "next": 1, "last": 1}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("side", ["client", "worker"])
def test_fifty_troubles_in_mid_stream(fleet: Fleet, side: str) -> None:
    """Cuts and short black holes in turn, some of them longer than the heartbeat's timeout."""
    fleet.start_broker("--heartbeat-timeout", "1", "--worker-grace", "5")
    rows = 0
    with Far(fleet) as far:
        chance = random.Random(50)
        for number in range(50):
            direction: Direction = chance.choice(["up", "down"])
            after = chance.randrange(2_000, 5_000)
            if number % 2:
                far.forwarder.cut_after(after, direction)
            else:
                far.forwarder.hole_after(after, direction, chance.choice([0.05, 0.2, 1.2]))
        environ = environment(fleet.folder, concurrency=4)
        broker = {"client": fleet.address, "worker": far.forwarder.address}[side]
        fleet.start_worker("noted", "--load", "noted:load", *SHORT, broker=broker, environment=environ)
        llm = ProcessLLM.connect("noted", broker=far.forwarder.address if side == "client" else fleet.address)
        # How many rows pass between two troubles depends on the machine, so they are sent for as long as one is left.
        while far.forwarder.cuts_made + far.forwarder.holes_made < 50:
            texts = [f"quick {number} {WORDS}" for number in range(rows, rows + ROWS)]
            rows += ROWS
            future = llm.generate([{"input": text} for text in texts], timeout=110)
            assert answers(future, 110) == [text.upper() for text in texts]
        llm.teardown()
        until(lambda: is_idle(fleet, 1, 4), "the end of all rows")
    counts = ended(fleet.folder)
    assert len(counts) == rows
    assert set(counts.values()) == {1}, "what was finished must not be computed again"


@pytest.mark.timeout(150)
def test_a_minute_with_the_defaults(tmp_path: Path) -> None:
    """Of a worker in one fleet, and of a client in another at the same time."""
    for name in ("worker", "client"):
        (tmp_path / name).mkdir()
    with Fleet(tmp_path / "worker") as ours, Fleet(tmp_path / "client") as theirs:
        ours.start_broker(*ARGUMENTS)
        theirs.start_broker()
        with Far(ours) as worker, Far(theirs) as client:
            worker.start_worker(environment(ours.folder))
            theirs.start_worker("noted", "--load", "noted:load", environment=environment(theirs.folder))
            rows = ["quick first", "wait held", "quick last"]
            inputs = [{"input": row} for row in rows]
            near = ProcessLLM.connect("noted", broker=ours.address)
            far = ProcessLLM.connect("noted", broker=client.forwarder.address)
            futures = [llm.generate(inputs, timeout=140) for llm in (near, far)]
            for fleet in (ours, theirs):
                until(lambda fleet=fleet: began(fleet.folder)["held"], "the row's start")
            start = time.monotonic()
            worker.forwarder.hole()
            client.forwarder.hole()
            (ours.folder / "held.go").touch()
            until(lambda: ended(ours.folder)["held"], "the row's end far away")
            ours.wait_for(lambda report: report["llms"][0]["workers"] == [])
            # The client is given up after its grace, and what runs for it is stopped.
            theirs.wait_for(lambda report: report["rows"] == 0)
            until(lambda: is_idle(theirs, 1), "the end of what nobody waits for")
            assert ended(theirs.folder) == {"first": 1}
            until(lambda: time.monotonic() - start > 60.0, "the end of a minute", 70.0)
            worker.forwarder.heal()
            client.forwarder.heal()
            (theirs.folder / "held.go").touch()
            for future in futures:
                assert answers(future) == [row.upper() for row in rows]
            until(lambda: is_idle(ours, 1) and is_idle(theirs, 1), "the end of all rows")
            assert began(ours.folder) == ended(ours.folder) == ended(theirs.folder)
            assert set(ended(ours.folder).values()) == {1}
            near.teardown()
            far.teardown()
