"""Runs that go on from where they were, or leave an output alone, in this process."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from echo import Gate, Genpool, Start
from fleet import Fleet, until

from genpool import TextGenerationTask
from genpool.client import dataset, runner
from genpool.client.dataset import GenerateSettings, run
from genpool.client.fleet import Choice
from genpool.client.journal import Journal
from genpool.client.output import LineFile
from genpool.client.reason import MaxFailures
from genpool.protocol.errors import ConfigurationError, GenpoolError

Run = Callable[..., int]


class Stopped(GenpoolError):
    """What a test ends a run with."""


@pytest.fixture
def generate(echo_fleet: Fleet, source: Path, target: Path) -> Run:
    """Runs the texts given with ids of their own, and returns the exit code."""

    def call(*texts: str, output: Path = target, **settings: Any) -> int:
        if texts:
            source.write_text("".join(json.dumps({"id": text, "input": text}) + "\n" for text in texts))
        llms = settings.pop("llms", ("a",))
        choice = Choice(echo_fleet.address, llms, settings.pop("task", None), 30.0)
        return run(GenerateSettings(str(source), str(output), choice, **settings))

    return call


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Has runs end in an error instead of writing the row of that number; None lets them be."""
    write = runner.Runner._write

    def stop(number: int | None) -> None:
        def stopping(self: runner.Runner, begun: runner._Begun, *rest: Any) -> None:
            if begun.number == number:
                raise Stopped("stopped here")
            write(self, begun, *rest)

        monkeypatch.setattr(runner.Runner, "_write", stopping)

    return stop


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def done(fleet: Fleet) -> int:
    """How many shares the workers have answered by now."""
    return sum(worker["done"] for llm in fleet.report()["llms"] for worker in llm["workers"])


def names(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.glob("out*"))


TEXTS = [f"row {number}" for number in range(8)]


def test_the_same_settings_go_on_and_ask_for_nothing_twice(
    generate: Run, target: Path, echo_fleet: Fleet, stop_at: Callable[..., None]
) -> None:
    stop_at(3)
    with pytest.raises(Stopped):
        generate(*TEXTS)
    echo_fleet.wait_for(lambda report: report["rows"] == 0)
    before = done(echo_fleet)
    assert [row["id"] for row in rows(target)] == TEXTS[:3]
    journal = Journal(target.with_name("out.jsonl.journal"))
    known = {*range(3), *journal.found.shares}
    journal.close()
    assert 3 in known, "it was finished, and not written"
    assert names(target) == ["out.jsonl", "out.jsonl.journal", "out.jsonl.report.json"]
    stop_at(None)
    assert generate() == 0
    assert [row["generations"] for row in rows(target)] == [[text.upper()] for text in TEXTS]
    assert names(target) == ["out.jsonl", "out.jsonl.report.json"]
    echo_fleet.wait_for(lambda report: report["rows"] == 0)
    assert done(echo_fleet) - before == len(TEXTS) - len(known)


@pytest.mark.parametrize("id_column", [None, "id"])
def test_an_answer_goes_to_no_row_that_was_changed_since(
    generate: Run, source: Path, target: Path, echo_fleet: Fleet, stop_at: Callable[..., None], id_column: str | None
) -> None:
    stop_at(3)
    with pytest.raises(Stopped):
        generate(*TEXTS, id_column=id_column)
    echo_fleet.wait_for(lambda report: report["rows"] == 0)
    stop_at(None)
    lines = source.read_text().splitlines()
    for number in range(3, 8, 2):
        lines[number] = json.dumps({"id": TEXTS[number], "input": f"mended {number}"})
    source.write_text("\n".join(lines))
    assert generate(id_column=id_column) == 0
    mended = [f"MENDED {number}" if number in (3, 5, 7) else text.upper() for number, text in enumerate(TEXTS)]
    assert [row["generations"] for row in rows(target)] == [[text] for text in mended]


