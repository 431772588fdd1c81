"""Engines and loaders that raise, give up, or eat all memory: a clear error, and never a hang."""

from __future__ import annotations

import re
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import PATIENCE_S, Fleet, until
from noted import began, ended, environment

from genpool import ProcessLLM
from genpool.protocol.errors import GenerationError, WorkerLost

# How much more memory a worker may take than it has when it is ready.
ROOM_BYTES = 128 << 20

LOADERS = """
import resource, sys, threading
from genpool import LLM, TextGenerationTask

eaten = []

def limit():
    used = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1])
    resource.setrlimit(resource.RLIMIT_AS, ((used << 10) + (128 << 20),) * 2)

def raises():
    raise OSError("no GPU here")

def leaves():
    sys.exit("the loader wants to leave")

def text():
    return "an LLM"

def eats():
    limit()
    mine = []
    while True:
        mine.append(bytearray(1 << 20))

def eats_and_keeps():
    limit()
    for size in (20, 10, 6):
        try:
            while True:
                eaten.append(bytearray(1 << size))
        except MemoryError:
            pass
    raise MemoryError

class Mute(Exception):
    def __str__(self):
        raise ValueError("it cannot even say so")

def raises_what_says_nothing():
    raise Mute

class Left(LLM):
    model_name = "left"

    def _generate(self, inputs, num_generations=1):
        raise SystemExit("the engine wants to leave")

def load():
    return Left(TextGenerationTask())

def sabotages():
    from genpool.worker.machine import Worker
    Worker.tick = lambda self, now: bytearray(1 << 62)
    return load()
"""


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    (tmp_path / "loaders.py").write_text(LOADERS)
    (tmp_path / "leaves_at_import.py").write_text("import sys\nsys.exit(5)\n")
    with Fleet(tmp_path) as fleet:
        yield fleet


def connect(fleet: Fleet, request: pytest.FixtureRequest, name: str = "noted") -> ProcessLLM:
    llm = ProcessLLM.connect(name, broker=fleet.address)
    request.addfinalizer(llm.teardown)
    return llm


def start_worker(fleet: Fleet, concurrency: int = 1) -> subprocess.Popen[bytes]:
    given = environment(fleet.folder, concurrency=concurrency)
    return fleet.start_worker("noted", "--load", "noted:load", environment=given)


def said(fleet: Fleet, worker: subprocess.Popen[bytes]) -> str:
    return (fleet.folder / f"{fleet.processes.index(worker)}-worker.log").read_text()


def test_a_row_that_raises_is_tried_again_and_one_that_is_refused_is_not(
    fleet: Fleet, request: pytest.FixtureRequest
) -> None:
    fleet.start_broker()
    worker, llm = start_worker(fleet), connect(fleet, request)
    raised, refused = llm.generate([{"input": "raise one"}]), llm.generate([{"input": "refuse other"}])
    with pytest.raises(RuntimeError, match=r"RuntimeError: one raises \(LLM 'noted', worker .*, after 3 attempts; see"):
        raised.result(PATIENCE_S)
    with pytest.raises(ValueError, match=r"ValueError: other is refused \(LLM 'noted', worker .*\)"):
        refused.result(PATIENCE_S)
    assert began(fleet.folder) == {"one": 3, "other": 1}
    assert llm.generate([{"input": "quick last"}]).result(PATIENCE_S)
    assert worker.poll() is None


def test_an_engine_that_is_dead_ends_its_process_and_hands_over_what_is_finished(
    fleet: Fleet, request: pytest.FixtureRequest
) -> None:
    fleet.start_broker("--max-attempts", "1")
    worker, llm = start_worker(fleet, concurrency=2), connect(fleet, request)
    assert llm.generate([{"input": "quick first"}]).result(PATIENCE_S)
    dead = llm.generate([{"input": "dead row"}])
    assert worker.wait(PATIENCE_S) == 70
    assert "the engine is dead: row was too much" in said(fleet, worker)
    with pytest.raises(WorkerLost, match="ended 1 worker processes"):
        dead.result(PATIENCE_S)
    start_worker(fleet)
    assert llm.generate([{"input": "quick last"}]).result(PATIENCE_S)
    assert ended(fleet.folder) == {"first": 1, "last": 1}


def test_an_engine_that_leaves_ends_its_process_with_a_sentence(fleet: Fleet, request: pytest.FixtureRequest) -> None:
    fleet.start_broker("--max-attempts", "1")
    worker = fleet.start_worker("left", "--load", "loaders:load", environment=environment(fleet.folder) | here(fleet))
    with pytest.raises(WorkerLost):
        connect(fleet, request, "left").generate([{"input": "a"}]).result(PATIENCE_S)
    assert worker.wait(PATIENCE_S) == 70
    assert "(SystemExit: the engine wants to leave); this process ends" in said(fleet, worker)
    assert "Traceback" not in said(fleet, worker)


