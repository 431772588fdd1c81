"""What a Ray actor runs, without Ray."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fleet import until

from genpool.launcher.replica import Replica


def test_one_that_cannot_be_started_says_why_and_can_be_ended() -> None:
    replica = Replica(["--version"], {"A=": "1"}, None)
    until(lambda: replica.state()["last_line"], "its word")
    assert "it cannot be started on " in replica.state()["last_line"]
    assert "illegal environment variable name" in replica.state()["last_line"]
    until(replica.leave, "its end")


def test_the_temporary_folder_may_have_a_path_that_is_too_long_for_a_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("deep" * 25)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    replica = Replica(["--nonsense"], {}, None)
    until(lambda: replica.state()["last_line"], "its word")
    # Whichever of the lines about its wrong usage is the last by now.
    assert re.match("Usage: |Try |Error: No such option", replica.state()["last_line"]), "it was not started"
    until(replica.leave, "its end")