def test_a_run_that_began_afresh_tells_to_go_on_without_that(
    generate: Run, target: Path, stop_at: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(*TEXTS) == 0
    stop_at(3)
    with pytest.raises(Stopped):
        generate(overwrite=True)
    assert "3 rows are written whole" in (said := capsys.readouterr().err)
    assert "to go on, run the same command again without --overwrite\n" in said
    stop_at(None)
    assert generate() == 0
    assert [row["generations"] for row in rows(target)] == [[text.upper()] for text in TEXTS]


@pytest.mark.parametrize(
    ("texts", "written", "all_done"),
    [
        (
            ["fail"],
            "1 row is written, and it failed; it",
            "the only row is in {}, and it failed: --only-failed does it",
        ),
        (["one", "fail"], "2 rows are written, 1 of them failed; it", "all 2 rows are in {}, 1 of them failed: "),
        (["fail", "fail"], "2 rows are written, 2 of them failed; it", "2 of them failed: --only-failed does those"),
    ],
    ids=["one", "one of two", "two"],
)
def test_a_finished_run_says_so_and_needs_no_broker(
    generate: Run,
    target: Path,
    source: Path,
    echo_fleet: Fleet,
    capsys: pytest.CaptureFixture[str],
    texts: list[str],
    written: str,
    all_done: str,
) -> None:
    assert generate(*texts) == 1
    assert f"genpool: {written} took" in capsys.readouterr().err
    content = target.read_bytes()
    nowhere = Choice(f"ipc://{target}.socket", ("a",), wait_s=0.1)
    assert run(GenerateSettings(str(source), str(target), nowhere)) == 1
    assert all_done.format(target) in capsys.readouterr().err
    assert target.read_bytes() == content
    assert names(target) == ["out.jsonl", "out.jsonl.report.json"]


def test_rows_that_were_appended_are_done_after_the_others(generate: Run, target: Path) -> None:
    assert generate(*TEXTS[:3]) == 0
    assert generate(*TEXTS) == 0
    assert [row["id"] for row in rows(target)] == TEXTS
    report = json.loads(target.with_name("out.jsonl.report.json").read_text())
    assert (report["rows"], report["llms"]["a"]["outputs"]) == (8, 8)


@pytest.mark.parametrize("is_finished", [True, False])
def test_other_options_are_refused_with_what_has_changed(
    generate: Run, target: Path, stop_at: Callable[..., None], is_finished: bool
) -> None:
    stop_at(None if is_finished else 2)
    if is_finished:
        generate(*TEXTS, seed=3, task=TextGenerationTask("Be brief."))
    else:
        with pytest.raises(Stopped):
            generate(*TEXTS, seed=3, task=TextGenerationTask("Be brief."))
    content = target.read_bytes()
    with pytest.raises(ConfigurationError) as raised:
        generate(num_generations=2, seed=3, task=TextGenerationTask("Be long."))
    assert "--num-generations was 1 and is 2" in str(raised.value)
    assert """the task's system_prompt was "Be brief." and is "Be long.\"""" in str(raised.value)
    assert "--overwrite" in str(raised.value)
    assert "--seed" not in str(raised.value)
    assert target.read_bytes() == content
    stop_at(None)
    assert generate(num_generations=2, overwrite=True) == 0
    assert {len(row["generations"]) for row in rows(target)} == {2}


def test_an_output_of_somebody_else_is_left_alone(generate: Run, target: Path) -> None:
    target.write_text("precious\n")
    with pytest.raises(ConfigurationError, match="belongs to no run that could go on: name another output, or start"):
        generate("one")
    assert target.read_text() == "precious\n"
    assert names(target) == ["out.jsonl"]
    assert generate("one", overwrite=True) == 0
    assert len(rows(target)) == 1


def test_an_empty_output_is_nobodys(generate: Run, target: Path) -> None:
    target.touch()
    assert generate("one") == 0


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["row 0", "other", *TEXTS[2:]], "in.jsonl, line 2 is the first that is another one"),
        (["row 0", "new", *TEXTS[1:]], "in.jsonl, line 2 is the first that is another one"),
        (TEXTS[:2], "in.jsonl has 2 rows, and 4 of it are in"),
        (TEXTS[:1], "in.jsonl has 1 row, and 4 of it are in"),
    ],
)
def test_an_input_that_has_changed_is_refused_and_says_where(
    generate: Run,
    target: Path,
    stop_at: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    texts: list[str],
    said: str,
) -> None:
    stop_at(4)
    with pytest.raises(Stopped):
        generate(*TEXTS)
    content = target.read_bytes()
    capsys.readouterr()
    with pytest.raises(ConfigurationError, match=said):
        generate(*texts)
    assert target.read_bytes() == content
    assert "run the same command again" not in capsys.readouterr().err


