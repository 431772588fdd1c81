from __future__ import annotations

import logging

import pytest
from voices import info

from genpool.client import meter
from genpool.client.meter import LineMeter, awaited
from genpool.client.standing import Made, Standing


def test_a_run_says_what_it_waits_for() -> None:
    assert awaited(None, ["a"]) == "waits for the broker"
    fleet = {"a": info("a"), "b": info("b", ready=0, unwell=1, reason="no quota")}
    assert awaited(fleet, ["a"]) == "the LLMs are at work"
    assert awaited(fleet, ["a", "b"]) == "waits for b (no quota)"
    assert awaited(fleet, ["c"]) == "waits for c"


def test_lines_tell_the_pace_of_this_run_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 100.0
    monkeypatch.setattr(meter.time, "monotonic", lambda: now)
    caplog.set_level(logging.INFO, "genpool.generate")
    before = Standing(rows=1000, made={"a": Made(1000, 0, 5000)})
    lines = LineMeter(before, 2000)
    lines.wrote(Standing(rows=1001))
    assert caplog.text == ""
    now = 150.0
    lines.wrote(Standing(rows=1500, failed=3, made={"a": Made(1500, 0, 10_000)}))
    lines.wrote(Standing(rows=1501))
    assert caplog.messages == ["1500 rows written, 3 failed, 10.0 rows/s, 100 tokens/s, 0:00:50 left"]
