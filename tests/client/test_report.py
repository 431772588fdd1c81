from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from genpool.client.claim import Places, finished_report
from genpool.client.formats.format import format_of
from genpool.client.report import report_of, summary, workers_lost, write_report
from genpool.client.standing import LostWorker, Made, Standing

HEADER: dict[str, Any] = {
    "run": "7",
    "started": "then",
    "pool": ["a", "b"],
    "drawn": None,
    "settings": {},
    "errors": None,
}


def lost(llm: str, ago_s: float) -> dict[str, Any]:
    return {"llm": llm, "host": "gpu1", "pid": 12, "ago_s": ago_s, "why": "its connection broke", "rows": 3}


def test_it_tells_what_became_of_the_rows_and_who_was_lost(tmp_path: Path) -> None:
    standing = Standing(
        rows=100,
        failed=9,
        reasons={"seldom": 2, "often": 7},
        made={"a": Made(90, 900, 1800, 0.25), "b": Made(10)},
        repeated=4,
        seconds=60.0,
    )
    fleet = {"lost": [lost("a", 30.0) | {"new": 1}, lost("a", 90.0), lost("another run's", 30.0)]}
    standing = replace(standing, lost=workers_lost(fleet, HEADER["pool"], 60.0))
    report = report_of(HEADER, standing, is_finished=True)
    assert list(report["reasons"].items()) == [("often", 7), ("seldom", 2)]
    assert report["llms"] == {
        "a": {
            "outputs": 90,
            "outputs_per_s": 1.5,
            "prompt_tokens": 900,
            "completion_tokens": 1800,
            "completion_tokens_per_s": 30.0,
            "cost": 0.25,
        },
        "b": {"outputs": 10, "outputs_per_s": 0.17},
    }
    assert report["workers_lost"] == [lost("a", 30.0)]
    assert summary(report) == [
        "7 failed: often",
        "2 failed: seldom",
        "a: 90 outputs (1.5/s), 1800 tokens (30/s), cost 0.25",
        "b: 10 outputs (0.17/s)",
        "1 worker was lost: gpu1:12 of 'a', 30 s before the end (its connection broke, with 3 rows, which went "
        "elsewhere)",
        "shares that were run more than once: 4",
    ]
    write_report(tmp_path / "report.json", report)
    assert json.loads((tmp_path / "report.json").read_text()) == report


def changed(report: Any, *place: str | int, value: Any) -> Any:
    """A copy of the report with ``value`` in a place."""
    if not place:
        return value
    copy, (name, *rest) = report.copy(), place
    copy[name] = changed(report[name], *rest, value=value)
    return copy


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ((), []),
        (("run",), 7),
        (("pool",), "a"),
        (("pool", 0), []),
        (("drawn",), "ab"),
        (("drawn",), [1]),
        (("drawn", 0), -1),
        (("settings",), []),
        (("errors",), 1),
        (("standing",), None),
        (("standing", "rows"), "100"),
        (("standing", "size"), 1.5),
        (("standing", "chain"), "xyz"),
        (("standing", "reasons"), ["often"]),
        (("standing", "seconds"), float("nan")),
        (("standing", "made"), []),
        (("standing", "made", "a"), {"outputs": None}),
        (("standing", "lost"), 1),
        (("standing", "lost", 0), {"llm": "a"}),
        (("standing", "lost", 0, "host"), 7),
        (("standing", "lost", 0, "ago_s"), -1.0),
    ],
    ids=lambda one: ".".join(map(str, one)) or "whole" if isinstance(one, tuple) else json.dumps(one),
)
def test_a_report_that_was_edited_and_is_of_no_use_is_none(
    tmp_path: Path, place: tuple[str | int, ...], value: Any
) -> None:
    places = Places.of(str(tmp_path / "out.jsonl"), format_of("out.jsonl"))
    places.target.touch()
    made, gone = {"a": Made(90, 900, 1800, 0.25)}, [LostWorker(**lost("a", 0.5))]
    standing = Standing(rows=100, failed=1, reasons={"often": 1}, made=made, seconds=1.0, lost=gone)
    report = report_of(HEADER | {"drawn": [2, 1]}, standing, is_finished=True)
    write_report(places.report, report)
    assert finished_report(places) == report
    write_report(places.report, changed(report, *place, value=value))
    assert finished_report(places) is None
    places.report.write_bytes(json.dumps(report).encode()[:-9])
    assert finished_report(places) is None


def test_what_others_have_told_takes_no_more_than_its_line() -> None:
    gone = replace(LostWorker(**lost("a\nb", 0.5)), why="gone\nfor good")
    reasons, made = {"a\x1b[31mred reason": 1}, {"a\nb": Made(1)}
    standing = Standing(rows=1, failed=1, reasons=reasons, made=made, seconds=1.0, lost=[gone])
    assert summary(report_of(HEADER | {"pool": ["a\nb"]}, standing, is_finished=True)) == [
        r"1 failed: a\x1b[31mred reason",
        r"a\nb: 1 output (1/s)",
        r"1 worker was lost: gpu1:12 of 'a\nb', 0 s before the end (gone\nfor good, with 3 rows, which "
        "went elsewhere)",
    ]


def test_a_run_that_made_nothing_has_little_to_say() -> None:
    report = report_of(HEADER, Standing(), is_finished=False)
    assert summary(report) == []
    assert (report["finished"], report["workers_lost"]) == (False, [])


def test_many_reasons_are_not_all_shown() -> None:
    standing = Standing(rows=30, failed=28, reasons={f"reason {letter}": 4 for letter in "abcdefg"})
    lines = summary(report_of(HEADER, standing, is_finished=True))
    assert lines[-1] == "8 failed for other reasons"
    assert len(lines) == 6
