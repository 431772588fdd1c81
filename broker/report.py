"""What ``genpool status`` shows: the broker's state as plain data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .peer import LLM, Client, Worker


@dataclass(frozen=True, slots=True)
class Lost:
    """A worker that went without a word and did not come back: when, why, and how many rows it had to run."""

    llm: str
    host: str
    pid: int
    at: float
    why: str
    rows: int

    @classmethod
    def of(cls, worker: Worker, why: str) -> Lost:
        hello = worker.hello
        return cls(hello.llm, hello.host, hello.pid, worker.gone, why, worker.running)


def report(
    started: float, rows: int, llms: Iterable[LLM], clients: Iterable[Client], lost: Iterable[Lost], now: float
) -> dict[str, Any]:
    """The fleet in detail. Durations are in seconds, tokens and rows are counts since the peer connected.

    ``hedged`` counts the rows that were given to a second worker, ``hedges_won`` those that it has answered, and
    ``outrun`` those of a worker that another one has answered so.

    ``started`` is when the broker did, on the clock of ``now``; ``rows`` is how many it holds.
    """
    return {
        "uptime_s": round(now - started, 3),
        "rows": rows,
        "llms": [_llm(llm) for llm in sorted(llms, key=lambda one: one.name)],
        "clients": [_client(client, now) for client in clients],
        "lost": [_lost(one, now) for one in lost],
    }


def _llm(llm: LLM) -> dict[str, Any]:
    info = llm.info()
    return {
        "name": llm.name,
        "announced": llm.announced,
        "model_names": [name for name in info.model_names if name],
        "task": info.task,
        "queued": len(llm.queue) + len(llm.suspects),
        "running": sum(worker.running for worker in llm.workers),
        "capacity": info.capacity,
        "hedged": llm.stragglers.hedged,
        "hedges_won": llm.stragglers.hedges_won,
        "workers": [_worker(worker) for worker in llm.workers],
    }


def _worker(worker: Worker) -> dict[str, Any]:
    hello = worker.hello
    return {
        "host": hello.host,
        "pid": hello.pid,
        "state": hello.state,
        "reason": hello.reason,
        "model_name": hello.model_name,
        "release": hello.release,
        "batch_size": hello.batch_size,
        "concurrency": hello.concurrency,
        "credit": worker.free_calls,
        "running": worker.running,
        "unsettled": len(worker.executions) - worker.running,
        "done": worker.done,
        "failed": worker.failed,
        "outrun": worker.outrun,
        "tokens": worker.tokens,
    }


def _client(client: Client, now: float) -> dict[str, Any]:
    hello = client.hello
    return {
        "host": hello.host,
        "pid": hello.pid,
        "rows": len(client.rows),
        "answered": client.answered,
        "unread_bytes": client.unread_bytes,
        "withheld": len(client.withheld),
        "away_s": None if client.lost is None else round(now - client.lost, 3),
    }


def _lost(lost: Lost, now: float) -> dict[str, Any]:
    return {
        "llm": lost.llm,
        "host": lost.host,
        "pid": lost.pid,
        "ago_s": round(now - lost.at, 3),
        "why": lost.why,
        "rows": lost.rows,
    }
