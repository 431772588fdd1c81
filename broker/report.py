"""What ``genpool status`` shows: the broker's state as plain data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from .peer import LLM, Client, Worker
from .row import Execution
from .tally import LoopTally, Tally

# Of all executions, the oldest so many are looked at for the slowest, and of these so many are told. More would take
# the loop's time; fewer would find none behind the answered rows of a client that does not read.
_MOST_LOOKED_AT = 500
_MOST_SLOW = 10


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
    started: float,
    rows: int,
    llms: Iterable[LLM],
    clients: Iterable[Client],
    lost: Iterable[Lost],
    loop: LoopTally,
    now: float,
    *,
    executions: Iterable[Execution] = (),
    has_row_times: bool = False,
) -> dict[str, Any]:
    """The fleet in detail. Durations are in seconds. Tokens and rows of peers are counts since they connected, those of
    LLMs are since the broker knows the name, and what an LLM's count as is said in tally.py.

    ``hedged`` counts the rows that were given to a second worker, ``hedges_won`` those that it has answered, and
    ``outrun`` those of a worker that another one has answered so. ``busy`` is a worker that is ready and has no room.
    ``oldest_s`` is how long the row waits that has waited longest, and rates are None as long as they are not known.

    ``started`` is when the broker did, on the clock of ``now``; ``rows`` is how many it holds. ``executions`` has the
    oldest first, and ``slowest`` those that have run longest and run still. With ``has_row_times``
    the LLMs have histograms of how long rows waited and ran.
    """
    return {
        "uptime_s": round(now - started, 3),
        "rows": rows,
        "received_bytes": loop.received_bytes,
        "sent_bytes": loop.sent_bytes,
        "loop_lag_s": loop.lag.plain(),
        "llms": [_llm(llm, now, has_row_times) for llm in sorted(llms, key=lambda one: one.name)],
        "clients": [_client(client, now) for client in clients],
        "lost": [_lost(one, now) for one in lost],
        "slowest": _slowest(executions, now),
    }


def counts(started: float, llms: Iterable[LLM], now: float) -> dict[str, Any]:
    """What grows and waits, by LLM: little enough to be made again and again when nobody looks."""
    return {
        "uptime_s": round(now - started, 3),
        "llms": [
            {
                "name": llm.name,
                "queued": len(llm.queue) + len(llm.suspects),
                "done": llm.tally.done,
                "failed": llm.tally.failed,
                "expired": llm.tally.expired,
                "requeued": llm.tally.requeued,
            }
            for llm in llms
        ],
    }


def _llm(llm: LLM, now: float, has_row_times: bool) -> dict[str, Any]:
    info, tally, waiting_since = llm.info(), llm.tally, llm.waiting_since()
    times = {"wait_s": tally.wait.plain(), "run_s": tally.run.plain()} if has_row_times else {}
    return {
        "name": llm.name,
        "announced": llm.announced,
        "model_names": [name for name in info.model_names if name],
        "task": info.task,
        "queued": len(llm.queue) + len(llm.suspects),
        "oldest_s": None if waiting_since is None else round(now - waiting_since, 3),
        "running": sum(worker.running for worker in llm.workers),
        "capacity": info.capacity,
        **_rates(tally, now),
        "done": tally.done,
        "failed": tally.failed,
        "expired": tally.expired,
        "cancelled": tally.cancelled,
        "requeued": tally.requeued,
        "tokens": tally.tokens,
        "lost": tally.lost,
        "hedged": llm.stragglers.hedged,
        "hedges_won": llm.stragglers.hedges_won,
        **times,
        "workers": [_worker(worker, now) for worker in llm.workers],
    }


def _rates(one: Tally | Worker, now: float) -> dict[str, Any]:
    per_s = one.rate.per_s(now, one.done, one.tokens)
    rows, tokens = (None, None) if per_s is None else (round(rate, 3) for rate in per_s)
    # Many engines never tell counts of tokens.
    return {"rows_per_s": rows, "tokens_per_s": tokens if one.tokens else None}


def _worker(worker: Worker, now: float) -> dict[str, Any]:
    hello = worker.hello
    return {
        "host": hello.host,
        "pid": hello.pid,
        "state": hello.state,
        "reason": hello.reason,
        "busy": worker.is_busy,
        "model_name": hello.model_name,
        "release": hello.release,
        "batch_size": hello.batch_size,
        "concurrency": hello.concurrency,
        "credit": worker.free_calls,
        "running": worker.running,
        "unsettled": len(worker.executions) - worker.running,
        **_rates(worker, now),
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


def _slowest(executions: Iterable[Execution], now: float) -> list[dict[str, Any]]:
    running = (one for one in islice(executions, _MOST_LOOKED_AT) if not one.finished)
    return [
        {
            "llm": one.worker.hello.llm,
            "host": one.worker.hello.host,
            "pid": one.worker.hello.pid,
            "running_s": round(now - one.since, 3),
        }
        for one in islice(running, _MOST_SLOW)
    ]
