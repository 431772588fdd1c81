"""The broker's books of what has happened: counts, histograms and rates, for the report and for metrics.

Counts are kept for each message or batch, never for each row. Only histograms of rows cost something for each, and they
are kept where ``BrokerSettings.has_row_times`` asks for them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from ..protocol.limits import MAX_COUNT

# From what a cached answer takes to what a long generation on a full fleet does. More would be more lines to scrape.
ROW_BOUNDS_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
LAG_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

# A rate is that of the last 8 to 10 s: shorter ones jump with each batch, longer ones hide that something has stopped.
SAMPLE_S = 2.0
_SAMPLES = 5
# Over less than this a rate says nothing yet.
_LEAST_S = 1.0


class Histogram:
    """How often values fell below each of ``bounds``, as Prometheus has it. Values are in seconds."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)  # of values up to each bound and above the one before; then of the rest
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Enter one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def plain(self) -> dict[str, Any]:
        """As data: ``counts`` has one more than ``bounds``, for what is above all of them."""
        return {"bounds": list(self.bounds), "counts": list(self.counts), "sum": self.sum}


class Rate:
    """How fast two totals grow, over the last seconds. ``sample`` is to be called every ``SAMPLE_S``."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int, int]] = deque(maxlen=_SAMPLES)

    def sample(self, now: float, rows: int, tokens: int) -> None:
        """Note the totals."""
        self._samples.append((now, rows, tokens))

    def per_s(self, now: float, rows: int, tokens: int) -> tuple[float, float] | None:
        """Rows and tokens a second, by the totals of now; None as long as nothing can be said."""
        if not self._samples or now < self._samples[0][0] + _LEAST_S:
            return None
        since, rows_then, tokens_then = self._samples[0]
        return (rows - rows_then) / (now - since), (tokens - tokens_then) / (now - since)


@dataclass(slots=True)
class Tally:
    """What has become of the rows of one LLM since this broker knows its name.

    A row counts when it leaves: its client has its answer, or wants it no more, or is gone. ``cancelled`` are those
    that left without an answer. ``requeued`` counts runs that came to nothing and were to be repeated, ``lost`` the
    workers that went without a word. ``wait`` has the times from a row's submission to its first hand-out, ``run``
    those from the hand-out of a row that was done to its end.
    """

    done: int = 0
    failed: int = 0
    expired: int = 0
    cancelled: int = 0
    requeued: int = 0
    tokens: int = 0
    lost: int = 0
    wait: Histogram = field(default_factory=lambda: Histogram(ROW_BOUNDS_S))
    run: Histogram = field(default_factory=lambda: Histogram(ROW_BOUNDS_S))
    rate: Rate = field(default_factory=Rate)

    def add_tokens(self, count: int) -> None:
        """Enter what a worker says that it has generated; it may say anything that is a count."""
        self.tokens = min(MAX_COUNT, self.tokens + count)


@dataclass(slots=True)
class LoopTally:
    """What the broker's loop has done: bytes of messages, and by how much its ticks came too late (in seconds)."""

    received_bytes: int = 0
    sent_bytes: int = 0
    lag: Histogram = field(default_factory=lambda: Histogram(LAG_BOUNDS_S))
