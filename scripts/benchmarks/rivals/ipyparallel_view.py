"""ipyparallel: a controller and engines, called through a load-balanced view with the scheduler that it has by itself.

The ``pure`` one, ZeroMQ's own queue in C, refuses task farming.
"""

# ipyparallel may not be installed.
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

from benchmarks.rivals.harness import PATIENCE_S, Order, Rival, Texts, answer, serve


@contextmanager
def running(order: Order) -> Generator[Rival]:
    os.environ["IPYTHONDIR"] = tempfile.gettempdir()
    import ipyparallel

    cluster: Any = ipyparallel.Cluster(n=order.workers, log_level=logging.ERROR)
    with cluster as client:
        client.wait_for_engines(order.workers, timeout=PATIENCE_S, interactive=False)
        view = client.load_balanced_view()

        def call(texts: Texts) -> Texts:
            return view.apply_async(answer, texts).get(PATIENCE_S)

        def call_all(calls: Sequence[Texts]) -> list[Texts]:
            return list(view.map_async(answer, calls, chunksize=1).get(PATIENCE_S))

        yield Rival(ipyparallel.__version__, f"{order.workers} engines", call, call_all)


if __name__ == "__main__":
    serve(running)
