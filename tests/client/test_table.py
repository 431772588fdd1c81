from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fleet import Fleet
from scripted import Local, loader

from genpool import LLMPool, ProcessLLM, TextGenerationTask, generate_dataset
from genpool.protocol.errors import ConfigurationError, GenpoolError


@pytest.fixture
def pool(echo_fleet: Fleet) -> Iterator[LLMPool]:
    with LLMPool.connect(["a", "b"], broker=echo_fleet.address) as pool:
        yield pool


def rows(*texts: str) -> list[dict[str, Any]]:
    return [{"id": at, "input": text} for at, text in enumerate(texts)]


def test_rows_come_back_with_the_columns_of_a_run(pool: LLMPool) -> None:
    made = generate_dataset(pool, (row for row in rows("one", "fail", "two")), 2)
    assert [(row["id"], row["generations"]) for row in made] == [
        (0, ["ONE", "ONE"]),
        (1, [None, None]),
        (2, ["TWO", "TWO"]),
    ]
    assert made[0]["generation_model"] == ["model-a", "model-b"]
    assert "RowError: this row is bad" in made[1]["error"]
    assert "error" not in made[0]


def test_with_an_output_it_goes_on_and_a_finished_one_is_given_back(pool: LLMPool, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"

    def cut_off() -> Iterator[dict[str, Any]]:
        yield from rows("one", "two")
        raise KeyError("the source is gone")

    with pytest.raises(KeyError, match="the source is gone"):
        generate_dataset(pool, cut_off(), output=output)
    assert len(output.read_text().splitlines()) == 2
    made = generate_dataset(pool, rows("one", "two", "three"), output=output)
    assert [row["generations"] for row in made] == [["ONE"], ["TWO"], ["THREE"]]
    assert json.loads(output.with_name("out.jsonl.report.json").read_text())["rows"] == 3
    pool.teardown()
    assert generate_dataset(pool, iter(rows("one", "two", "three")), output=output) == made


def test_other_options_on_the_same_output_are_refused(pool: LLMPool, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    generate_dataset(pool, rows("one"), output=output, seed=1)
    with pytest.raises(ConfigurationError, match="--seed was 1 and is 2"):
        generate_dataset(pool, rows("one"), output=output, seed=2)
    assert len(generate_dataset(pool, rows("one"), 2, output=output, seed=2, overwrite=True)[0]["generations"]) == 2


def test_failed_rows_are_done_again(pool: LLMPool, tmp_path: Path) -> None:
    output, errors = tmp_path / "out.jsonl", tmp_path / "errors.jsonl"
    generate_dataset(pool, rows("one", "fail"), output=output, errors=errors, id_column="id")
    assert len(errors.read_text().splitlines()) == 1
    with pytest.raises(ConfigurationError, match="give a list, and no iterator"):
        generate_dataset(pool, iter(rows("one", "two")), output=output, id_column="id", only_failed=True)
    made = generate_dataset(pool, rows("one", "two"), output=output, id_column="id", only_failed=True)
    assert [row["generations"] for row in made] == [["ONE"], ["TWO"]]


def test_a_column_of_another_name_and_a_limit_of_failures(pool: LLMPool) -> None:
    assert generate_dataset(pool, [{"text": "one"}], columns={"input": "text"})[0]["generations"] == ["ONE"]
    with pytest.raises(GenpoolError, match="2 of 2 rows have failed"):
        generate_dataset(pool, rows("fail", "fail", "fail"), max_failures=1)


def test_a_row_that_is_no_dict_fails_alone(pool: LLMPool) -> None:
    first, second = generate_dataset(pool, ["one", {"input": "two"}])
    assert first["error"].startswith("the rows, row 1: a row is a dict such as")
    assert second["generations"] == ["TWO"]


@pytest.mark.parametrize("given", ["text", {"input": "one"}, 7])
def test_what_is_no_dataset_is_refused(pool: LLMPool, given: Any) -> None:
    with pytest.raises(ConfigurationError, match="rows are a Dataset or an iterable of dicts"):
        generate_dataset(pool, given)


@pytest.mark.parametrize("llm", ["a", ["a", "b"], None], ids=str)
def test_what_makes_no_outputs_is_refused(llm: Any) -> None:
    with pytest.raises(ConfigurationError, match="`llm` must be an LLMPool or a ProcessLLM, and is"):
        generate_dataset(llm, rows("one"))


def test_an_output_that_cannot_grow_is_refused(pool: LLMPool, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"`output` is a JSONL file, and .*/out.parquet is named otherwise"):
        generate_dataset(pool, [], output=tmp_path / "out.parquet")


def test_an_output_that_cannot_be_looked_at_is_refused(pool: LLMPool, tmp_path: Path) -> None:
    loop = tmp_path / "loop.jsonl"
    loop.symlink_to(loop)
    with pytest.raises(ConfigurationError, match=r"loop\.jsonl cannot be reached: Too many levels of symbolic links"):
        generate_dataset(pool, [{"input": "one"}], output=loop)
    with pytest.raises(ConfigurationError, match=r"loop\.jsonl cannot be reached: Too many levels of symbolic links"):
        generate_dataset(pool, [{"input": "one"}], errors=loop)
    with pytest.raises(ConfigurationError, match="cannot be reached: embedded null byte"):
        generate_dataset(pool, [{"input": "one"}], output="one\0.jsonl")


@pytest.mark.parametrize("output", ["-", "/dev/null"])
def test_an_output_that_cannot_be_read_back_is_refused(pool: LLMPool, output: str) -> None:
    with pytest.raises(ConfigurationError, match=f"rows are read back from, and {output} is none"):
        generate_dataset(pool, [{"input": "one"}], output=output)


def test_hedge_is_an_option_of_the_rows(pool: LLMPool) -> None:
    assert len(generate_dataset(pool, rows("one", "two"), hedge=True)) == 2
    with pytest.raises(ConfigurationError, match="`hedge` must be True, False or a number of at least 1"):
        generate_dataset(pool, rows("one"), hedge=0.5)


def test_an_option_that_there_is_not_is_refused(pool: LLMPool) -> None:
    options: Any = {"temperature": 1}
    with pytest.raises(ConfigurationError, match="no such option: temperature; there are columns, draw"):
        generate_dataset(pool, [], **options)


def test_local_llms_go_on_in_another_process_too(local: Local, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    first = generate_dataset(local(loader(tmp_path)), rows("one"), output=output)
    again = generate_dataset(local(loader(tmp_path)), rows("one", "two"), output=output)
    assert [row["raw_generation_responses"] for row in again] == [
        *(r["raw_generation_responses"] for r in first),
        ["two"],
    ]


def test_with_a_task_of_ones_own(echo_fleet: Fleet) -> None:
    llm = ProcessLLM.connect("a", echo_fleet.address, TextGenerationTask("Be brief."))
    (row,) = generate_dataset(llm, rows("one"))
    llm.teardown()
    assert row["generation_prompt"][0][0] == {"role": "system", "content": "Be brief."}
