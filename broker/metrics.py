"""The broker's report as metrics for Prometheus. Needs prometheus-client, so it is imported only with ``--http``.

Labels are names of LLMs that workers have announced, and words from closed sets: never a user, a host or a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from .overview import state_of

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Report = Mapping[str, Any]

_OUTCOMES = ("done", "failed", "expired", "cancelled")
_STATES = ("loading", "ready", "busy", "unwell", "draining")

# Of each LLM: the name, its help, and the report's key.
_COUNTERS = (
    ("genpool_rows_requeued", "Runs of rows that came to nothing and were to be repeated.", "requeued"),
    ("genpool_tokens", "Tokens that workers say they have generated.", "tokens"),
    ("genpool_workers_lost", "Workers that went without a word and did not come back.", "lost"),
    ("genpool_hedges", "Rows that were given to a second worker because they straggled.", "hedged"),
    ("genpool_hedges_won", "Hedges that answered before the first worker did.", "hedges_won"),
)
_GAUGES = (
    ("genpool_queued_rows", "Rows that wait for a worker.", "queued"),
    (
        "genpool_oldest_queued_row_seconds",
        "How long the row waits that has waited longest; 0 when none waits.",
        "oldest_s",
    ),
    ("genpool_running_rows", "Rows that run in workers.", "running"),
    ("genpool_capacity_rows", "Rows that the ready workers run at once in all.", "capacity"),
)
_HISTOGRAMS = (
    ("genpool_row_wait_seconds", "From a row's submission to its first hand-out.", "wait_s"),
    ("genpool_row_run_seconds", "From the hand-out of a row that was done to its end.", "run_s"),
)


def render(report: Report) -> bytes:
    """The page of metrics, for a report of a broker that keeps the times of rows."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)  # this process's memory, processor time and open files; nothing but on Linux
    registry.register(_Collected(report))
    return generate_latest(registry)


class _Collected(Collector):
    def __init__(self, report: Report) -> None:
        self._report = report

    def collect(self) -> Iterator[Metric]:
        llms = {_label(llm["name"]): llm for llm in self._report["llms"] if llm["announced"]}
        yield _rows(llms)
        for name, text, key in _COUNTERS:
            yield _filled(CounterMetricFamily(name, text, labels=["llm"]), llms, key)
        for name, text, key in _GAUGES:
            yield _filled(GaugeMetricFamily(name, text, labels=["llm"]), llms, key)
        yield _workers(llms)
        for name, text, key in _HISTOGRAMS:
            times = HistogramMetricFamily(name, text, labels=["llm"])
            for label, llm in llms.items():
                times.add_metric([label], _buckets(llm[key]), llm[key]["sum"])
            yield times
        yield from _broker(self._report)


def _rows(llms: Mapping[str, Report]) -> Metric:
    rows = CounterMetricFamily("genpool_rows", "Rows that have ended, by how.", labels=["llm", "outcome"])
    for label, llm in llms.items():
        for outcome in _OUTCOMES:
            rows.add_metric([label, outcome], llm[outcome])
    return rows


def _workers(llms: Mapping[str, Report]) -> Metric:
    workers = GaugeMetricFamily("genpool_workers", "Connected workers, by their state.", labels=["llm", "state"])
    for label, llm in llms.items():
        states = [state_of(worker) for worker in llm["workers"]]
        for state in _STATES:
            workers.add_metric([label, state], states.count(state))
    return workers


def _broker(report: Report) -> Iterable[Metric]:
    # Clients may name LLMs as they like, so those names are no labels.
    unknown = sum(llm["queued"] for llm in report["llms"] if not llm["announced"])
    yield GaugeMetricFamily("genpool_unknown_llm_queued_rows", "Rows for LLMs that no worker has served.", unknown)
    yield GaugeMetricFamily("genpool_clients", "Clients, those among them that are away.", len(report["clients"]))
    yield GaugeMetricFamily("genpool_held_rows", "Rows that the broker knows, answered ones too.", report["rows"])
    received, sent = report["received_bytes"], report["sent_bytes"]
    yield CounterMetricFamily("genpool_received_bytes", "Bytes of messages from clients and workers.", received)
    yield CounterMetricFamily("genpool_sent_bytes", "Bytes of messages to clients and workers.", sent)
    lag = report["loop_lag_s"]
    text = "By how much ticks of the broker's loop came too late."
    yield HistogramMetricFamily("genpool_loop_lag_seconds", text, _buckets(lag), lag["sum"])


def _filled(family: Any, llms: Mapping[str, Report], key: str) -> Metric:
    for label, llm in llms.items():
        family.add_metric([label], llm[key] or 0)
    return family


def _buckets(histogram: Report) -> Sequence[tuple[str, float]]:
    bounds: list[str] = [*map(str, histogram["bounds"]), "+Inf"]
    counts: list[int] = histogram["counts"]
    return list(zip(bounds, accumulate(counts), strict=True))


def _label(name: str) -> str:
    """A name may hold lone surrogates, which UTF-8 does not; two names never become one."""
    return name.replace("\\", "\\\\").encode("utf-8", "backslashreplace").decode()
