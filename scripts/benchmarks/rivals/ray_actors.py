"""Ray actors: one in each process, called in turn, all calls submitted before the first result is fetched.

That is how Ray's documentation has actors called in parallel: ``ray.get`` once, on a list. Inputs and outputs are small
enough to travel inside the messages, past the object store.
"""

# Ray may not be installed.
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportArgumentType=false

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import Any

from benchmarks.rivals.harness import PATIENCE_S, Order, Rival, Texts, answer, serve


class Answerer:
    """What each actor does."""

    def answer(self, texts: Texts) -> Texts:
        return answer(texts)


@contextmanager
def running(order: Order) -> Generator[Rival]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    ray.init(
        num_cpus=order.workers,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        _temp_dir=tempfile.gettempdir(),
    )
    try:
        actor: Any = ray.remote(Answerer)
        turn = cycle([actor.remote() for _ in range(order.workers)])

        def call(texts: Texts) -> Texts:
            return ray.get(next(turn).answer.remote(texts), timeout=PATIENCE_S)

        def call_all(calls: Sequence[Texts]) -> list[Texts]:
            return ray.get([next(turn).answer.remote(texts) for texts in calls], timeout=PATIENCE_S)

        yield Rival(ray.__version__, f"{order.workers} actors", call, call_all)
    finally:
        ray.shutdown()


if __name__ == "__main__":
    serve(running)
