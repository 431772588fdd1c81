"""The last hour for the web page: how fast rows were done, how many waited, and how many failed, by LLM.

Bounded however many LLMs there are: of each sample the busiest are kept, and the others as one. Times are in seconds
of the broker's uptime, so that no clocks need to agree.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .overview import NAME, short

# Rates are of so many seconds. Shorter ones would make the page's data longer and its lines no clearer.
EVERY_S = 10.0
_SPAN_S = 3600.0

# So many LLMs are kept of each sample, and so many have a line of their own, which an eye can still tell apart.
_MOST_KEPT = 24
_MOST_LINES = 8

# So many entries of failures are kept, one for each LLM and minute.
_MOST_FAILURES = 200
_MINUTE_S = 60.0


@dataclass(slots=True)
class _Point:
    """One sample: by LLM, rows a second (None where it is not known yet) and rows that wait; None is all others."""

    at: float
    rates: dict[str | None, float | None] = field(default_factory=dict[str | None, float | None])
    queued: dict[str | None, int] = field(default_factory=dict[str | None, int])


@dataclass(slots=True)
class _Failures:
    """How many rows of an LLM failed, expired or had to be run again from one minute on; ``last`` is when so last."""

    llm: str
    since: float
    last: float
    failed: int = 0
    expired: int = 0
    requeued: int = 0


class History:
    """Made of the counts that the broker's loop gives every ``EVERY_S``."""

    def __init__(self) -> None:
        self._points: deque[_Point] = deque(maxlen=int(_SPAN_S / EVERY_S) + 1)
        self._failures: deque[_Failures] = deque(maxlen=_MOST_FAILURES)
        self._last: dict[str, Mapping[str, Any]] = {}
        self._last_at: float | None = None

    def add(self, counts: Mapping[str, Any]) -> None:
        """Enter a sample; see ``report.counts``."""
        now, llms = counts["uptime_s"], counts["llms"]
        point = _Point(now)
        rates = {llm["name"]: self._rate(llm, now) for llm in llms}
        by_weight = sorted(llms, key=lambda llm: (rates[llm["name"]] or 0.0, llm["queued"]), reverse=True)
        for place, llm in enumerate(by_weight):
            _add(point, llm["name"] if place < _MOST_KEPT else None, rates[llm["name"]], llm["queued"])
        self._points.append(point)
        if self._last_at is not None:
            for llm in llms:
                self._note_failures(llm, now)
        self._last, self._last_at = {llm["name"]: llm for llm in llms}, now

    def plain(self) -> dict[str, Any]:
        """As data: ``times`` of the points, ``series`` by LLM, the busiest first, and ``failures``, the last first.

        A series' ``name`` is None for all LLMs that have none of their own. Its values are None where nothing is known.
        """
        newest = self._points[-1].at if self._points else 0.0
        points = [point for point in self._points if point.at > newest - _SPAN_S]
        names = _busiest(points)
        lined = set(names)
        series = [_series(name, points) for name in names]
        rest = [_folded(point, lined) for point in points]
        if any(None in point.rates for point in rest):
            series.append(_series(None, rest))
        failures = sorted(self._failures, key=lambda one: one.last, reverse=True)
        return {
            "times": [round(point.at, 1) for point in points],
            "series": series,
            "failures": [
                {
                    "llm": short(one.llm, NAME),
                    "at": one.last,
                    "failed": one.failed,
                    "expired": one.expired,
                    "requeued": one.requeued,
                }
                for one in failures
                if one.last > newest - _SPAN_S
            ],
        }

    def _rate(self, llm: Mapping[str, Any], now: float) -> float | None:
        if self._last_at is None or now <= self._last_at:
            return None
        return max(0.0, self._grown(llm, "done") / (now - self._last_at))

    def _grown(self, llm: Mapping[str, Any], key: str) -> int:
        """By how much a count has grown. An LLM that was forgotten and is known again counts anew."""
        former = self._last.get(llm["name"])
        return llm[key] if former is None or former[key] > llm[key] else llm[key] - former[key]

    def _note_failures(self, llm: Mapping[str, Any], now: float) -> None:
        failed, expired, requeued = (self._grown(llm, key) for key in ("failed", "expired", "requeued"))
        if not (failed or expired or requeued):
            return
        recent = (one for one in self._failures if one.llm == llm["name"] and now < one.since + _MINUTE_S)
        entry = next(recent, None)
        if entry is None:
            entry = _Failures(llm["name"], now, now)
            self._failures.append(entry)
        entry.last = now
        entry.failed += failed
        entry.expired += expired
        entry.requeued += requeued


def _add(point: _Point, name: str | None, rate: float | None, queued: int) -> None:
    former = point.rates.get(name)
    point.rates[name] = former if rate is None else rate + (former or 0.0)
    point.queued[name] = queued + point.queued.get(name, 0)


def _busiest(points: Iterable[_Point]) -> list[str]:
    """The LLMs with lines of their own: those that did most, and of idle ones those with the longest queues."""
    weights: dict[str, tuple[float, int]] = {}
    for point in points:
        for name, rate in point.rates.items():
            if name is not None:
                done, queued = weights.get(name, (0.0, 0))
                weights[name] = (done + (rate or 0.0), queued + point.queued[name])
    return sorted(weights, key=lambda name: (weights[name], name), reverse=True)[:_MOST_LINES]


def _folded(point: _Point, lined: set[str]) -> _Point:
    """What is not in ``lined``, as one."""
    folded = _Point(point.at)
    for name, rate in point.rates.items():
        if name not in lined:
            _add(folded, None, rate, point.queued[name])
    return folded


def _series(name: str | None, points: Iterable[_Point]) -> dict[str, Any]:
    rates = [point.rates.get(name) for point in points]
    return {
        "name": None if name is None else short(name, NAME),
        "rows_per_s": [None if rate is None else round(rate, 2) for rate in rates],
        "queued": [point.queued.get(name) for point in points],
    }
