"""Celery with Redis as its broker and its result backend, a prefork worker, JSON.

As Celery's guide to optimizing has it for many short tasks: a prefetch multiplier of 64, and no gossip, mingle, events
or heartbeats between workers. All tasks are sent before the first result is fetched, each by ``delay``: a group, or a
``ResultSet``, reached a quarter to a half of that. Results are kept, as a caller wants them here.
"""

# Celery may not be installed.
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUntypedFunctionDecorator=false, reportFunctionMemberAccess=false

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import celery
from benchmarks.rivals.harness import PATIENCE_S, Order, Rival, Texts, serve
from benchmarks.rivals.harness import answer as answer_texts
from benchmarks.rivals.redis_server import REDIS, running_redis, running_workers

# The worker imports this module, too, and finds the server in its environment.
app: Any = celery.Celery("rival")
app.conf.update(
    broker_url=os.environ.get(REDIS),
    result_backend=os.environ.get(REDIS),
    broker_connection_retry_on_startup=True,
    worker_prefetch_multiplier=64,
    task_serializer="json",
    result_serializer="json",
    accept_content=["json"],
    task_ignore_result=False,
)


@app.task(name="answer")
def answer(texts: Texts) -> Texts:
    return answer_texts(texts)


@contextmanager
def running(order: Order) -> Generator[Rival]:
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "ERROR"]
    pool = ["worker", "--pool", "prefork", "--concurrency", str(order.workers), *quiet]
    with (
        running_redis() as redis,
        running_workers(redis, "celery", "-A", "benchmarks.rivals.celery_redis", *pool),
    ):
        app.conf.update(broker_url=redis, result_backend=redis)

        def call(texts: Texts) -> Texts:
            return answer.delay(texts).get(timeout=PATIENCE_S)

        def call_all(calls: Sequence[Texts]) -> list[Texts]:
            results = [answer.delay(texts) for texts in calls]
            return [result.get(timeout=PATIENCE_S) for result in results]

        yield Rival(celery.__version__, f"{order.workers} prefork children", call, call_all)


if __name__ == "__main__":
    serve(running)
