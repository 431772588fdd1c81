"""Looking at processes, and Python programs with a folder for temporary files of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from fleet import until


def is_alive(pid: int) -> bool:
    """Whether the process is there and more than a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def children(pid: int) -> dict[int, str]:
    """The living children of a process: id -> command line."""
    found: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == pid and is_alive(int(folder.name)):
            found[int(folder.name)] = command
    return found


def _described(pid: int) -> str:
    """What a process is and where its threads wait, for the report of a failure."""
    folder = Path(f"/proc/{pid}")
    try:
        command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        waits = [
            f"{(task / 'comm').read_text().strip()}:{(task / 'wchan').read_text()}"
            for task in (folder / "task").iterdir()
        ]
        files = sorted(f"{file.name}->{file.readlink()}" for file in (folder / "fd").iterdir())
    except OSError as error:
        return str(error)
    return f"{command} threads {waits} files {files}"


class Program:
    """A Python program in a session of its own. ``folder`` is its TMPDIR, and removed at the end.

    Every process that descends from it is known by that TMPDIR, whoever its parent is by now.
    """

    def __init__(self, source: str) -> None:
        # Short, because a socket's path must be; so it is not pytest's.
        self.folder = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))
        self._said = self.folder / "said"
        environment = {name: value for name, value in os.environ.items() if name != "XDG_RUNTIME_DIR"}
        with self._said.open("wb") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-c", source],
                env={**environment, "TMPDIR": str(self.folder), "PYTHONPATH": os.pathsep.join(sys.path)},
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            sys.stderr.write(self.said)
            for pid in self.living:
                sys.stderr.write(f"alive: {pid} {_described(pid)}\n")
        self.process.kill()
        self.process.wait()
        for pid in self.living:
            os.kill(pid, 9)
        shutil.rmtree(self.folder)

    @property
    def said(self) -> str:
        """What it has written by now, to either stream."""
        return self._said.read_text()

    def wait_for(self, words: str) -> None:
        """Wait until it has written ``words``; fails when it ends before."""
        until(lambda: words in self.said or self.process.poll() is not None, f"a program's {words!r}")
        assert words in self.said, self.said

    @property
    def living(self) -> list[int]:
        """The processes that it has started and that are alive, itself not among them."""
        mark = f"TMPDIR={self.folder}".encode()
        found: list[int] = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                environment = (folder / "environ").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            pid = int(folder.name)
            if mark in environment and pid != self.process.pid and is_alive(pid):
                found.append(pid)
        return found

    @property
    def left(self) -> list[str]:
        """The names of the files that it has made in ``folder`` and not removed."""
        return sorted(path.name for path in self.folder.iterdir() if path != self._said)
