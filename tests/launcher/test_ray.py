"""``genpool up --on ray`` and ``down`` on a real Ray cluster of several nodes, all on this host."""

from __future__ import annotations

import os
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from echo import command
from extras import require
from fleet import Fleet, until
from noted import began, ended, noted
from process import Program, is_alive

from genpool import ProcessLLM

require("ray")

# Ray's own processes take seconds to start and to notice that one is gone, on two cores that do other work.
pytestmark = pytest.mark.timeout(300)
PATIENCE_S = 120.0

# It does what the files in its folder say: "add" a node, or "lose" the one that is there longest.
CLUSTER = """
import os, time
from pathlib import Path
os.environ.update(RAY_USAGE_STATS_ENABLED="0")
from ray.cluster_utils import Cluster

ROOM = dict(num_cpus=0, object_store_memory=80 << 20)
cluster = Cluster(initialize_head=True, head_node_args=dict(ROOM, include_dashboard=False))
print("address", cluster.gcs_address, flush=True)
nodes = []
folder = Path(os.environ["TMPDIR"])
while not (folder / "end").exists():
    for order in sorted(folder.glob("order-*")):
        if order.read_text() == "add":
            nodes.append(cluster.add_node(**ROOM, num_gpus=2))
        else:
            cluster.remove_node(nodes.pop(0), allow_graceful=False)
        order.unlink()
        print("done", order.name, flush=True)
    time.sleep(0.05)
cluster.shutdown()
print("ended", flush=True)
"""


class RayCluster:
    """A head without room, and nodes with two GPUs each, as Ray believes."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._orders = 0
        program.wait_for("address")
        until(lambda: "\n" in program.said.partition("address ")[2], "the address", PATIENCE_S)
        self.address = program.said.partition("address ")[2].split()[0]
        self.environment = {"TMPDIR": str(program.folder), "RAY_USAGE_STATS_ENABLED": "0"}

    def order(self, what: str) -> None:
        name = f"order-{self._orders}"
        self._orders += 1
        draft = self._program.folder / f"draft-{name}"
        draft.write_text(what)
        draft.rename(self._program.folder / name)
        until(lambda: f"done {name}\n" in self._program.said, f"to {what} a node", PATIENCE_S)


class OnRay(Fleet):
    """A broker, and a fleet file for the cluster."""

    def __init__(self, folder: Path, cluster: RayCluster) -> None:
        super().__init__(folder)
        self.file = folder / "fleet.toml"
        self._cluster = cluster

    def __exit__(self, *_: object) -> None:
        if self.file.exists():
            self.genpool("down", "--timeout", "0")
        super().__exit__()

    def write(self, replicas: int = 2, more: str = "", load: str = "noted:load") -> None:
        self.file.write_text(f"""
