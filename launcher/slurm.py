"""``genpool up --on slurm``: an array of batch jobs for each LLM, a task for each replica.

Slurm keeps them: there is no launcher that runs, and no file of what was started. A job's comment says of which fleet
file, LLM and recipe it is, and what is in the queue is read from there.
"""

from __future__ import annotations

import hashlib
import logging
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote, unquote

from ..protocol.errors import ConfigurationError
from ..protocol.logs import say
from ..protocol.printable import printable
from .service import Fleet, Service

_say = partial(say, lead="")

_LOOK_S = 1.0
_SAY_EVERY_S = 30.0

# A task that is requeued may be missing from the queue for so long, one that has ended is for ever.
_GONE_AFTER_S = 60.0

# Before the time limit, beyond what a drain may take: Slurm looks only now and then.
_LEAD_S = 30

_FIELDS = "%F|%K|%T|%r|%k"
_ENDING = ("COMPLETING", "CANCELLED", "COMPLETED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY")

# What ``scancel`` says of a job that has ended.
_GONE = ("Invalid job id specified", "Job/step already completing or completed")

_SCRIPT = """\
#!/bin/bash
{directives}
{exports}
cd {folder} || exit 2
again=
{takeover}{worker} &
worker=$!
trap 'kill -TERM $worker' TERM
trap 'again=1; kill -TERM $worker' USR1  # the time limit is near: drain, and go on in another job
code=0
while kill -0 $worker 2>/dev/null; do
    wait $worker
    code=$?
done
[[ -z $again ]] || scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
exit $code
"""

# The new replica tells that it is ready as it would tell systemd; then the one goes whose place it takes. Not below
# TMPDIR, whose path may be too long for a socket's.
_TAKEOVER = """\
replaced=({tasks})
export NOTIFY_SOCKET=$(mktemp -d /tmp/genpool-XXXXXXXX)/ready
trap 'rm -rf "${{NOTIFY_SOCKET%/ready}}"' EXIT
{python} - "${{replaced[SLURM_ARRAY_TASK_ID - 1]}}" <<'END' &
import os, socket, subprocess, sys
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
    ready.bind(os.environ["NOTIFY_SOCKET"])
    while b"READY=1" not in ready.recv(4096):
        pass
for task in sys.argv[1].split():
    # Requeued meanwhile, it would run again: what waits gets no signal.
    look = ["squeue", "--noheader", "--array", "--format=%T", f"--jobs={{task}}"]
    waits = b"PENDING" in subprocess.run(look, stdout=subprocess.PIPE, check=False).stdout
    subprocess.run(["scancel", *["--batch", "--signal=TERM"] * (not waits), task], check=False)
END
"""


@dataclass(frozen=True, slots=True)
class Task:
    """A task of an array in the queue: the replica of an LLM, by a recipe that has this ``digest``."""

    job: int
    index: int
    state: str
    reason: str
    llm: str
    digest: str

    @property
    def is_running(self) -> bool:
        return self.state == "RUNNING"

    def __str__(self) -> str:
        return f"{self.job}_{self.index}"


@dataclass(frozen=True, slots=True)
class Submit:
    """To do: ``count`` replicas more of a service, which take the places of the tasks in ``replaces``."""

    service: Service
    count: int
    replaces: tuple[Task, ...] = ()


@dataclass(frozen=True, slots=True)
class End:
    """To do: drain these tasks."""

    tasks: tuple[Task, ...]


