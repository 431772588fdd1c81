"""Whole runs of a file over a fleet, in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fleet import Fleet

from genpool import TextGenerationTask
from genpool.client import runner
from genpool.client.dataset import GenerateSettings, run
from genpool.client.fleet import Choice
from genpool.client.formats.base import Line
from genpool.client.stream import Row
from genpool.protocol.errors import ConfigurationError, NoBroker, Refused, RemoteError

Run = Callable[..., int]


@pytest.fixture
def generate(echo_fleet: Fleet, source: Path, target: Path) -> Run:
    """Runs the lines given, and returns the exit code."""

    def call(*lines: str, llms: tuple[str, ...] = (), task: Any = None, wait_s: float = 30.0, **settings: Any) -> int:
        source.write_text("".join(line + "\n" for line in lines))
        choice = Choice(echo_fleet.address, llms, task, wait_s)
        return run(GenerateSettings(str(source), str(target), choice, **settings))

    return call


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_come_out_in_order_with_the_columns_of_distilabel(generate: Run, target: Path) -> None:
    assert (
        generate(*(f'{{"input": "row {at}", "id": {at}}}' for at in range(300)), num_generations=3, llms=("a", "b"))
        == 0
    )
    written = rows(target)
    assert [row["id"] for row in written] == list(range(300))
    assert list(written[7]) == [
        "input",
        "id",
        "generations",
        "generation_model",
        "generation_prompt",
        "raw_generation_responses",
    ]
    assert written[7]["generations"] == written[7]["raw_generation_responses"] == ["ROW 7"] * 3
    assert written[7]["generation_prompt"] == ["row 7"] * 3
    # Two LLMs share three generations, and which of them makes two is drawn anew for each row.
    assert {tuple(row["generation_model"]) for row in written} == {
        ("model-a", "model-a", "model-b"),
        ("model-a", "model-b", "model-b"),
    }


def test_a_row_that_fails_keeps_its_place_and_says_why(
    generate: Run, target: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ['{"input": "one"}', "{oops", '{"prompt": "two"}', '{"input": "fail", "id": 4}', '{"input": "last"}']
    assert generate(*lines, num_generations=2, llms=("a", "b")) == 1
    first, broken, incomplete, failed, last = rows(target)
    assert (first["generations"], last["generations"]) == (["ONE"] * 2, ["LAST"] * 2)
    for row in (broken, incomplete, failed):
        for column in ("generations", "generation_prompt", "raw_generation_responses"):
            assert row[column] == [None, None]
    assert broken["error"].startswith(f"{source}, line 2: this is no JSON")
    assert incomplete["error"] == f"{source}, line 3: the column 'input' is missing; there is 'prompt'"
    assert incomplete["prompt"] == "two"
    assert failed["error"].count("RowError: this row is bad") == 2
    assert (failed["id"], failed["generation_model"]) == (4, ["model-a", "model-b"])
    assert "error" not in first
    assert "genpool: 5 rows are written, 3 of them failed; it took" in capsys.readouterr().err


def test_with_a_task_the_prompts_are_made_here(generate: Run, target: Path) -> None:
    task = TextGenerationTask(system_prompt="Be brief.")
    assert generate('{"input": "one"}', llms=("b",), task=task) == 0
    (row,) = rows(target)
    assert row["generations"] == ["ONE"]
    assert row["generation_prompt"] == [
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "one"}]
    ]


def test_a_lone_surrogate_comes_through(generate: Run, target: Path) -> None:
    assert generate('{"input": "surrogate"}', llms=("a",)) == 0
    assert rows(target)[0]["generations"] == ["half \ud800"]


def test_without_names_all_llms_of_the_fleet_have_their_share(generate: Run, target: Path) -> None:
    assert generate('{"input": "one"}', num_generations=2) == 0
    assert rows(target)[0]["generation_model"] == ["model-a", "model-b"]


def test_weights_and_seed_reach_the_draw(generate: Run, target: Path) -> None:
    lines = [f'{{"input": "{at}"}}' for at in range(20)]
    assert generate(*lines, llms=("a", "b"), weights=[0, 1], num_generations=2) == 0
    assert {tuple(row["generation_model"]) for row in rows(target)} == {("model-b", "model-b")}
    drawn: list[list[Any]] = []
    for _ in range(2):
        assert generate(*lines, llms=("a", "b"), seed=3, overwrite=True) == 0
        drawn.append([row["generation_model"] for row in rows(target)])
    assert drawn[0] == drawn[1]
    assert {model for (model,) in drawn[0]} == {"model-a", "model-b"}


def test_options_that_cannot_be_used_leave_the_target_as_it_was(generate: Run, target: Path) -> None:
    target.write_text("precious")
    with pytest.raises(ConfigurationError, match="`weights` must be 2 numbers"):
        generate('{"input": "one"}', llms=("a", "b"), weights=[1.0], overwrite=True)
    assert target.read_text() == "precious"
    assert [path.name for path in target.parent.glob("out*")] == ["out.jsonl"]


def test_an_empty_file_is_no_error(generate: Run, target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate("", "") == 0
    assert target.read_text() == ""
    assert "0 rows are written" in capsys.readouterr().err


def test_quiet_says_nothing_at_a_good_end(generate: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate('{"input": "one"}', llms=("a",), quiet=True) == 0
    assert capsys.readouterr().err == ""


def test_strict_checks_all_rows_before_anything_is_sent_or_written(
    generate: Run, target: Path, echo_fleet: Fleet
) -> None:
    def done() -> int:
        return sum(worker["done"] for llm in echo_fleet.report()["llms"] for worker in llm["workers"])

    before = done()
    lines = ['{"input": "one"}', "[]", *['{"prompt": "two"}'] * 20]
    with pytest.raises(ConfigurationError) as raised:
        generate(*lines, strict=True, task=TextGenerationTask(), llms=("a",))
    said = str(raised.value).splitlines()
    assert len(said) == 1 + 10 + 1
    assert "in.jsonl, line 2: a row is a JSON object" in said[1]
    assert "in.jsonl, line 3: the column 'input' is missing" in said[2]
    assert said[-1].strip() == "and 11 more"
    assert not target.exists()
    assert done() == before


def test_strict_asks_the_llms_for_the_columns_of_their_task(generate: Run, target: Path) -> None:
    with pytest.raises(ConfigurationError, match="line 2: the column 'input' is missing"):
        generate('{"input": "one"}', '{"prompt": "two"}', strict=True, llms=("a",))
    assert not target.exists()
    assert generate('{"input": "one"}', "", '{"input": "two"}', strict=True, llms=("a",)) == 0
    assert len(rows(target)) == 2


@pytest.mark.parametrize("task", [None, TextGenerationTask()], ids=["the LLMs' own", "given"])
def test_an_argument_that_the_task_has_not_is_mapped_to_no_column(generate: Run, target: Path, task: Any) -> None:
    """Misspelt, it would do nothing, and the rows be made of another column."""
    with pytest.raises(ConfigurationError, match=r"no argument 'inptu' to read from the column 'text': it has 'input'"):
        generate('{"input": "one", "text": "two"}', llms=("a",), task=task, mapping={"inptu": "text"})
    assert not target.exists()


def test_an_llm_that_nobody_serves_is_told_of_with_those_that_there_are(generate: Run, target: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"an LLM named 'c', 'd' at .* \(known there: a, b\)"):
        generate('{"input": "one"}', llms=("a", "c", "d"), wait_s=0.5)
    assert not target.exists()


def test_without_a_broker_nothing_is_written(source: Path, target: Path) -> None:
    source.write_text('{"input": "one"}\n')
    with pytest.raises(NoBroker, match="no broker at ipc:"):
        run(GenerateSettings(str(source), str(target), Choice(f"ipc://{target}.socket", ("a",), wait_s=0.3)))
    assert not target.exists()


def test_rows_beyond_the_timeout_have_failed(generate: Run, target: Path) -> None:
    assert generate(*(f'{{"input": "{at}"}}' for at in range(3)), llms=("a",), timeout_s=1e-6) == 1
    assert all("Expired" in row["error"] for row in rows(target))


def test_a_broker_that_refuses_in_mid_run_ends_it(
    generate: Run, target: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse_second(source: Any, line: Line, row: Row) -> Any:
        if row.index == 1:
            error = RemoteError("Refused", "another version", kind=Refused)
            row = Row(row.index, row.input, row.outputs, error)
        return told(source, line, row)

    told = runner._failure_of
    monkeypatch.setattr(runner, "_failure_of", refuse_second)
    with pytest.raises(Refused, match="another version"):
        generate(*(f'{{"input": "{at}"}}' for at in range(3)), llms=("a",))
    assert len(rows(target)) == 1
    assert "1 row is written whole, up to line 1 of the input" in capsys.readouterr().err
