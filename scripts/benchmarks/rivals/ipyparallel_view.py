"""ipyparallel: a controller and engines, called through a load-balanced view, a task for each call.

The scheduler is ``pure``, ZeroMQ's own queue in C, which its documentation has for the highest throughput.
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

    scheduler = "--TaskScheduler.scheme_name=pure"
    cluster: Any = ipyparallel.Cluster(n=order.workers, controller_args=[scheduler], log_level=logging.ERROR)
    # A client that sees engines come out of their order takes it for the loss of one, and gives up this scheduler. So
    # the first client waits until all have come, and a second one calls them.
    with cluster, cluster.connect_client_sync() as client:
        client.wait_for_engines(order.workers, timeout=PATIENCE_S, interactive=False)
        view = client.load_balanced_view()

        def call(texts: Texts) -> Texts:
            return view.apply_async(answer, texts).get(PATIENCE_S)

        def call_all(calls: Sequence[Texts]) -> list[Texts]:
            return list(view.map_async(answer, calls, chunksize=1).get(PATIENCE_S))

        yield Rival(ipyparallel.__version__, f"{order.workers} engines", call, call_all)


if __name__ == "__main__":
    serve(running)
