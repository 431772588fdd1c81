"""What a Ray actor runs, without Ray."""

from __future__ import annotations

from fleet import until

from genpool.launcher.replica import Replica


def test_one_that_cannot_be_started_says_why_and_can_be_ended() -> None:
    replica = Replica(["--version"], {"A=": "1"}, None)
    until(lambda: replica.state()["last_line"], "its word")
    assert "it cannot be started on " in replica.state()["last_line"]
    assert "illegal environment variable name" in replica.state()["last_line"]
    until(replica.leave, "its end")
