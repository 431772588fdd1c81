from __future__ import annotations

from typing import Any

from genpool.broker.history import History


def counts(at: float, **llms: tuple[int, int] | tuple[int, int, int, int, int]) -> dict[str, Any]:
    """By name: queued, done, failed, expired, requeued."""
    keys = ("queued", "done", "failed", "expired", "requeued")
    return {
        "uptime_s": at,
        "llms": [{"name": name, **dict(zip(keys, (*said, 0, 0, 0)[:5], strict=True))} for name, said in llms.items()],
    }


def history(*samples: dict[str, Any]) -> dict[str, Any]:
    made = History()
    for sample in samples:
        made.add(sample)
    return made.plain()


def test_without_samples_nothing_is_known() -> None:
    assert history() == {"times": [], "series": [], "failures": []}


def test_a_rate_is_what_was_done_since_the_sample_before() -> None:
    shown = history(counts(5, a=(3, 100)), counts(15, a=(2, 150)), counts(25.04, a=(0, 150)))
    assert shown["times"] == [5, 15, 25.0]
    assert shown["series"] == [{"name": "a", "rows_per_s": [None, 5.0, 0.0], "queued": [3, 2, 0]}]


def test_an_llm_that_comes_or_goes_leaves_gaps_and_one_that_counts_anew_is_no_loss() -> None:
    shown = history(counts(0, a=(0, 9)), counts(10), counts(20, a=(1, 20)), counts(30, a=(1, 10)))
    assert shown["series"] == [{"name": "a", "rows_per_s": [None, None, 2.0, 1.0], "queued": [0, None, 1, 1]}]


def test_the_busiest_have_lines_and_the_others_share_one() -> None:
    names = [f"llm{number:02}" for number in range(40)]
    first = counts(0, **dict.fromkeys(names, (1, 0)))
    second = counts(10, **{name: (1, 10 * number) for number, name in enumerate(names)})
    *lines, others = history(first, second)["series"]
    assert [line["name"] for line in lines] == names[:-9:-1]
    assert lines[0]["rows_per_s"] == [None, 39.0]
    assert others == {"name": None, "rows_per_s": [None, float(sum(range(32)))], "queued": [40, 32]}


def test_without_work_the_longest_queues_have_lines() -> None:
    shown = history(counts(0, **{f"llm{number:02}": (number, 0) for number in range(9)}))
    assert [line["name"] for line in shown["series"]] == [*(f"llm{number:02}" for number in range(8, 0, -1)), None]


def test_an_hour_is_kept() -> None:
    made = History()
    for at in range(0, 9000, 10):
        made.add(counts(at, a=(0, at)))
    shown = made.plain()
    assert (shown["times"][0], shown["times"][-1], len(shown["times"])) == (5400, 8990, 360)


def test_names_of_many_llms_and_failures_of_each_are_bounded() -> None:
    made = History()
    for at in range(0, 5000, 10):
        made.add(counts(at, **{f"llm{at}-{number}": (1, 1, 1, 1, 1) for number in range(100)}))
    shown = made.plain()
    assert len(shown["series"]) == 9
    assert len(shown["failures"]) == 200
    assert all(len(point.rates) <= 25 for point in made._points)


def test_failures_are_told_by_llm_and_minute_the_last_first() -> None:
    shown = history(
        counts(0, a=(0, 0, 7, 0, 0), b=(0, 0)),
        counts(10, a=(0, 0, 9, 0, 0), b=(0, 0)),
        counts(20, a=(0, 0, 9, 1, 0), b=(0, 0, 0, 0, 4)),
        counts(80, a=(0, 0, 10, 1, 0), b=(0, 0, 0, 0, 4)),
    )
    assert shown["failures"] == [
        {"llm": "a", "at": 80, "failed": 1, "expired": 0, "requeued": 0},
        {"llm": "a", "at": 20, "failed": 2, "expired": 1, "requeued": 0},
        {"llm": "b", "at": 20, "failed": 0, "expired": 0, "requeued": 4},
    ]


def test_what_failed_an_hour_ago_is_not_told() -> None:
    assert (
        history(counts(0, a=(0, 0)), counts(10, a=(0, 0, 1, 0, 0)), counts(3700, a=(0, 0, 1, 0, 0)))["failures"] == []
    )


def test_a_long_name_is_cut() -> None:
    (line,) = history(counts(0, **{"x" * 1000: (0, 0)}))["series"]
    assert line["name"] == "x" * 199 + "…"