broker = "{self.address}"
[ray]
address = "{self._cluster.address}"
[llm.noted]
load = "{load}"
replicas = {replicas}
gpus = 1
{more}
[llm.noted.ray]
num-cpus = 0
[llm.noted.env]
NOTED = "{self.folder}"
CONCURRENCY = "2"
PYTHONPATH = "{Path(__file__).parents[1]}"
""")

    def genpool(self, what: str, *arguments: str, code: int = 0) -> str:
        """What ``genpool up`` or ``down`` says."""
        done = subprocess.run(
            command(what, "--on", "ray", str(self.file), *arguments),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            env={**os.environ, **self._cluster.environment},
        )
        assert done.returncode == code, done.stderr
        return done.stderr

    def serving(self) -> set[int]:
        """The process ids of the workers that are ready."""
        workers = [worker for llm in self.report()["llms"] for worker in llm["workers"]]
        return {one["pid"] for one in workers if one["state"] == "ready" and is_alive(one["pid"])}


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with Program(CLUSTER) as program:
        cluster = RayCluster(program)
        cluster.order("add")
        yield cluster
        (program.folder / "end").touch()
        until(lambda: "ended\n" in program.said, "the cluster's end", PATIENCE_S)
        until(lambda: not program.living, "the end of all that it started", PATIENCE_S)


@pytest.fixture
def host(tmp_path: Path, cluster: RayCluster) -> Iterator[OnRay]:
    with OnRay(tmp_path, cluster) as host:
        host.start_broker("--settle", "0.2")
        yield host


@pytest.fixture
def llm(host: OnRay) -> Iterator[ProcessLLM]:
    llm = ProcessLLM.connect("noted", broker=host.address)
    yield llm
    llm.teardown()


def gpus_of(pid: int) -> str:
    """Those that a worker was handed."""
    mark = "CUDA_VISIBLE_DEVICES="
    variables = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return next(line.removeprefix(mark) for line in variables if line.startswith(mark))


def rows(*names: str, word: str = "sleep:0.05") -> list[dict[str, str]]:
    return [{"input": f"{word} {name}"} for name in names]


def answered(outputs: list[Any]) -> list[str]:
    return [row[0]["raw_output"].split()[1].lower() for row in outputs]


def test_up_brings_the_cluster_to_the_state_of_the_file_and_down_takes_it_away(
    host: OnRay, llm: ProcessLLM, tmp_path: Path
) -> None:
    host.write()
    assert "all 2 are ready" in host.genpool("up")
    first = host.serving()
    assert {gpus_of(pid) for pid in first} == {"0", "1"}
    assert "started" not in host.genpool("up")
    assert host.serving() == first

    # The node has no third GPU: an old one makes room.
    host.write(more="batch-size = 2")
    names = [f"row{number}" for number in range(100)]
    future = llm.generate(rows(*names, word="sleep:0.2"), timeout=PATIENCE_S)
    until(lambda: began(tmp_path), "the first row")
    assert "waits for a host of the cluster that has room" in host.genpool("up")
    second = host.serving()
    assert len(second) == 2
    assert not first & second
    assert answered(future.result()) == names
    assert ended(tmp_path) == Counter(names)

    host.write(replicas=1, more="batch-size = 2")
    host.genpool("up")
    (kept,) = host.serving()
    assert kept in second

    # One that is killed comes back without anybody's doing.
    os.kill(kept, signal.SIGKILL)
    until(lambda: host.serving() - {kept}, "the worker's return", PATIENCE_S)
    assert host.genpool("up").count("are ready") == 1

    last = host.serving()
    future = llm.generate(rows("held", word="wait"), timeout=PATIENCE_S)
    until(lambda: began(tmp_path)["held"], "the start of the row")
    (tmp_path / "held.go").touch()
    assert "noted-" in host.genpool("down")
    assert future.result()
    until(lambda: not any(map(is_alive, last)), "the end of all")
    assert "nothing of" in host.genpool("down")


def test_one_that_cannot_be_used_is_told_with_what_it_logged(host: OnRay) -> None:
    host.write(replicas=1, load="noted:absent")
    said = host.genpool("up", code=1)
    assert "noted-1 ended (exit code 2): genpool: " in said
    assert "absent" in said
    host.write(replicas=1)
    host.genpool("up")
    assert len(host.serving()) == 1


def test_one_for_which_there_is_no_room_is_told_and_taken_away(host: OnRay) -> None:
    host.write(replicas=3)
    said = host.genpool("up", "--timeout", "15", code=1)
    assert said.count("waits for a host of the cluster that has room for it") == 1
    assert "not all are ready yet" in said
    assert len(host.serving()) == 2
    host.write(replicas=2)
    assert "all 2 are ready" in host.genpool("up")
    host.write(replicas=3)
    assert "noted-3 is started" in host.genpool("up", "--timeout", "0", code=1)
    assert host.genpool("down").count("is stopped") == 3
    until(lambda: not host.serving(), "the end of all")


def test_when_a_node_is_lost_its_replicas_come_back_on_another_and_each_row_is_answered_once(
    host: OnRay, cluster: RayCluster, llm: ProcessLLM, tmp_path: Path
) -> None:
    host.write()
    host.genpool("up")
    before = host.serving()
    assert len(before) == 2
    cluster.order("add")
    names = [f"row{number}" for number in range(200)]
    future = llm.generate(rows(*names, word="sleep:0.1"), timeout=PATIENCE_S)
    until(lambda: len(began(tmp_path)) > 4, "the first rows")
    cluster.order("lose")
    until(lambda: not any(map(is_alive, before)), "the end of the workers on the node", PATIENCE_S)
    assert answered(future.result()) == names
    until(lambda: len(host.serving()) == 2, "the replicas' return", PATIENCE_S)
    assert not host.serving() & before
    # Those that ran on the node when it was lost were begun again; no other row was.
    assert all(count == 1 for count in ended(tmp_path).values())
    assert set(ended(tmp_path)) == set(names)
    assert {pid for _, pid in noted(tmp_path, "ended")} - before
    assert "all 2 are ready" in host.genpool("up")
