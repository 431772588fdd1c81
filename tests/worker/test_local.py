"""A worker that a client has started on its own machine, the real process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

_PROGRAM = """
import os
import sys
from pathlib import Path
from genpool import ProcessLLM
from scripted import TASK, Scripted

def load(task):
    print("it loads")
    print("into", os.readlink("/proc/self/fd/1"), file=sys.stderr)
    return Scripted(task, Path("."))

llm = ProcessLLM(TASK, load)
try:
    ((output,),) = llm.generate([{"input": "a"}]).result(30)
finally:
    llm.teardown()
print(output["raw_output"], file=sys.stderr)
"""


def closed(command: list[str]) -> subprocess.CompletedProcess[str]:
    return run(["sh", "-c", 'exec "$0" "$@" >&-', *command])


def full(command: list[str]) -> subprocess.CompletedProcess[str]:
    with Path("/dev/full").open("wb") as stdout:
        return run(command, stdout.fileno())


def unread(command: list[str]) -> subprocess.CompletedProcess[str]:
    ours, theirs = os.pipe()
    os.close(ours)
    try:
        return run(command, theirs)
    finally:
        os.close(theirs)


def run(command: list[str], stdout: int = subprocess.DEVNULL) -> subprocess.CompletedProcess[str]:
    # Unbuffered, the loader's own print would raise.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": ""}
    return subprocess.run(
        command, env=environment, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=50, check=False
    )


@pytest.mark.parametrize(
    ("run_with_stdout", "said"),
    [
        # Not into the socket of ours that would have its number.
        (closed, "into /dev/null"),
        (full, "into /dev/full"),
        (unread, "into pipe:"),
    ],
    ids=["closed", "full", "unread"],
)
def test_a_local_llm_needs_no_standard_output(
    run_with_stdout: Callable[[list[str]], subprocess.CompletedProcess[str]], said: str
) -> None:
    ended = run_with_stdout([sys.executable, "-c", _PROGRAM])
    assert ended.returncode == 0, ended.stderr
    lines = ended.stderr.splitlines()
    assert [line for line in lines if line.startswith(said)]
    assert "a" in lines  # beside what Python says of a text that nobody took