def test_a_worker_whose_own_loop_fails_ends_with_a_sentence(fleet: Fleet) -> None:
    fleet.start_broker()
    worker = fleet.start_worker("mine", "--load", "loaders:sabotages", environment=here(fleet))
    assert worker.wait(PATIENCE_S) == 70
    assert "the worker cannot go on (MemoryError); this process ends" in said(fleet, worker)
    assert "Traceback" not in said(fleet, worker)


def here(fleet: Fleet) -> dict[str, str]:
    return {"PYTHONPATH": str(fleet.folder)}


@pytest.mark.parametrize(
    ("load", "code", "sentence"),
    [
        ("loaders:raises", 70, "the LLM could not be loaded: OSError: no GPU here"),
        ("loaders:leaves", 70, "the LLM could not be loaded: SystemExit: the loader wants to leave"),
        ("leaves_at_import:load", 70, "the LLM could not be loaded: SystemExit: 5"),
        ("loaders:text", 2, "the loader loaders:text must return an LLM (a genpool.LLM), and returned str 'an LLM'"),
        ("loaders:eats", 70, "the LLM could not be loaded: MemoryError"),
        ("loaders:raises_what_says_nothing", 70, "the LLM could not be loaded: Mute"),
    ],
)
def test_a_loader_that_fails_ends_the_worker_with_a_sentence(fleet: Fleet, load: str, code: int, sentence: str) -> None:
    fleet.start_broker()
    worker = fleet.start_worker("mine", "--load", load, environment=here(fleet))
    assert worker.wait(PATIENCE_S) == code
    assert sentence in said(fleet, worker)
    fleet.wait_for(lambda report: not any(llm["workers"] for llm in report["llms"]))


def test_a_loader_that_leaves_no_memory_at_all_ends_the_worker(fleet: Fleet) -> None:
    fleet.start_broker()
    worker = fleet.start_worker("mine", "--load", "loaders:eats_and_keeps", environment=here(fleet))
    assert worker.wait(PATIENCE_S) != 0  # there may be no room for more than a code, not even for our own


def test_a_row_that_eats_all_memory_fails_and_its_worker_goes_on(fleet: Fleet, request: pytest.FixtureRequest) -> None:
    fleet.start_broker()
    llm, worker = connect(fleet, request), start_limited(fleet, 1)
    with pytest.raises(MemoryError, match=r"after 3 attempts"):
        llm.generate([{"input": "eat all"}]).result(PATIENCE_S)
    assert llm.generate([{"input": "quick last"}]).result(PATIENCE_S)
    assert worker.poll() is None


@pytest.mark.timeout(180)
def test_rows_that_eat_all_memory_side_by_side_fail_and_others_are_answered(
    fleet: Fleet, request: pytest.FixtureRequest
) -> None:
    fleet.start_broker()
    llm = connect(fleet, request)
    workers = [start_limited(fleet, 8)]
    hungry = llm.generate([{"input": f"eat {number}"} for number in range(6)], timeout=150)
    others = llm.generate([{"input": f"quick {number}"} for number in range(20)], timeout=150)
    while not (hungry.done() and others.done()):
        until(lambda: (hungry.done() and others.done()) or workers[-1].poll() is not None, "an end")
        if workers[-1].poll() is not None:
            workers.append(start_limited(fleet, 8))
    error = hungry.exception()
    assert isinstance(error, GenerationError)
    assert len(error.failures) == 6
    # CPython itself may lose a MemoryError in C, and raises SystemError then.
    assert {failure.type_name for failure in error.failures.values()} <= {"MemoryError", "SystemError", "WorkerLost"}
    assert len(others.result()) == 20
    assert llm.generate([{"input": "quick last"}]).result(PATIENCE_S)


def start_limited(fleet: Fleet, concurrency: int) -> subprocess.Popen[bytes]:
    """A worker that gets no more than some memory beyond what it has when it is loaded."""
    worker = start_worker(fleet, concurrency)
    until(lambda: "is ready" in said(fleet, worker), "the start of a worker")
    status = Path(f"/proc/{worker.pid}/status").read_text()
    size = int(re.search(r"VmSize:\s+(\d+)", status)[1]) << 10  # type: ignore[index]
    resource.prlimit(worker.pid, resource.RLIMIT_AS, (size + ROOM_BYTES, size + ROOM_BYTES))
    return worker
