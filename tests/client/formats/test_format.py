"""Formats by the names of files, and what is missing for them."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from genpool.client.formats import base
from genpool.client.formats.format import NAMES, format_of, open_source
from genpool.client.formats.target import check_target
from genpool.protocol.errors import ConfigurationError


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("in.jsonl", "jsonl"),
        ("in.NDJSON", "jsonl"),
        ("in.jsonl.gz", "jsonl.gz"),
        ("a.b/in.csv", "csv"),
        ("in.parquet", "parquet"),
        ("in.pq", "parquet"),
        ("folder/", "dataset"),
        ("-", "jsonl"),
        ("/dev/null", "jsonl"),
        ("in.txt", "jsonl"),
        ("in.jsonl.partial", "jsonl"),
    ],
)
def test_a_name_tells_the_format(path: str, name: str) -> None:
    assert format_of(path).name == name


def test_a_folder_that_is_there_is_a_dataset(tmp_path: Path) -> None:
    assert format_of(str(tmp_path)).name == "dataset"


def test_a_format_that_is_named_goes_first() -> None:
    assert [format_of("in.csv", name).name for name in NAMES] == list(NAMES)
    with pytest.raises(ConfigurationError, match="there is no format 'xml': it is one of jsonl, "):
        format_of("in.csv", "xml")


@pytest.mark.parametrize("path", ["in.csv.gz", "in.xlsx", "in.jsonl.zst", "in.tsv"])
def test_a_name_of_some_other_format_is_not_taken_for_jsonl(path: str) -> None:
    with pytest.raises(ConfigurationError, match=f"the name {path} does not tell its format: name the format, one of"):
        format_of(path)


def test_rows_are_written_one_by_one_only_as_lines() -> None:
    assert [name for name in NAMES if format_of("-", name).is_lines] == ["jsonl", "openai-batch"]


@pytest.mark.parametrize(("name", "package"), [("parquet", "pyarrow"), ("dataset", "datasets")])
def test_a_missing_package_is_one_sentence_before_any_work(
    name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere(asked: str) -> None:
        assert asked == package

    (tmp_path / "in.jsonl").touch()
    with open_source(str(tmp_path / "in.jsonl")) as source:
        monkeypatch.setattr(base, "find_spec", nowhere)
        extra = "parquet" if name == "parquet" else "datasets"
        said = rf'the format {name} needs the package {package}: pip install "genpool\[{extra}\]"'
        with pytest.raises(ConfigurationError, match=said):
            open_source(str(tmp_path / "in"), name)
        with pytest.raises(ConfigurationError, match=said):
            check_target(str(tmp_path / "out"), source, format_of("", name))


def test_what_is_read_out_of_order_does_not_come_from_a_stream() -> None:
    for name in ("parquet", "dataset"):
        if importlib.util.find_spec(format_of("-", name).package):
            with pytest.raises(ConfigurationError, match=f"{name} cannot be read from standard input: name a file"):
                open_source("-", name)


def test_a_whole_file_is_not_written_to_a_stream_or_a_device(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").touch()
    with open_source(str(tmp_path / "in.jsonl")) as source:
        with pytest.raises(ConfigurationError, match="csv cannot be written to standard output: name a file"):
            check_target("-", source, format_of("-", "csv"))
        with pytest.raises(ConfigurationError, match="/dev/null cannot be written: it is no regular file"):
            check_target("/dev/null", source, format_of("-", "csv"))
        with pytest.raises(ConfigurationError, match="is the input and the output"):
            check_target(str(tmp_path / "in.jsonl"), source, format_of("-", "csv"))


def test_csv_and_packed_lines_come_from_a_pipe(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"input\none\n")
    os.close(writer)
    with open_source(f"/dev/fd/{reader}", "csv", is_read_twice=True) as source:
        os.close(reader)
        assert source.count() == 1
        assert [line.row for line in source.read()] == [{"input": "one"}]
