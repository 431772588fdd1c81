"""The private pipe to a local worker, which reads pickles from it, and the private broker: nobody else has an end."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fleet import until
from process import children
from scripted import Local, Scripted, loader

from genpool import LLM
from genpool.client import local as local_module

NOBODY = 65534

CONNECT = f"""
import os, socket, sys
if sys.argv[2] == "nobody":
    os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
try:
    socket.socket(socket.AF_UNIX).connect(sys.argv[1])
except PermissionError:
    print("no entry")
"""


def holders(inode: str) -> set[int]:
    """The processes that have this socket open."""
    found: set[int] = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if str(link.readlink()) == inode:
                found.add(int(link.parts[2]))
        except OSError:
            continue
    return found


def started() -> dict[int, str]:
    """Our children that talk to us over a pipe: id -> the socket that is their end."""
    # Other tests may have left a process of multiprocessing's, which has a `main(3)`, too.
    pattern = re.compile(r"(?:genpool\.worker\.local import main; main\(|'--lifeline', ')(\d+)")
    found = {pid: pattern.search(command) for pid, command in children(os.getpid()).items()}
    return {pid: str(Path(f"/proc/{pid}/fd/{match[1]}").readlink()) for pid, match in found.items() if match}


def test_each_end_of_a_pipe_is_held_by_one_process(local: Local, tmp_path: Path) -> None:
    def with_a_process(task: Any) -> LLM:
        # As an engine starts one that takes over whatever it may.
        process = subprocess.Popen(["sleep", "60"], close_fds=False)
        (tmp_path / "engine").write_text(str(process.pid))
        return Scripted(task, tmp_path)

    llms = [local(with_a_process), local(loader(tmp_path))]
    assert [llm.model_name for llm in llms] == ["scripted"] * 2
    until((tmp_path / "engine").read_text, "the engine's process")
    stranger = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        ends = started()
        assert len(ends) == 3  # two workers and their broker
        for pid, inode in ends.items():
            assert inode.startswith("socket:")
            assert holders(inode) == {pid}
        ours = [worker._child._ours for worker in local_module._workers if worker._child is not None]
        assert len(ours) == 2
        for sock in ours:
            assert holders(str(Path(f"/proc/self/fd/{sock.fileno()}").readlink())) == {os.getpid()}
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can try it as another user")
def test_another_user_does_not_reach_the_private_broker(local: Local, tmp_path: Path) -> None:
    assert local(loader(tmp_path)).model_name == "scripted"
    path = local_module._broker.address.removeprefix("ipc://")

    def tried_by(who: str) -> str:
        command = [sys.executable, "-c", CONNECT, path, who]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout

    assert tried_by("us") == ""
    assert tried_by("nobody") == "no entry\n"