def test_with_an_id_column_what_else_is_in_a_row_may_change(
    generate: Run, target: Path, source: Path, stop_at: Callable[..., None]
) -> None:
    stop_at(4)
    with pytest.raises(Stopped):
        generate(*TEXTS, id_column="id")
    stop_at(None)
    source.write_text("".join(json.dumps({"id": text, "input": f"new {text}"}) + "\n" for text in TEXTS))
    assert generate(id_column="id") == 0
    assert [row["input"] for row in rows(target)] == [*TEXTS[:4], *(f"new {text}" for text in TEXTS[4:])]


@pytest.mark.parametrize("strict", [False, True])
def test_an_id_column_that_the_first_row_lacks_is_refused_before_anything_is_written(
    generate: Run, source: Path, target: Path, strict: bool
) -> None:
    with pytest.raises(
        ConfigurationError, match=r"known by their column 'name': .*, line 1: the column 'name' is missin"
    ):
        generate("one", "two", id_column="name", strict=strict)
    assert names(target) == []
    assert generate("one", "two", id_column="id", strict=strict) == 0
    source.write_text('no row\n{"input": "two"}\n')
    assert generate(output=target.with_suffix(".csv"), id_column="id", strict=False) == 1


def test_a_torn_line_is_cut_off_and_done_again(generate: Run, target: Path, stop_at: Callable[..., None]) -> None:
    stop_at(4)
    with pytest.raises(Stopped):
        generate(*TEXTS)
    with target.open("ab") as file:
        file.write(b'{"id": "row 4", "inp')
    with target.with_name("out.jsonl.journal").open("ab") as file:
        file.write(b"\0\0\1\0torn")
    stop_at(None)
    assert generate() == 0
    assert [row["id"] for row in rows(target)] == TEXTS


def test_an_output_that_lost_rows_since_is_refused(generate: Run, target: Path, stop_at: Callable[..., None]) -> None:
    stop_at(4)
    with pytest.raises(Stopped):
        generate(*TEXTS)
    target.write_bytes(target.read_bytes()[:-5])
    with pytest.raises(ConfigurationError, match="was changed since its run was cut off: it has"):
        generate()


@pytest.mark.parametrize("length", [239, 248])
def test_a_name_that_is_too_long_for_its_report_is_refused_first(generate: Run, target: Path, length: int) -> None:
    with pytest.raises(ConfigurationError, match="too long a name for the files beside it"):
        generate("one", output=target.with_name(f"{'o' * (length - 6)}.jsonl"))
    assert not list(target.parent.glob("o*"))
    assert generate(output=target.with_name(f"{'o' * 232}.jsonl")) == 0


@pytest.mark.parametrize("name", ["out.csv.partial.jsonl", "out.csv.journal", "out.csv.report.json"])
@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo], ids=["a folder", "a pipe"])
@pytest.mark.parametrize("overwrite", [False, True], ids=["begun", "begun afresh"])
def test_what_stands_where_a_file_of_the_run_goes_is_left_alone(
    generate: Run, target: Path, name: str, make: Callable[[Path], None], overwrite: bool
) -> None:
    make(target.with_name(name))
    with pytest.raises(ConfigurationError, match=f"{name} is no regular file, and the run writes one there"):
        generate("one", output=target.with_suffix(".csv"), overwrite=overwrite)
    assert names(target) == [name]


