"""``genpool up --on slurm``: the plan and the script by themselves, and the commands with a real Slurm of one host."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import slurm as real
from echo import command
from fleet import PATIENCE_S, Fleet, until
from noted import began, noted

from genpool import ProcessLLM
from genpool.launcher.service import Fleet as Wanted
from genpool.launcher.service import Recipe, Service
from genpool.launcher.slurm import End, Submit, Task, digest_of, down, plan, script, tasks_in, up
from genpool.protocol.errors import ConfigurationError

SMALL = Service("small", Recipe(("worker", "--llm=small", "--load=a:b"), (("A", "it's"),), 1), 2)
LARGE = Service("large", Recipe(("worker", "--llm=large", "--load=a:b")), 1, slurm=(("partition", "gpu"),))
WANTED = Wanted(Path("/home/me/fleet.toml"), (SMALL, LARGE))


def task(index: int, service: Service = SMALL, job: int = 7, digest: str | None = None, state: str = "RUNNING") -> Task:
    return Task(job, index, state, "None", service.name, digest or digest_of(service))


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("squeue: error: trying\nsqueue: error: the controller is away\n", "squeue has failed: the controller is away"),
        ("", "squeue has failed: exit code 3"),
    ],
    ids=["says why", "says nothing"],
)
def test_a_command_of_slurms_that_fails_is_told_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, told: str
) -> None:
    (tmp_path / "squeue").write_text(f"#!/bin/sh\nprintf {shlex.quote(said)} >&2\nexit 3\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(ConfigurationError) as raised:
        down(WANTED, 1.0)
    assert str(raised.value) == told


def test_a_task_that_ends_while_it_is_asked_to_is_no_failure_and_the_others_are_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    comments = [line for line in script(WANTED, Submit(SMALL, 2), tmp_path).splitlines() if "--comment" in line]
    comment = comments[0].partition("--comment=")[2]
    listing = f"7|1|RUNNING|None|{comment}\n7|2|PENDING|Priority|{comment}\n"
    ended = "scancel: error: Kill job error on job id 7_1: Invalid job id specified"
    fails = f"[ $1 != --batch ] || {{ echo '{ended}' >&2; exit 1; }}"
    (tmp_path / "scancel").write_text(f"#!/bin/sh\necho $@ >> '{tmp_path}/called'\n{fails}\n")
    (tmp_path / "scancel").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    # When the time is over, the last one has just gone, too.
    listings = iter([listing, listing, ""])
    monkeypatch.setattr("genpool.launcher.slurm._queued", lambda fleet: tasks_in(next(listings), fleet))
    assert down(WANTED, 0.0) == 0
    assert (tmp_path / "called").read_text().splitlines() == ["--batch --signal=TERM 7_1", "7_2"]


def test_up_does_not_wait_for_tasks_that_have_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("genpool.launcher.slurm._GONE_AFTER_S", 0.0)
    monkeypatch.setattr("genpool.launcher.slurm._run", lambda *_: "7\n")
    # One of each LLM's is left, then only one.
    listings = iter([[], [task(1), task(1, LARGE)], [task(1)]])
    monkeypatch.setattr("genpool.launcher.slurm._queued", lambda fleet: next(listings))
    assert up(WANTED, tmp_path, detach=False, timeout_s=None) == 1
    assert capsys.readouterr().err.splitlines()[2:] == [
        f"not all run yet; 2 of 3 have ended: see the logs in {tmp_path}"
    ]


# The plan.


def test_what_is_not_in_the_queue_is_submitted() -> None:
    assert plan(WANTED, []) == [Submit(SMALL, 2), Submit(LARGE, 1)]


def test_what_is_as_it_should_be_is_left_alone() -> None:
    assert plan(WANTED, [task(1), task(2, state="PENDING"), task(1, LARGE, 8)]) == []


def test_replicas_go_up_and_down() -> None:
    assert plan(WANTED, [task(1), task(1, LARGE, 8)]) == [Submit(SMALL, 1)]
    fewer = replace(WANTED, services=(replace(SMALL, replicas=1), LARGE))
    assert plan(fewer, [task(1), task(2), task(1, LARGE, 8)]) == [End((task(2),))]


def test_a_changed_llm_is_replaced_and_one_that_is_gone_ends() -> None:
    former = [task(number, digest="former") for number in (1, 2)]
    assert plan(replace(WANTED, services=(SMALL,)), [*former, task(1, LARGE, 8)]) == [
        Submit(SMALL, 2, tuple(former)),
        End((task(1, LARGE, 8),)),
    ]


def test_a_former_task_that_only_waits_is_ended_at_once_and_after_the_others_are_submitted() -> None:
    runs, waits = task(1, digest="former"), task(2, digest="former", state="PENDING")
    assert plan(replace(WANTED, services=(SMALL,)), [runs, waits]) == [Submit(SMALL, 2, (runs,)), End((waits,))]
    assert plan(replace(WANTED, services=(SMALL,)), [waits]) == [Submit(SMALL, 2), End((waits,))]


def test_what_is_left_of_a_former_recipe_ends_when_all_new_ones_are_there() -> None:
    former = task(1, job=6, digest="former")
    assert plan(replace(WANTED, services=(SMALL,)), [former, task(1), task(2)]) == [End((former,))]


def test_a_changed_option_of_sbatch_is_another_recipe() -> None:
    assert digest_of(LARGE) != digest_of(replace(LARGE, slurm=()))
    assert digest_of(SMALL) == digest_of(replace(SMALL, replicas=5))


# What is said to Slurm, and what it says.


def test_the_script_says_all_to_slurm_and_bash_can_read_it(tmp_path: Path) -> None:
    text = script(WANTED, Submit(SMALL, 3, (task(1), task(2), task(3), task(4))), tmp_path)
    for line in (
        "#SBATCH --array=1-3",
        "#SBATCH --requeue",
        "#SBATCH --signal=B:USR1@330",
        "#SBATCH --gpus=1",
        "replaced=('7_1 7_4' 7_2 7_3)",
        "cd /home/me || exit 2",
    ):
        assert line in text.splitlines()
    assert "export A='it'\"'\"'s'" in text
    assert text.index("#SBATCH --signal") < text.index("export A"), "directives come first"
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


@pytest.mark.parametrize(
    ("state", "called"),
    [
        ("RUNNING", "--batch --signal=TERM 7_1"),
        ("PENDING", "7_1"),
        ("", "--batch --signal=TERM 7_1"),
    ],
    ids=["runs", "waits again", "not known"],
)
def test_a_new_task_has_an_old_one_drain_and_cancels_one_that_has_begun_to_wait(
    tmp_path: Path, state: str, called: str
) -> None:
    for name, line in (("squeue", f"echo {state}"), ("scancel", f"echo $@ >> '{tmp_path}/called'")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    text = script(replace(WANTED, path=tmp_path / "fleet.toml"), Submit(SMALL, 1, (task(1),)), tmp_path)
    # In the worker's place something that tells that it is ready.
    (begin,) = [line for line in text.splitlines() if line.endswith("--restart &")]
    tell = "import os, socket; socket.socket(1, 2).sendto(b'READY=1', os.environ['NOTIFY_SOCKET'])"
    wait = f"until [[ -S $NOTIFY_SOCKET ]]; do sleep 0.05; done; {shlex.join([sys.executable, '-c', tell])}; wait %1"
    wait += f"; echo -n $NOTIFY_SOCKET > '{tmp_path}/ear'"
    (tmp_path / ("deep" * 30)).mkdir()
    subprocess.run(
        ["bash"],
        input=text.replace(begin, wait).partition("worker=")[0],
        env={
            **os.environ,
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "SLURM_ARRAY_TASK_ID": "1",
            "TMPDIR": str(tmp_path / ("deep" * 30)),
        },
        text=True,
        check=True,
        timeout=PATIENCE_S,
    )
    assert (tmp_path / "called").read_text().splitlines() == [called]
    assert not Path((tmp_path / "ear").read_text()).parent.exists(), "a folder was left"


def test_no_part_of_a_name_or_a_folder_is_taken_for_slurms_own_in_a_logs_path() -> None:
    text = script(WANTED, Submit(replace(LARGE, name="ü/é"), 1), Path("/50%of"))
    assert "#SBATCH --output=/50%%of/%%C3%%BC%%2F%%C3%%A9-%A_%a.log" in text.splitlines()


def test_a_script_that_replaces_nothing_says_nothing_of_it(tmp_path: Path) -> None:
    text = script(WANTED, Submit(LARGE, 1), tmp_path)
    assert "#SBATCH --partition=gpu" in text
    assert "replaced" not in text
    assert "--gpus" not in text


def test_the_queue_is_read_and_what_is_another_fleets_or_ends_is_left_out(tmp_path: Path) -> None:
    text = script(WANTED, Submit(replace(SMALL, name="a|b:c"), 1), tmp_path)
    (comment,) = [line.partition("--comment=")[2] for line in text.splitlines() if "--comment" in line]
    listing = f"12|1|RUNNING|None|{comment}\n12|2|COMPLETING|None|{comment}\n13|N/A|PENDING|Priority|(null)\n14|1\n"
    assert tasks_in(listing, WANTED) == [Task(12, 1, "RUNNING", "None", "a|b:c", digest_of(SMALL))]
    assert tasks_in(listing, replace(WANTED, path=Path("/home/me/another.toml"))) == []


# A real one.

needs_slurm = pytest.mark.skipif(bool(real.lacking()), reason=real.lacking())


class Cluster(Fleet):
    """A broker, and a Slurm of one host for the workers."""

    def __init__(self, folder: Path, slurm: real.Slurm) -> None:
        super().__init__(folder)
        self.slurm = slurm
        self.file = folder / "fleet.toml"

    def write(self, replicas: int, sbatch: str = "", **env: str) -> None:
        environment = {
            "NOTED": str(self.folder),
            "CONCURRENCY": "2",
            "PYTHONPATH": str(Path(__file__).parents[1]),
            **env,
        }
        lines = [f'{key} = "{value}"' for key, value in environment.items()]
        head = f'broker = "{self.address}"\n[llm.noted]\nload = "noted:load"\nreplicas = {replicas}\n'
        self.file.write_text("\n".join([head, '[slurm]\ntime = "1:00:00"', sbatch, "[llm.noted.env]", *lines]) + "\n")

    def run(self, *arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            command(*arguments), env=self.slurm.environment, capture_output=True, text=True, timeout=2 * PATIENCE_S
        )
        assert done.returncode == code, done.stderr
        return done.stderr

    def up(self) -> str:
        return self.run("up", "--on", "slurm", "--timeout", "50", "--logs", str(self.folder / "logs"), str(self.file))

    def tasks(self) -> list[str]:
        """What runs or waits."""
        return self.slurm.run("squeue", "-h", "-r", "-t", "R,PD", "-o", "%F_%K").split()

    def pids(self) -> set[int]:
        """Of the workers that are ready."""
        llms = self.report()["llms"]
        return {one["pid"] for llm in llms for one in llm["workers"] if one["state"] in ("ready", "busy")}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with ExitStack() as stack:
        try:
            slurm = stack.enter_context(real.Slurm(tmp_path))
        except real.CannotStart as error:
            pytest.skip(f"no Slurm can be started on this machine: {error}")
        cluster = stack.enter_context(Cluster(tmp_path, slurm))
        cluster.start_broker()
        yield cluster


@needs_slurm
@pytest.mark.timeout(240)
def test_a_real_slurm_runs_replaces_requeues_and_ends_workers(cluster: Cluster) -> None:
    # What only waits when the file changes must not run later on.
    cluster.write(replicas=2, sbatch='begin = "now+1hour"')
    cluster.run("up", "--detach", "--on", "slurm", "--logs", str(cluster.folder / "logs"), str(cluster.file))
    waiting = cluster.tasks()
    cluster.write(replicas=2)
    assert "all 2 run" in cluster.up()
    assert len(waiting) == 2
    assert not set(waiting) & set(cluster.tasks())
    until(lambda: len(cluster.pids()) == 2, "two workers")
    assert len([*(cluster.folder / "logs").glob("noted-*.log")]) == 2
    first, tasks = cluster.pids(), cluster.tasks()
    assert cluster.up().splitlines()[0].startswith("all 2 run"), "nothing is done twice"
    assert cluster.tasks() == tasks

    llm = ProcessLLM.connect("noted", broker=cluster.address)
    try:
        rows = [f"sleep:0.2 {number}" for number in range(60)]
        future = llm.generate([{"input": row} for row in rows], timeout=200)
        until(lambda: began(cluster.folder), "the start of a row")
        # A changed LLM is replaced, and goes on meanwhile.
        cluster.write(replicas=2, CONCURRENCY="3")
        cluster.up()
        until(lambda: len(cluster.pids()) == 2 and not cluster.pids() & first, "two other workers", 60.0)
        # The time limit is near: the worker drains, and its task goes back into the queue.
        # The last of an array has the array's own id, by which all of them might be meant.
        drained = max(task for task in cluster.tasks() if task not in tasks)
        second = cluster.pids()
        cluster.slurm.run("scancel", "--batch", "--signal=USR1", drained)
        until(lambda: len(cluster.pids()) == 1, "the end of a drained worker", 60.0)
        assert [row[0]["raw_output"] for row in future.result()] == [row.upper() for row in rows]
        assert len(noted(cluster.folder, "ended")) == len(rows), "a drain repeats nothing"
        assert cluster.pids() < second
        assert drained in cluster.tasks()
    finally:
        llm.teardown()

    assert "asked to end" in cluster.run("down", "--on", "slurm", "--timeout", "40", str(cluster.file))
    assert cluster.tasks() == []
    until(lambda: not cluster.pids(), "the end of all workers")
    assert "nothing of" in cluster.run("down", "--on", "slurm", str(cluster.file))


def test_without_slurm_a_sentence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fleet.toml").write_text('broker = "head:5555"\n[llm.a]\nload = "a:b"\n')
    done = subprocess.run(
        command("up", "--on", "slurm", "fleet.toml"),
        cwd=tmp_path,
        env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "--on slurm calls 'squeue', which is not on the path" in done.stderr
    assert "Traceback" not in done.stderr