def plan(fleet: Fleet, tasks: Iterable[Task]) -> list[Submit | End]:
    """What to do to bring what is in the queue to the state of the file. What is as it should be is left alone."""
    by_llm: dict[str, list[Task]] = {service.name: [] for service in fleet.services}
    for task in tasks:
        by_llm.setdefault(task.llm, []).append(task)
    todo: list[Submit | End] = []
    for service in fleet.services:
        own = by_llm.pop(service.name)
        kept = [task for task in own if task.digest == digest_of(service)]
        former = [task for task in own if task.digest != digest_of(service)]
        surplus = kept[service.replicas :]
        missing = service.replicas - len(kept)
        if missing > 0:
            todo.append(Submit(service, missing, tuple(task for task in former if task.is_running)))
            # Those serve nobody.
            surplus += [task for task in former if not task.is_running]
        else:
            surplus += former
        if surplus:
            todo.append(End(tuple(surplus)))
    gone = tuple(task for others in by_llm.values() for task in others)
    return [*todo, End(gone)] if gone else todo


def digest_of(service: Service) -> str:
    """The same for recipes that need no other process."""
    return hashlib.sha256(repr((service.recipe, service.slurm)).encode()).hexdigest()[:12]


def script(fleet: Fleet, submit: Submit, logs: Path) -> str:
    """The batch script of an array."""
    service = submit.service
    own = {
        "job-name": f"genpool-{service.name}",
        "array": f"1-{submit.count}",
        "comment": f"{_prefix(fleet)}:{digest_of(service)}:{quote(service.name, safe='')}",
        "output": str(logs / quote(service.name, safe="")).replace("%", "%%") + "-%A_%a.log",
        "open-mode": "append",
        "requeue": "",
        "signal": f"B:USR1@{int(fleet.drain_s) + _LEAD_S}",
    }
    if service.recipe.gpus:
        own["gpus"] = str(service.recipe.gpus)
    options = {**dict(service.slurm), **own}
    return _SCRIPT.format(
        directives="\n".join(
            f"#SBATCH --{name}{f'={shlex.quote(value)}' * bool(value)}" for name, value in options.items()
        ),
        exports="\n".join(f"export {name}={shlex.quote(value)}" for name, value in service.recipe.environment),
        folder=shlex.quote(str(fleet.path.parent)),
        takeover=_takeover(submit) if submit.replaces else "",
        worker=shlex.join([sys.executable, "-m", "genpool.cli", *service.recipe.arguments, "--restart"]),
    )


def _takeover(submit: Submit) -> str:
    """Each new task ends its share of the old ones."""
    shares = [" ".join(map(str, submit.replaces[at :: submit.count])) for at in range(submit.count)]
    return _TAKEOVER.format(tasks=" ".join(map(shlex.quote, shares)), python=shlex.quote(sys.executable))


def _prefix(fleet: Fleet) -> str:
    return f"genpool:{hashlib.sha256(str(fleet.path).encode()).hexdigest()[:12]}"


def tasks_in(listing: str, fleet: Fleet) -> list[Task]:
    """The tasks of this fleet file in what ``squeue`` has printed, those that end left out."""
    tasks: list[Task] = []
    for line in listing.splitlines():
        job, index, state, reason, comment = [*line.strip().split("|", 4), "", "", "", ""][:5]
        if not comment.startswith(f"{_prefix(fleet)}:") or state in _ENDING or not index.isdigit():
            continue
        digest, _, name = comment.removeprefix(f"{_prefix(fleet)}:").partition(":")
        tasks.append(Task(int(job), int(index), state, reason, unquote(name), digest))
    return tasks


# What is done with it.


def up(fleet: Fleet, logs: Path, *, detach: bool, timeout_s: float | None) -> int:
    """Bring the queue to the state of the file, and wait until all tasks run. Returns the exit code."""
    logs.mkdir(parents=True, exist_ok=True)
    for one in plan(fleet, _queued(fleet)):
        if isinstance(one, End):
            _end(one.tasks)
            _say(f"asked to end: {_listed(one.tasks)}")
            continue
        job = _run(["sbatch", "--parsable"], script(fleet, one, logs)).strip().partition(";")[0]
        then = f"; as each is ready, one of {_listed(one.replaces)} is asked to end" if one.replaces else ""
        _say(f"job {job}: {one.count} of {one.service.name!r}{then}")
    if detach:
        return 0
    wanted = sum(service.replicas for service in fleet.services)
    if not _wait(fleet, lambda tasks: _running(fleet, tasks) >= wanted, timeout_s, wanted):
        gone = wanted - len(_current(fleet, _queued(fleet)))
        why = f"{gone} of {wanted} have ended: see the logs in {logs}" if gone > 0 else "they stay in the queue"
        _say(f"not all run yet; {why}", logging.WARNING)
        return 1
    _say(f"all {wanted} run; logs are in {logs}")
    return 0


