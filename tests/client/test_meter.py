from __future__ import annotations

import logging

import pytest
from rich.progress import Progress
from voices import info

from genpool.client import meter
from genpool.client.meter import BarMeter, LineMeter, _Pace, _Waits, _Written, awaited
from genpool.client.standing import Made, Standing


def test_a_run_says_what_it_waits_for() -> None:
    assert awaited(None, ["a"]) == "waits for the broker"
    fleet = {"a": info("a"), "b": info("b", ready=0, unwell=1, reason="no quota")}
    assert awaited(fleet, ["a"]) == "the LLMs are at work"
    assert awaited(fleet, ["a", "b"]) == "waits for b (no quota)"
    assert awaited(fleet, ["c"]) == "waits for c"
    fleet = {"a\nb": info("a\nb", ready=0, unwell=1, reason="\x1b[31mred")}
    assert awaited(fleet, ["a\nb"]) == r"waits for a\nb (\x1b[31mred)"


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
    assert _Pace(Standing(), None).text(Standing(rows=1)).startswith("1 row written, 0 failed")
    now = 150.0
    lines.wrote(Standing(rows=1500, failed=3, made={"a": Made(1500, 0, 10_000)}))
    lines.wrote(Standing(rows=1501))
    assert caplog.messages == ["1500 rows written, 3 failed, 10.0 rows/s, 100 tokens/s, 0:00:50 left"]


def test_a_bar_that_stands_still_says_what_it_waits_for_and_slows_down(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(meter.time, "monotonic", lambda: now)
    progress = Progress()
    drawn = BarMeter(progress, Standing(), 1000, 1)
    (task,) = progress.tasks
    written, waits = _Written(_Pace(Standing(), 1000)), _Waits(lambda: "waits for b")
    now = 110.0
    drawn.advance(100)
    drawn.wrote(Standing(rows=100))
    assert written.render(task).plain == "generations (100 rows written, 0 failed, 10.0 rows/s, 0:01:30 left)"
    assert waits.render(task).plain == ""
    now = 200.0
    assert written.render(task).plain == "generations (100 rows written, 0 failed, 1.0 rows/s, 0:15:00 left)"
    assert waits.render(task).plain == "waits for b"
    drawn.advance(1)
    assert waits.render(task).plain == ""
