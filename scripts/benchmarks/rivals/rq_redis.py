"""RQ: a pool of SimpleWorkers, which its documentation has for jobs that are very short: they do not fork for each.

Jobs are put into the queue many at a time, in one pipeline; results are waited for with a blocking read.
"""

# RQ may not be installed.
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

from benchmarks.rivals.harness import PATIENCE_S, Order, Rival, Texts, answer, serve
from benchmarks.rivals.redis_server import running_redis, running_workers


@contextmanager
def running(order: Order) -> Generator[Rival]:
    import redis
    import rq

    pool = ["worker-pool", "--num-workers", str(order.workers), "--worker-class", "rq.SimpleWorker", "--quiet"]
    with (
        running_redis() as url,
        running_workers(url, "rq.cli", *pool, "--url", url),
        redis.Redis.from_url(url) as connection,
    ):
        queue = rq.Queue(connection=connection)

        def result_of(job: Any) -> Texts:
            return job.latest_result(timeout=PATIENCE_S).return_value

        def call(texts: Texts) -> Texts:
            return result_of(queue.enqueue(answer, texts))

        def call_all(calls: Sequence[Texts]) -> list[Texts]:
            jobs = queue.enqueue_many([rq.Queue.prepare_data(answer, args=(texts,)) for texts in calls])
            return [result_of(job) for job in jobs]

        yield Rival(rq.__version__, f"{order.workers} SimpleWorkers", call, call_all)


if __name__ == "__main__":
    serve(running)
