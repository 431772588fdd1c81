"""Dask distributed: a LocalCluster of single-threaded worker processes, ``Client.map`` and ``Client.gather``.

``pure=False`` because the same input again is new work here; it also saves Dask the hashing of inputs. No dashboard.
"""

# Dask may not be installed.
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportArgumentType=false, reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

from benchmarks.rivals.harness import PATIENCE_S, Order, Rival, Texts, answer, serve


@contextmanager
def running(order: Order) -> Generator[Rival]:
    import distributed

    cluster: Any = distributed.LocalCluster(
        n_workers=order.workers, threads_per_worker=1, processes=True, dashboard_address=None
    )
    with cluster, distributed.Client(cluster) as connected:
        client: Any = connected

        def call(texts: Texts) -> Texts:
            return client.submit(answer, texts, pure=False).result(timeout=PATIENCE_S)

        def call_all(calls: Sequence[Texts]) -> list[Texts]:
            return client.gather(client.map(answer, calls, pure=False))

        yield Rival(distributed.__version__, f"{order.workers} workers", call, call_all)


if __name__ == "__main__":
    serve(running)