def test_a_folder_where_a_whole_file_is_written_first_is_told_of_and_gone_on_after(
    generate: Run, target: Path, echo_fleet: Fleet
) -> None:
    beside = target.with_name(".out.csv.tmp")  # as a dataset's is, of a run that was killed
    beside.mkdir()
    with pytest.raises(GenpoolError, match=r"out\.csv cannot be written: Is a directory"):
        generate("one", output=target.with_suffix(".csv"))
    beside.rmdir()
    before = done(echo_fleet)
    assert (generate(output=target.with_suffix(".csv")), done(echo_fleet)) == (0, before)


def test_two_runs_never_have_one_output(generate: Run, target: Path) -> None:
    journal = Journal(target.with_name("out.jsonl.journal"))
    with pytest.raises(ConfigurationError, match="another run has the journal"):
        generate("one")
    journal.close()
    assert generate("one") == 0


def test_two_runs_never_have_one_file_of_errors(generate: Run, tmp_path: Path, target: Path) -> None:
    errors = tmp_path / "errors.jsonl"
    other = LineFile(errors)
    for output in (target, Path("-")):
        with pytest.raises(ConfigurationError, match=r"another run writes to .*errors\.jsonl now"):
            generate("fail", output=output, errors=str(errors))
    other.__exit__()
    assert generate(errors=str(errors)) == 1


def test_failed_rows_go_to_the_file_of_errors_too(
    generate: Run, target: Path, tmp_path: Path, stop_at: Callable[..., None]
) -> None:
    errors = tmp_path / "errors.jsonl"
    texts = ["one", "fail", "two", "fail", "three"]
    stop_at(2)
    with pytest.raises(Stopped):
        generate(*texts, errors=str(errors))
    with errors.open("ab") as file:
        file.write(b'{"torn')
    stop_at(None)
    assert generate(errors=str(errors)) == 1
    assert [(row["id"], "RowError: this row is bad" in row["error"]) for row in rows(errors)] == [("fail", True)] * 2
    assert list(rows(errors)[0]) == ["id", "input", "error"]


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (("", "b", "b"), {"b": [2, 4]}),
        (("a", "b", "b"), {"a": [0], "b": [2, 4]}),
        (("a", "", "a"), {"a": [0, 4]}),
    ],
    ids=["named later", "another one", "left out once"],
)
def test_the_file_of_errors_may_be_another_one_each_time(
    generate: Run,
    source: Path,
    tmp_path: Path,
    stop_at: Callable[..., None],
    files: Sequence[str],
    told: dict[str, list[int]],
) -> None:
    lines = [{"id": at, "input": "one" if at % 2 else "fail"} for at in range(5)]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for number, name in zip((1, 3, None), files, strict=True):
        stop_at(number)
        with pytest.raises(Stopped) if number else nullcontext():
            generate(errors=str(tmp_path / name) if name else None)
    assert {name: [row["id"] for row in rows(tmp_path / name)] for name in told} == told


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("in.jsonl", "is the input and the file of errors: name another file of errors"),
        ("link", "is the input and the file of errors"),
        ("out.jsonl", "is the file of errors and one that the run writes besides: name another one"),
        ("./out.jsonl", "one that the run writes besides"),
        ("out.jsonl.journal", "one that the run writes besides"),
        ("out.jsonl.report.json", "one that the run writes besides"),
        ("none/errors.jsonl", "the file of errors .*none/errors.jsonl cannot be written: there is no directory"),
        (".", r"the file of errors .* cannot be written: it is a directory"),
        ("pipe", "the file of errors .*pipe cannot be written: it is no regular file"),
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_of_errors_that_cannot_be_is_refused_before_anything_is_written(
    generate: Run, source: Path, target: Path, tmp_path: Path, name: str, told: str, overwrite: bool
) -> None:
    (tmp_path / "link").symlink_to(source)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigurationError, match=told):
        generate("one", "fail", errors=f"{tmp_path}/{name}", overwrite=overwrite)
    assert [row["id"] for row in rows(source)] == ["one", "fail"]
    assert names(target) == []


