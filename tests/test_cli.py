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
    assert done.returncode == 1


@pytest.mark.parametrize(
    "arguments",
    [["keys", "new"], ["keys", "show"], ["down", "fleet.toml", "--logs"]],
    ids=["new keys", "shown keys", "logs"],
)
def test_a_path_that_cannot_be_used_is_told_in_a_sentence(tmp_path: Path, arguments: list[str]) -> None:
    path = tmp_path / ("long" * 70)
    done = subprocess.run(
        command(*arguments, str(path)), cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    (line,) = done.stderr.splitlines()
    # Some Pythons say of such a path that nothing is there.
    assert "File name too long" in line or line == "nothing of fleet.toml runs on this host"


@pytest.mark.parametrize(
    "line",
    [
        "keys new",
        "keys show",
        "broker --connection-file",
        "broker --keys",
        "worker --config",
        "up",
        "down f.toml --logs",
    ],
)
def test_an_empty_path_is_refused_in_a_sentence(tmp_path: Path, line: str) -> None:
    done = subprocess.run(
        command(*line.split(), ""), cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.stderr.splitlines()[-1].endswith(": it is empty: name a file or a folder.")
    assert (done.returncode, done.stdout, list(tmp_path.iterdir())) == (2, "", [])
