"""Datasets of Hugging Face, from the disk and from memory."""

# pyright: reportMissingImports=false
# datasets is an extra.

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from extras import require

require("datasets")

import datasets  # noqa: E402  after the look whether it is there

from genpool.client.formats.format import format_of, open_source  # noqa: E402
from genpool.client.formats.huggingface import as_dataset, export_dataset  # noqa: E402
from genpool.client.formats.memory import source_of  # noqa: E402
from genpool.client.formats.target import check_target  # noqa: E402
from genpool.protocol.errors import ConfigurationError, GenpoolError  # noqa: E402

LABELS = datasets.ClassLabel(names=["no", "yes"])


@pytest.fixture(autouse=True)
def _no_bars() -> None:
    datasets.disable_progress_bars()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "there"


@pytest.fixture
def dataset() -> datasets.Dataset:
    features = datasets.Features(input=datasets.Value("string"), label=LABELS, image=datasets.Image())
    image = {"bytes": b"no image at all", "path": None}
    rows = [{"input": f"row {at}", "label": at % 2, "image": image} for at in range(600)]
    return datasets.Dataset.from_list(rows).cast(features)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_folder_is_read_as_it_is_stored_and_an_image_is_not_opened(path: Path, dataset: datasets.Dataset) -> None:
    dataset.save_to_disk(str(path), num_shards=3)
    with open_source(str(path)) as source:
        assert source.count() == 600
        lines = list(source.lines(lambda: ["input"]))
    assert [line.row["input"] for line in lines] == [f"row {at}" for at in range(600)]
    assert lines[1].row == {"input": "row 1", "label": 1, "image": {"bytes": b"no image at all", "path": None}}
    assert lines[-1].number == 600


def test_rows_that_were_chosen_are_the_ones_that_are_read(dataset: datasets.Dataset) -> None:
    with source_of(dataset.select([5, 3])) as source:
        assert [(line.number, line.row["input"]) for line in source.read()] == [(1, "row 5"), (2, "row 3")]
        assert (source.name, source.count()) == ("the dataset", 2)


def test_a_dataset_that_streams_is_an_iterable(dataset: datasets.Dataset) -> None:
    with source_of(dataset.select_columns(["input"]).to_iterable_dataset()) as source:
        assert next(source.read()).row == {"input": "row 0"}
        assert source.count() is None


def test_splits_are_named_and_each_is_a_dataset(path: Path, dataset: datasets.Dataset) -> None:
    splits = datasets.DatasetDict({"train": dataset, "test": dataset.select(range(2))})
    splits.save_to_disk(str(path))
    with pytest.raises(ConfigurationError) as raised:
        open_source(str(path))
    assert str(raised.value) == f"{path} holds the splits train, test: name one, such as {path}/train"
    with open_source(str(path / "test")) as source:
        assert source.count() == 2
    with pytest.raises(ConfigurationError, match="give one of 'train', 'test'"):
        source_of(splits)


def test_a_folder_that_is_no_dataset_says_so(path: Path, dataset: datasets.Dataset) -> None:
    with pytest.raises(ConfigurationError, match="there cannot be read: No such file"):
        open_source(f"{path}/")
    path.mkdir()
    with pytest.raises(ConfigurationError, match=r"there is no dataset: give a folder that `save_to_disk`"):
        open_source(str(path))
    dataset.save_to_disk(str(path))
    next(path.glob("*.arrow")).write_bytes(b"broken")
    with pytest.raises(ConfigurationError) as raised:
        open_source(str(path))
    assert str(raised.value).startswith(f"the dataset {path} cannot be read: ")
    (path / "state.json").write_text("{")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        open_source(str(path))


def test_what_is_written_loads_with_datasets(path: Path, tmp_path: Path) -> None:
    rows = [{"input": f"row {at}", "generations": ["a", None]} for at in range(3)]
    export = format_of(f"{path}/").export
    assert export is not None
    export(write(tmp_path / "working.jsonl", rows), path)
    loaded = datasets.load_from_disk(str(path))
    assert isinstance(loaded, datasets.Dataset)
    assert loaded.to_list() == rows
    # Writing it did not leave the bars off.
    assert datasets.are_progress_bars_disabled()
    datasets.enable_progress_bars()
    export(tmp_path / "working.jsonl", path)
    assert not datasets.are_progress_bars_disabled()


def test_a_folder_that_cannot_be_replaced_is_there_as_before(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_dataset(write(tmp_path / "working.jsonl", [{"a": 1}]), path)
    rename = Path.rename

    def failing(one: Path, other: Path) -> Path:
        if one.name == "dataset":
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        return rename(one, other)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(GenpoolError, match="there cannot be written: Operation not permitted"):
        export_dataset(write(tmp_path / "working.jsonl", [{"a": 2}]), path)
    assert datasets.Dataset.load_from_disk(str(path)).to_list() == [{"a": 1}]


def test_a_folder_is_only_replaced_when_it_is_a_dataset(path: Path, dataset: datasets.Dataset) -> None:
    found = format_of(f"{path}/")
    with source_of(dataset) as source:
        check_target(str(path), source, found)
        path.mkdir()
        check_target(str(path), source, found)
        (path / "thesis.txt").write_text("mine")
        with pytest.raises(ConfigurationError, match="it is a folder that holds something else than one dataset"):
            check_target(str(path), source, found)
        (path / "thesis.txt").unlink()
        dataset.save_to_disk(str(path))
        check_target(str(path), source, found)
        with pytest.raises(ConfigurationError, match="a dataset is a folder, and this is a file"):
            check_target(str(path / "state.json"), source, found)
    with open_source(str(path)) as source, pytest.raises(ConfigurationError, match="is the input and the output"):
        check_target(str(path), source, found)


def test_a_result_keeps_what_the_dataset_had_and_gets_what_was_made(tmp_path: Path, dataset: datasets.Dataset) -> None:
    rows = [{"input": f"made {at}", "label": 0, "image": "?", "generations": [f"ROW {at}"]} for at in range(600)]
    made = as_dataset(write(tmp_path / "working.jsonl", rows), dataset, ["input"])
    assert made.column_names == ["label", "image", "input", "generations"]
    assert (made.features["label"], made.features["image"]) == (LABELS, datasets.Image())
    assert made["label"][:3] == [0, 1, 0]
    assert made["input"][599] == "made 599"
    assert made["generations"][599] == ["ROW 599"]


def test_a_result_is_a_dataset_without_one_to_begin_with(tmp_path: Path) -> None:
    rows = [{"a": 1}, {"a": 2}]
    assert as_dataset(write(tmp_path / "working.jsonl", rows)).to_list() == rows
    assert len(as_dataset(write(tmp_path / "working.jsonl", []))) == 0