@pytest.mark.parametrize("name", ["out.csv.partial.jsonl", "out.csv.report.json"])
def test_what_the_run_writes_beside_its_output_is_no_input(
    generate: Run, source: Path, target: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text('{"input": "one"}\n')
    source.symlink_to(name)
    with pytest.raises(ConfigurationError, match=r"in\.jsonl is the input and one that the run writes: name another"):
        generate(output=target.with_suffix(".csv"), overwrite=True)
    assert (source.read_text(), names(target)) == ('{"input": "one"}\n', [name])


def test_a_finished_output_is_no_file_of_errors(generate: Run, target: Path, tmp_path: Path) -> None:
    assert generate("one", "fail") == 1
    before = target.read_bytes()
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(ConfigurationError, match="one that the run writes besides"):
        generate(errors=str(tmp_path / "link"), only_failed=True)
    assert target.read_bytes() == before


def test_a_file_of_errors_that_is_somebody_elses_is_left_alone(generate: Run, target: Path, tmp_path: Path) -> None:
    errors = tmp_path / "errors.jsonl"
    errors.write_text("precious")
    with pytest.raises(ConfigurationError, match="is there, and is not the file of errors of this run"):
        generate("one", errors=str(errors))
    assert (errors.read_text(), names(target)) == ("precious", [])


@pytest.mark.parametrize("stops", [False, True])
def test_only_failed_does_those_again_in_their_places(
    generate: Run,
    target: Path,
    source: Path,
    tmp_path: Path,
    stop_at: Callable[..., None],
    echo_fleet: Fleet,
    stops: bool,
) -> None:
    texts = ["one", "fail", "two", "fail", "three", "fail", "four"]
    errors = tmp_path / "errors.jsonl"
    assert generate(*texts, errors=str(errors), id_column="id", num_generations=2) == 1
    content = target.read_bytes()
    before = done(echo_fleet)
    # Whatever was wrong with two of them is mended.
    lines = [{"id": text, "input": f"mended {at}" if at in (1, 5) else text} for at, text in enumerate(texts)]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {"only_failed": True, "errors": str(errors), "id_column": "id", "num_generations": 2}
    if stops:
        stop_at(3)
        with pytest.raises(Stopped):
            generate(**settings)
        assert target.read_bytes() == content
        with pytest.raises(ConfigurationError, match=r"with --only-failed into .* was cut off: run it with"):
            generate(id_column="id", num_generations=2)
        stop_at(None)
    assert generate(**settings) == 1
    written = rows(target)
    assert [row["id"] for row in written] == texts
    assert [row["generations"][0] for row in written] == ["ONE", "MENDED 1", "TWO", None, "THREE", "MENDED 5", "FOUR"]
    assert [line for line in target.read_text().splitlines() if "MENDED" not in line and "fail" not in line] == [
        line for line in content.decode().splitlines() if "fail" not in line
    ]
    assert [row["id"] for row in rows(errors)] == ["fail"]
    assert names(target) == ["out.jsonl", "out.jsonl.report.json"]
    assert done(echo_fleet) - before <= 4
    report = json.loads(target.with_name("out.jsonl.report.json").read_text())
    assert (report["rows"], report["failed"]) == (7, 1)


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])
def test_an_output_that_is_written_anew_is_as_private_as_before(
    generate: Run, target: Path, stop_at: Callable[..., None], name: str
) -> None:
    output = target.with_name(name)
    assert generate("one", "fail", output=output) == 1
    output.chmod(0o600)
    stop_at(1)
    with pytest.raises(Stopped):
        generate(output=output, only_failed=True)
    assert target.with_name(f"{name}.partial.jsonl").stat().st_mode & 0o777 == 0o600
    stop_at(None)
    assert generate(output=output, only_failed=True) == 1
    assert output.stat().st_mode & 0o777 == 0o600


