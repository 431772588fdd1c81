"""Many at once, and many one after the other: what a peer took of the broker or of a client is given back."""

from __future__ import annotations

import resource
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import zmq
from fleet import Fleet, until
from noted import environment
from process import Program
from wire import Peer, worker_hello

from genpool import ProcessLLM
from genpool.protocol.content import pack
from genpool.protocol.messages import Assign, Goodbye, Hold, Outcome, Result, Welcome

CROWD = 100

# Peers that come and go before memory is looked at, and then.
WARM_UP = 300
COMINGS = 1000

# A kilobyte for each coming; what is known of a peer takes more.
MOST_GROWTH = COMINGS * 1024

CLIENT = """
import os, pathlib, time
from genpool import ProcessLLM

def come_and_go():
    llm = ProcessLLM.connect("noted", broker={address!r})
    assert llm.generate([{{"input": "quick row"}}], timeout=30).result()[0][0]["raw_output"] == "QUICK ROW"
    llm.teardown()

def use():
    while len(os.listdir("/proc/self/task")) > 1:
        time.sleep(0.01)
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    size = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))
    return size, len(os.listdir("/proc/self/fd"))

for _ in range({warm_up}):
    come_and_go()
print("before", *use(), flush=True)
for _ in range({comings}):
    come_and_go()
print("after", *use(), flush=True)
"""


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(tmp_path) as fleet:
        fleet.start_broker("--worker-grace", "0.05", "--client-grace", "0.05")
        yield fleet


@contextmanager
def descriptors_up_to(soft: int) -> Generator[None]:
    """This process, and those that are started meanwhile unless they raise it, have this limit."""
    _, hard = former = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, former)


def rss(pid: int) -> int:
    """How many bytes of memory a process has."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def descriptors(pid: int, kind: str = "") -> int:
    """How many of this kind a process has open."""
    found = 0
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since
            found += str(file.readlink()).startswith(kind)
    return found


def use(broker: int) -> tuple[int, int]:
    """The broker's memory and descriptors when all connections have ended: where it listens is one socket."""
    until(lambda: descriptors(broker, "socket:") == 1, "the end of all connections")
    return rss(broker), descriptors(broker)


def test_a_hundred_workers_that_connect_at_once_are_all_served(tmp_path: Path) -> None:
    with ExitStack() as stack:
        fleet = stack.enter_context(Fleet(tmp_path))
        # Each peer takes two descriptors of the broker, and more here.
        with descriptors_up_to(CROWD):
            fleet.start_broker()
        stack.enter_context(descriptors_up_to(resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        crowd = [stack.enter_context(Peer(fleet.address)) for _ in range(CROWD)]
        for number, worker in enumerate(crowd):
            worker.send(worker_hello(f"worker{number}", credit=1), Hold([], [], [], more=False))
        for worker in crowd:
            worker.wait_for(Welcome)
        fleet.wait_for(lambda report: sum(llm["capacity"] for llm in report["llms"]) == CROWD)

        llm = ProcessLLM.connect("llm", broker=fleet.address)
        stack.callback(llm.teardown)
        future = llm.generate([{"input": f"row{number}"} for number in range(CROWD)], timeout=50)
        for number, worker in enumerate(crowd):
            (run,) = worker.wait_for(Assign).runs
            assert len(run.ids) == 1
            output = {"model_name": str(number), "prompt_used": None, "raw_output": "x", "parsed_output": "x"}
            worker.send(Result([run.first_execution], [Outcome.DONE], 0, 1, [pack([output])]))
        assert {row[0]["model_name"] for row in future.result()} == {str(number) for number in range(CROWD)}
        llm.teardown()
        for worker in crowd:
            worker.close()
        use(fleet.processes[0].pid)


def says_goodbye(address: str, number: int) -> None:
    with Peer(address, worker_hello(f"worker{number}", credit=1)) as worker:
        worker.send(Hold([], [], [], more=False), Goodbye("it is done"))
        # Or closing would throw away what has not left.
        worker.socket.setsockopt(zmq.LINGER, 1000)


def breaks_off(address: str, number: int) -> None:
    with Peer(address, worker_hello(f"worker{number}", credit=1)) as worker:
        worker.send(Hold([], [], [], more=False))


def comes_again(address: str, _: int) -> None:
    breaks_off(address, 0)


@pytest.mark.parametrize("come_and_go", [says_goodbye, breaks_off, comes_again])
def test_a_worker_that_connects_and_leaves_a_thousand_times_leaves_nothing_in_the_broker(
    fleet: Fleet, come_and_go: Callable[[str, int], None]
) -> None:
    def come(numbers: range) -> tuple[int, int]:
        for number in numbers:
            come_and_go(fleet.address, number)
        fleet.wait_for(lambda report: not any(llm["workers"] for llm in report["llms"]))
        return use(fleet.processes[0].pid)

    size, opened = come(range(WARM_UP))
    size_after, opened_after = come(range(WARM_UP, WARM_UP + COMINGS))
    assert opened_after == opened
    assert size_after - size < MOST_GROWTH


def test_a_client_that_connects_and_leaves_a_thousand_times_leaves_nothing_in_itself_and_in_the_broker(
    fleet: Fleet, tmp_path: Path
) -> None:
    fleet.start_worker("noted", "--load", "noted:load", environment=environment(tmp_path))
    fleet.wait_for(lambda report: sum(llm["capacity"] for llm in report["llms"]) == 1)
    broker = fleet.processes[0].pid
    with Program(CLIENT.format(address=fleet.address, warm_up=WARM_UP, comings=COMINGS)) as program:
        program.wait_for("before")
        before = rss(broker)
        program.wait_for("after")
        assert program.process.wait() == 0
        (size, opened), (size_after, opened_after) = (
            [int(word) for word in line.split()[1:]] for line in program.said.splitlines()
        )
    assert opened_after == opened
    assert size_after - size < MOST_GROWTH
    # The worker's connection stays.
    until(lambda: descriptors(broker, "socket:") == 3, "the end of the client's connections")
    assert rss(broker) - before < MOST_GROWTH
