"""``generate_dataset`` with the package ``datasets``."""

# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from extras import require
from fleet import Fleet

from genpool import LLMPool, TextGenerationTask, generate_dataset

require("datasets")

import datasets  # noqa: E402


@pytest.fixture
def pool(echo_fleet: Fleet) -> Iterator[LLMPool]:
    with LLMPool.connect(["a", "b"], broker=echo_fleet.address) as pool:
        yield pool


def test_a_dataset_comes_back_as_one(pool: LLMPool, tmp_path: Path) -> None:
    given = datasets.Dataset.from_dict({"input": ["one", "fail", "two"], "number": [1, 2, 3]})
    for output in (None, tmp_path / "out.jsonl", tmp_path / "out.jsonl"):
        made = generate_dataset(pool, given, 2, output=output)
        assert isinstance(made, datasets.Dataset)
        assert made["number"] == [1, 2, 3]
        assert list(made["generations"]) == [["ONE", "ONE"], [None, None], ["TWO", "TWO"]]
        assert made["error"][0] is None
        assert "this row is bad" in made["error"][1]
        assert made.features["number"] == given.features["number"]


def test_a_dataset_without_rows_has_the_columns_of_one_with_rows(pool: LLMPool) -> None:
    given = datasets.Dataset.from_dict({"input": ["one"], "number": [1]})
    made, empty = (generate_dataset(pool, one, 2) for one in (given, given.select([])))
    assert (len(empty), empty.features) == (0, made.features)


class Again(TextGenerationTask):
    """Makes a column that its dataset has already."""

    @property
    def output_args_names(self) -> list[str]:
        return ["number"]

    def parse_output(self, output: str) -> dict[str, Any]:
        return {"number": len(output)}


def test_a_column_that_the_task_makes_anew_is_that_one(echo_fleet: Fleet) -> None:
    given = datasets.Dataset.from_dict({"input": ["one", "three"], "number": [1, 2]})
    with LLMPool.connect(["a", "b"], broker=echo_fleet.address, task=Again()) as pool:
        made = generate_dataset(pool, given, 1)
    assert list(made["number"]) == [[len(text)] for (text,) in made["raw_generation_responses"]]
    assert list(made["input"]) == given["input"]
