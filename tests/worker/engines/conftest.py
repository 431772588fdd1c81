from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from answering import SLOTS, Scripted, scripted_server


@pytest.fixture(scope="module")
def real_url(smollm2_path: Path) -> Iterator[str]:
    xllamacpp: Any = pytest.importorskip("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = str(smollm2_path)
    params.model_alias = {"smollm2"}
    params.n_parallel, params.n_ctx, params.cpuparams.n_threads, params.verbosity = SLOTS, SLOTS * 512, 1, -1
    server = xllamacpp.Server(params)
    yield f"{server.listening_address}/v1"
    del server


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    with scripted_server() as script:
        yield script


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of random weights, for tests that have torch."""
    # Only those tests can import it.
    from tiny_model import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
