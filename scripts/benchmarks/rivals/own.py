"""genpool itself: a broker and worker processes. The arguments say how a worker takes its rows."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager

from benchmarks.fleet import running_fleet
from benchmarks.rivals.harness import Order, Rival, Texts, serve

from genpool import __version__


@contextmanager
def running(order: Order) -> Generator[Rival]:
    with running_fleet(order.workers, *order.arguments) as fleet:
        llm = fleet.connect()

        def generate(calls: Sequence[Texts]) -> list[Texts]:
            rows = llm.generate([{"input": text} for texts in calls for text in texts]).result()
            return [[output["raw_output"] or "" for output in row] for row in rows]

        try:
            yield Rival(__version__, f"{order.workers} workers", lambda texts: generate([texts])[0], generate)
        finally:
            llm.teardown()


if __name__ == "__main__":
    serve(running)
