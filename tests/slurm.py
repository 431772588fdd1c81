"""A real Slurm of one host in a temporary folder: its own munge, controller and node, on ports of their own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol")
PATIENCE_S = 30.0

# Without cgroups, accounting and tasks' placement: as little as batch jobs need. Cores are counted as configured.
_CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.out
SlurmdLogFile={folder}/slurmd.out
SlurmdParameters=config_overrides
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=30
SchedulerParameters=batch_sched_delay=0,sched_min_interval=100000
NodeName={host} NodeAddr=127.0.0.1 CPUs=16 RealMemory=1000
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def lacking() -> str:
    """Why there can be no Slurm here; nothing where it can."""
    path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin"))
    missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if missing:
        return f"Slurm is not installed here: {', '.join(missing)} (apt install slurm-wlm munge)"
    return "" if os.geteuid() == 0 else "a Slurm of our own needs root"


class CannotStart(Exception):
    """This machine runs no Slurm, though it is installed."""


class Slurm:
    """See the module. ``environment`` has its commands find it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "slurm"
        self._daemons: list[subprocess.Popen[bytes]] = []
        self.environment = {**os.environ, "SLURM_CONF": str(self._folder / "slurm.conf")}
        self.environment["PATH"] = os.pathsep.join((os.environ["PATH"], "/usr/sbin"))

    def __enter__(self) -> Self:
        try:
            self._begin()
        except CannotStart:
            self.__exit__()
            raise
        return self

    def _begin(self) -> None:
        folder = self._folder
        for name in ("state", "spool"):
            (folder / name).mkdir(parents=True)
        ports = dict(zip(("controller_port", "node_port"), _free_ports(2), strict=True))
        host = socket.gethostname().partition(".")[0]
        (folder / "slurm.conf").write_text(_CONFIGURATION.format(host=host, folder=folder, **ports))
        key = folder / "munge.key"
        key.touch(0o400)
        key.write_bytes(os.urandom(1024))
        files = [f"--{name}-file={folder}/munge.{name}" for name in ("pid", "seed", "log")]
        self._start("munged", "--foreground", "--force", f"--socket={folder}/munge.socket", f"--key-file={key}", *files)
        self._wait(lambda: (folder / "munge.socket").exists(), "munge")
        self._start("slurmctld", "-D", "-c")
        self._start("slurmd", "-D", "-c")
        self._wait(lambda: "idle" in self.run("sinfo", "-h", "-o", "%T", check=False), "an idle node")

    def __exit__(self, *_: object) -> None:
        self.run("scancel", "--user=root", check=False)
        deadline = time.monotonic() + PATIENCE_S
        while self.run("squeue", "-h", check=False).strip() and time.monotonic() < deadline:
            time.sleep(0.1)
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def run(self, *command: str, check: bool = True) -> str:
        """What a command of Slurm's prints; nothing where it hangs and need not succeed."""
        try:
            done = subprocess.run(
                command, env=self.environment, capture_output=True, text=True, check=False, timeout=30
            )
        except subprocess.TimeoutExpired:
            assert not check, f"{command} hangs"
            return ""
        assert done.returncode == 0 or not check, f"{command}: {done.stderr}"
        return done.stdout

    def _start(self, *command: str) -> None:
        with (self._folder / f"{command[0]}.log").open("wb") as log:
            self._daemons.append(subprocess.Popen(command, env=self.environment, stdout=log, stderr=log))

    def _wait(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() >= deadline:
                raise CannotStart(f"{what} did not come: {self._said()}")
            time.sleep(0.05)

    def _said(self) -> str:
        return "\n".join(file.read_text(errors="replace")[-1000:] for file in self._folder.glob("*.log"))


def _free_ports(count: int) -> list[int]:
    with_sockets = [socket.socket() for _ in range(count)]
    for sock in with_sockets:
        sock.bind(("127.0.0.1", 0))
    ports = [sock.getsockname()[1] for sock in with_sockets]
    for sock in with_sockets:
        sock.close()
    return ports
