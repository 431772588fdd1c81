"""A connected pool inside ``Dataset.map``, whose processes it has to reach as a pickle."""

# pyright: reportMissingImports=false
# datasets is an extra.

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from extras import require
from fleet import Fleet

require("datasets")

import datasets  # noqa: E402  after the look whether it is there

from genpool import LLMPool  # noqa: E402

# `Dataset.map` may fork, and a fork of a process with threads is warned of.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture
def pool(echo_fleet: Fleet) -> Iterator[LLMPool]:
    with LLMPool.connect(["a", "b"], broker=echo_fleet.address) as pool:
        yield pool


@pytest.fixture
def dataset(tmp_path: Path) -> datasets.Dataset:
    rows = datasets.Dataset.from_list([{"input": f"row {at}"} for at in range(40)])
    rows.save_to_disk(str(tmp_path / "rows"))
    return datasets.Dataset.load_from_disk(str(tmp_path / "rows"))


@pytest.mark.parametrize("is_used", [False, True])
def test_processes_of_a_map_share_a_fleet(pool: LLMPool, dataset: datasets.Dataset, is_used: bool) -> None:
    if is_used:  # its connection and threads stay in this process
        assert pool.generate([{"input": "before"}], 2)

    def generate(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        import os

        outputs = pool.generate([{"input": text} for text in batch["input"]], 2)
        return {
            "generations": [[output["raw_output"] for output in row] for row in outputs],
            "models": [sorted(output["model_name"] for output in row) for row in outputs],
            "process": [os.getpid()] * len(outputs),
        }

    made = dataset.map(generate, batched=True, batch_size=5, num_proc=4, load_from_cache_file=False)
    assert made["generations"][:] == [[f"ROW {at}"] * 2 for at in range(40)]
    assert made["models"][:] == [["model-a", "model-b"]] * 40
    assert len(set(made["process"])) == 4
    # Here the pool is as it was.
    assert pool.generate([{"input": "after"}], 2)[0][0]["raw_output"] == "AFTER"