def test_only_failed_without_failures_does_nothing(
    generate: Run, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate("one") == 0
    assert generate(only_failed=True) == 0
    assert f"no row of {target} has failed" in capsys.readouterr().err


def test_only_failed_wants_a_finished_output(generate: Run, target: Path, stop_at: Callable[..., None]) -> None:
    with pytest.raises(ConfigurationError, match="is not the output of a finished run"):
        generate("one", only_failed=True)
    stop_at(0)
    with pytest.raises(Stopped):
        generate("one")
    with pytest.raises(ConfigurationError, match=r"without --only-failed into .* was cut off"):
        generate("one", only_failed=True)


def test_too_many_failures_stop_the_run_and_say_the_most_frequent_reason(
    generate: Run, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(
        GenpoolError, match=r"3 of 4 rows have failed.*--max-failures 2; 3 of them .*: RowError: this row"
    ):
        generate("one", *["fail"] * 6, max_failures=MaxFailures(rows=2))
    assert len(rows(target)) == 4
    assert "run the same command again" in capsys.readouterr().err
    # Mended, it goes on: what had failed before is not counted again.
    assert generate(max_failures=MaxFailures(rows=3)) == 1
    assert len(rows(target)) == 7


def test_a_share_of_failures_is_judged_after_enough_rows(generate: Run, target: Path) -> None:
    texts = ["fail" if number % 5 == 0 else "fine" for number in range(300)]
    with pytest.raises(GenpoolError, match="40 of 200 rows have failed, which is more than --max-failures 10%"):
        generate(*texts, max_failures=MaxFailures.read("10%"))
    assert len(rows(target)) == 200
    assert generate(*texts[:50], overwrite=True, max_failures=MaxFailures.read("10%")) == 1


def test_an_argument_is_read_from_a_column_of_another_name(generate: Run, target: Path, source: Path) -> None:
    source.write_text('{"question": "one", "input": "not this"}\n{"input": "two"}\n')
    assert generate(mapping={"input": "question"}) == 1
    first, second = rows(target)
    assert (first["generations"], first["input"], first["question"]) == (["ONE"], "not this", "one")
    assert second["error"] == f"{source}, line 2: the column 'question' is missing; there is 'input'"


def test_a_format_of_whole_files_is_written_at_the_end(
    generate: Run, target: Path, tmp_path: Path, stop_at: Callable[..., None]
) -> None:
    output = tmp_path / "out.csv"
    stop_at(3)
    with pytest.raises(Stopped):
        generate(*TEXTS, "fail", output=output)
    assert names(output) == ["out.csv.journal", "out.csv.partial.jsonl", "out.csv.report.json"]
    stop_at(None)
    assert generate(output=output) == 1
    assert names(output) == ["out.csv", "out.csv.report.json"]
    assert len(output.read_text().splitlines()) == 10
    assert generate(output=output, only_failed=True) == 1
    assert names(output) == ["out.csv", "out.csv.report.json"]
    assert len(output.read_text().splitlines()) == 10
    with pytest.raises(ConfigurationError, match=r"the input has rows that .* has not, which is finished"):
        generate(*TEXTS, "fail", "more", output=output)


def test_the_report_tells_what_became_of_the_rows(
    generate: Run, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate("one", "fail", "two", num_generations=2, llms=("a", "b")) == 1
    report = json.loads(target.with_name("out.jsonl.report.json").read_text())
    assert (report["rows"], report["failed"], report["finished"]) == (3, 1, True)
    assert report["reasons"] == {"RowError: this row is bad": 1}
    assert {llm: made["outputs"] for llm, made in report["llms"].items()} == {"a": 2, "b": 2}
    assert report["seconds"] > 0
    said = capsys.readouterr().err
    assert "genpool: 1 failed: RowError: this row is bad" in said
    assert "genpool: a: 2 outputs (" in said


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])
def test_cut_off_between_the_last_row_and_the_end_it_comes_to_its_end(
    generate: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    output = tmp_path / name
    # Before the report, and after each of the steps that follow it.
    for step in (
        lambda: monkeypatch.setattr(dataset, "write_report", _stopping),
        lambda: monkeypatch.setattr(Path, "unlink", _stopping) if name == "out.csv" else None,
        lambda: monkeypatch.setattr(Journal, "remove", lambda _: None),
    ):
        step()
        try:
            assert generate(*TEXTS, output=output, overwrite=True) == 0
        except Stopped:
            pass
        monkeypatch.undo()
        assert generate(output=output) == 0
        assert names(output) == [name, f"{name}.report.json"]
        assert len(output.read_text().splitlines()) == len(TEXTS) + (name == "out.csv")


def _stopping(*_: object, **__: object) -> None:
    raise Stopped("stopped at the end")


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])
def test_a_retry_that_is_cut_off_at_its_end_comes_to_it(
    generate: Run, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    output = tmp_path / name
    assert generate("one", "fail", output=output, id_column="id") == 1
    source.write_text('{"id": "one", "input": "one"}\n{"id": "fail", "input": "mended"}\n')
    monkeypatch.setattr(Journal, "remove", lambda _: None)
    assert generate(output=output, id_column="id", only_failed=True) == 0
    monkeypatch.undo()
    assert output.with_name(f"{name}.journal").exists()
    assert generate(output=output, id_column="id", only_failed=True) == 0
    assert names(output) == [name, f"{name}.report.json"]
    assert "MENDED" in output.read_text()


def test_rows_from_a_pipe_go_on_when_they_are_piped_in_again(
    genpool: Genpool, target: Path, echo_gate: Gate, start: Start
) -> None:
    lines = "".join(json.dumps({"input": text}) + "\n" for text in ["one", "two", "hold", "four"])
    process = start("generate", "-i", "-", "-o", str(target), "--llm", "a")
    assert process.stdin is not None
    process.stdin.write(lines)
    process.stdin.flush()
    until(lambda: target.exists() and len(rows(target)) == 2, "two rows")
    process.kill()
    process.wait()
    echo_gate.open()
    done = genpool("generate", "-i", "-", "-o", str(target), "--llm", "a", stdin=lines.replace("two", "other"))
    assert done.returncode == 2
    assert "standard input was changed since its first 2 rows were done" in done.stderr
    done = genpool("generate", "-i", "-", "-o", str(target), "--llm", "a", stdin=lines.replace("hold", "three"))
    assert (done.returncode, [row["input"] for row in rows(target)]) == (0, ["one", "two", "three", "four"])


def test_through_a_link_it_goes_on_at_what_the_link_points_to(
    generate: Run, target: Path, tmp_path: Path, stop_at: Callable[..., None]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    target.symlink_to(elsewhere / "real.jsonl")
    stop_at(3)
    with pytest.raises(Stopped):
        generate(*TEXTS, "fail")
    stop_at(None)
    assert generate() == 1
    assert generate(only_failed=True) == 1
    assert target.is_symlink()
    assert len(rows(elsewhere / "real.jsonl")) == 9
    assert sorted(path.name for path in elsewhere.iterdir()) == ["real.jsonl", "real.jsonl.report.json"]


def test_rows_that_lack_columns_are_known_again(
    generate: Run, target: Path, source: Path, stop_at: Callable[..., None]
) -> None:
    source.write_text('{}\n[]\n{oops\n{"id": 1}\n{"input": "last"}\n')
    stop_at(4)
    with pytest.raises(Stopped):
        generate()
    stop_at(None)
    assert generate() == 1
    assert ["error" in row for row in rows(target)] == [True] * 4 + [False]


def test_only_failed_refuses_an_output_that_lost_rows(generate: Run, target: Path) -> None:
    assert generate("one", "fail", "two") == 1
    target.write_text("".join(target.read_text().splitlines(keepends=True)[:2]))
    with pytest.raises(ConfigurationError, match="the output has fewer rows than its run has written"):
        generate(only_failed=True)


def test_only_failed_refuses_an_output_with_a_row_that_it_cannot_read(generate: Run, target: Path) -> None:
    output = target.with_suffix(".csv")
    assert generate("one", "fail", "two", output=output) == 1
    damaged = output.read_text().replace("one,", "one,one,", 1)
    output.write_text(damaged)
    with pytest.raises(ConfigurationError, match=r"to be kept cannot be read: .*out\.csv, line 2: there are"):
        generate(output=output, only_failed=True)
    assert output.read_text() == damaged
