"""What the web page shows of a report: less than all of it, and never more than a browser can lay out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# The busiest of each are shown, and it is said how many are not. All are in `genpool status --json`.
_MOST_LLMS = 100
_MOST_WORKERS = 500
_MOST_LOST = 50

# In characters; names may have a thousand, and reasons more.
NAME = 200
_TEXT = 500

_LLM_KEYS = (
    "announced",
    "queued",
    "oldest_s",
    "running",
    "capacity",
    "rows_per_s",
    "tokens_per_s",
    "done",
    "failed",
    "expired",
    "requeued",
)
_WORKER_KEYS = ("pid", "running", "rows_per_s", "done", "failed")
_LOST_HOUR_S = 3600.0


def overview(report: Mapping[str, Any], unready: str) -> dict[str, Any]:
    """The page's data. ``unready`` is why the broker takes no peers, or nothing. Durations are in seconds."""
    llms = sorted(report["llms"], key=_weight, reverse=True)
    # Those that are unwell are among the shown.
    workers = sorted(_workers(llms), key=lambda one: (one["state"] != "unwell", one["host"], one["pid"]))
    lost = [one for one in reversed(report["lost"]) if one["ago_s"] < _LOST_HOUR_S]
    return {
        "uptime_s": report["uptime_s"],
        "unready": unready,
        "totals": _totals(report, workers),
        "llms": [_llm(llm) for llm in sorted(llms[:_MOST_LLMS], key=lambda llm: llm["name"])],
        "workers": sorted(workers[:_MOST_WORKERS], key=lambda one: (one["host"], one["pid"])),
        "slowest": [_named(one) for one in report["slowest"]],
        "lost": [_named({**one, "why": short(one["why"])}) for one in lost[:_MOST_LOST]],
        "left_out": {
            "llms": max(0, len(llms) - _MOST_LLMS),
            "workers": max(0, len(workers) - _MOST_WORKERS),
            "lost": max(0, len(lost) - _MOST_LOST),
        },
    }


def _totals(report: Mapping[str, Any], workers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    llms = report["llms"]
    sums = {
        key: sum(llm[key] for llm in llms) for key in ("queued", "running", "capacity", "done", "failed", "expired")
    }
    rates = {key: _sum_of_known(llms, key) for key in ("rows_per_s", "tokens_per_s")}
    clients = report["clients"]
    return {
        **sums,
        **rates,
        "workers": len(workers),
        "ready": sum(one["state"] in ("ready", "busy") for one in workers),
        "clients": len(clients),
        "clients_away": sum(one["away_s"] is not None for one in clients),
        "held": report["rows"],
    }


def _sum_of_known(llms: Sequence[Mapping[str, Any]], key: str) -> float | None:
    known = [llm[key] for llm in llms if llm[key] is not None]
    return round(sum(known), 3) if known else None


def _weight(llm: Mapping[str, Any]) -> tuple[bool, int, int, int]:
    return llm["announced"], llm["running"], llm["queued"], llm["done"]


def _llm(llm: Mapping[str, Any]) -> dict[str, Any]:
    states = [state_of(worker) for worker in llm["workers"]]
    return {
        "name": short(llm["name"], NAME),
        "model": short(", ".join(llm["model_names"]), NAME),
        "workers": len(states),
        "ready": sum(state in ("ready", "busy") for state in states),
        **{key: llm[key] for key in _LLM_KEYS},
    }


def _workers(llms: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for llm in llms:
        for worker in llm["workers"]:
            yield {
                "llm": short(llm["name"], NAME),
                "host": short(worker["host"], NAME),
                "state": state_of(worker),
                "reason": short(worker["reason"]),
                **{key: worker[key] for key in _WORKER_KEYS},
            }


def state_of(worker: Mapping[str, Any]) -> str:
    """Its state, for people: who is ready and has no room is busy."""
    return "busy" if worker["busy"] else worker["state"]


def _named(one: Mapping[str, Any]) -> dict[str, Any]:
    return {**one, "llm": short(one["llm"], NAME), "host": short(one["host"], NAME)}


def short(text: str, most: int = _TEXT) -> str:
    """As much of a peer's text as is shown."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