def down(fleet: Fleet, timeout_s: float | None) -> int:
    """Drain and end all tasks of the file. Returns the exit code."""
    tasks = _queued(fleet)
    if not tasks:
        _say(f"nothing of {fleet.path} is in the queue")
        return 0
    _end(tasks)
    _say(f"asked to end: {_listed(tasks)}")
    if not _wait(fleet, lambda left: not left, fleet.drain_s if timeout_s is None else timeout_s):
        left = _queued(fleet)
        if left:
            _say(f"not drained in time, and cancelled: {_listed(left)}", logging.WARNING)
            _run(["scancel", *map(str, left)])
    return 0


def _end(tasks: Sequence[Task]) -> None:
    running = [str(task) for task in tasks if task.is_running]
    waiting = [str(task) for task in tasks if not task.is_running]
    if running:
        # Some may have ended since they were listed. Of these a signal is refused, though no cancellation is.
        _run(["scancel", "--batch", "--signal=TERM", *running], borne=_GONE)
    if waiting:
        _run(["scancel", *waiting])


def _running(fleet: Fleet, tasks: Iterable[Task]) -> int:
    return sum(task.is_running for task in _current(fleet, tasks))


def _current(fleet: Fleet, tasks: Iterable[Task]) -> list[Task]:
    """Those that are as the file says."""
    digests = {service.name: digest_of(service) for service in fleet.services}
    return [task for task in tasks if digests.get(task.llm) == task.digest]


def _wait(fleet: Fleet, condition: Callable[[list[Task]], bool], timeout_s: float | None, at_least: int = 0) -> bool:
    """Wait until it is true of what is in the queue, and say now and then what is waited for.

    Without ``at_least`` so many tasks of the file it will never be true.
    """
    begun = said = whole = time.monotonic()
    while not condition(tasks := _queued(fleet)):
        now = time.monotonic()
        if len(_current(fleet, tasks)) >= at_least:
            whole = now
        if now - whole >= _GONE_AFTER_S or (timeout_s is not None and now - begun >= timeout_s):
            return False
        if now - said >= _SAY_EVERY_S:
            said = now
            _say(f"in the queue: {_listed(tasks)}")
        time.sleep(_LOOK_S)
    return True


def _queued(fleet: Fleet) -> list[Task]:
    return tasks_in(_run(["squeue", "--me", "--array", "--noheader", f"--format={_FIELDS}"]), fleet)


def _listed(tasks: Sequence[Task]) -> str:
    return ", ".join(f"{task} of {task.llm!r} ({task.state.lower()})" for task in tasks) or "nothing"


def _run(command: Sequence[str], given: str | None = None, borne: tuple[str, ...] = ()) -> str:
    """What the command prints. It may fail where all that it says of it ends in one of ``borne``."""
    if shutil.which(command[0]) is None:
        raise ConfigurationError(f"--on slurm calls {command[0]!r}, which is not on the path: call it on a login node")
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    is_borne = bool(lines) and all(line.endswith(borne) for line in lines)
    if done.returncode != 0 and not is_borne:
        # Each line begins with the command's name; the last one says most.
        said = (lines or [""])[-1].removeprefix(f"{command[0]}: ").removeprefix("error: ")
        why = printable(said) or f"exit code {done.returncode}"
        raise ConfigurationError(f"{command[0]} has failed: {why}")
    return done.stdout
