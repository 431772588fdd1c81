"""The ``genpool`` command itself: what becomes of what it prints."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from echo import command
from fleet import PATIENCE_S


@pytest.mark.parametrize("buffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("what", ["--help", "--version", "worker --help", "keys new keys"])
def test_what_a_full_disk_does_not_take_is_told_in_a_sentence(tmp_path: Path, what: str, buffered: str) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            command(*what.split()),
            cwd=tmp_path,
            env={**os.environ, "PYTHONUNBUFFERED": buffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    assert done.stderr == "genpool: the output cannot be written: No space left on device\n"
    assert done.returncode == 2
