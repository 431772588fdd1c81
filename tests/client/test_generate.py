"""The command itself: streams, signals, exit codes."""

from __future__ import annotations

import json
import os
import pty
import resource
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from echo import Gate, Genpool, Start, command
from fleet import PATIENCE_S, Fleet, until


def write(path: Path, *texts: str) -> None:
    path.write_text("".join(json.dumps({"input": text}) + "\n" for text in texts))


def rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def ended(process: subprocess.Popen[str]) -> tuple[str, str, int]:
    """What the process wrote, and its exit code."""
    out, err = process.communicate(timeout=PATIENCE_S)
    return out, err, process.returncode


def test_file_to_file(genpool: Genpool, source: Path, target: Path) -> None:
    write(source, "one", "two")
    done = genpool("generate", "-i", str(source), "-o", str(target), "-n", "2", "--llm", "a", "--llm", "b")
    assert (done.returncode, done.stdout) == (0, "")
    assert [row["generations"] for row in rows(target.read_text())] == [["ONE", "ONE"], ["TWO", "TWO"]]
    assert "genpool: 2 rows are written; it took" in done.stderr
    assert "genpool: a: 2 outputs (" in done.stderr


def test_columns_errors_and_formats_on_the_command_line(genpool: Genpool, source: Path, tmp_path: Path) -> None:
    source.write_text('{"question": "one"}\n{"question": "fail"}\n')
    target, errors = tmp_path / "out.csv", tmp_path / "errors.jsonl"
    command = ["generate", "-i", str(source), "-o", str(target), "--map", "input=question", "--errors", str(errors)]
    done = genpool(*command, "--llm", "a")
    assert done.returncode == 1
    assert "genpool: 1 failed: RowError: this row is bad" in done.stderr
    assert target.read_text().startswith("question,generations,")
    assert [row["question"] for row in rows(errors.read_text())] == ["fail"]
    assert "1 of them failed: --only-failed does it again" in genpool(*command, "--llm", "a").stderr
    refused = genpool(*command, "--llm", "b")
    assert (refused.returncode, '--llm was ["a"] and is ["b"]' in refused.stderr) == (2, True)


def test_standard_input_to_standard_output_with_the_options_in_the_environment(genpool: Genpool) -> None:
    options = [("GENPOOL_GENERATE_LLM", "a"), ("GENPOOL_GENERATE_SYSTEM_PROMPT", "Be brief.")]
    done = genpool("generate", "-i", "-", "-o", "-", "--quiet", stdin='{"input": "one"}\n{oops\n', environment=options)
    first, second = rows(done.stdout)
    assert first["generations"] == ["ONE"]
    assert first["generation_prompt"][0][0] == {"role": "system", "content": "Be brief."}
    assert second["error"].startswith("standard input, line 2: this is no JSON")
    assert done.returncode == 1
    assert "genpool: 2 rows are written, 1 of them failed" in done.stderr


def test_strict_input_from_a_pipe(genpool: Genpool) -> None:
    done = genpool("generate", "-i", "-", "-o", "-", "--llm", "a", "--strict", stdin='{"input": "one"}\n{oops\n')
    assert (done.returncode, done.stdout) == (2, "")
    assert "standard input, line 2: this is no JSON" in done.stderr
    done = genpool("generate", "-i", "-", "-o", "-", "--llm", "a", "--strict", stdin='{"input": "one"}\n')
    assert (done.returncode, len(rows(done.stdout))) == (0, 1)


@pytest.mark.parametrize("option", ["-i", "-o", "--errors"], ids=["the input", "the output", "the file of errors"])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("loop.jsonl", "loop.jsonl cannot be reached: Too many levels of symbolic links"),
        ("loop.jsonl/file.csv", "loop.jsonl/file.csv cannot be reached: Too many levels of symbolic links"),
        (f"{'x' * 300}/file.parquet", "cannot be reached: File name too long"),
    ],
    ids=["a loop", "in a loop", "too long"],
)
def test_a_path_that_cannot_be_looked_at_is_one_sentence(
    genpool: Genpool, source: Path, target: Path, option: str, name: str, said: str
) -> None:
    write(source, "one")
    loop = target.with_name("loop.jsonl")
    loop.symlink_to(loop)
    done = genpool("generate", "-i", str(source), "-o", str(target), option, str(target.parent / name))
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert said in done.stderr
    assert not target.exists()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["-i", "none.jsonl"], 2, "the input none.jsonl cannot be read: No such file or directory"),
        (["-i", ""], 2, "the name of the input or the output is empty: name a file"),
        (["--errors", ""], 2, "the name of the file of errors is empty: name a file"),
        (["-o", "/none/out.jsonl"], 2, "there is no directory /none"),
        (["-o", ""], 2, "the name of the input or the output is empty: name a file"),
        (["-n", "0"], 2, "Invalid value for '-n' / '--num-generations': 0 is not in the range x>=1"),
        (["-n", "1000000000"], 2, "`num_generations` may be at most 100000, and is 1000000000"),
        (["--llm", "c", "--wait", "0.3"], 2, "no worker has announced an LLM named 'c' at"),
        (["--task", "nothing"], 2, "there is no task 'nothing'"),
        (["--weights", "1,x"], 2, "--weights are numbers with commas between them, and not '1,x'"),
        (["--weights", "1,2,3"], 2, "`weights` must be 2 numbers, one for each LLM"),
        (["--llm", "a", "--if-lost", "redraw"], 2, "`if_lost` cannot be 'redraw' for 'a' alone"),
        (["--broker", "ipc:///none", "--wait", "0.3"], 3, "no broker at ipc:///none within 0.3 s"),
        (["--max-failures", "many"], 2, "--max-failures is a number of rows, or a share such as 5%, and not 'many'"),
        (["--map", "input"], 2, "--map takes NAME=VALUE, and not 'input'"),
        (["--map", "input=a", "--map", "input=b"], 2, "--map says 'input' more than once: leave one"),
        (["--set", "top_k=3", "--set", "top_k=4"], 2, "--set says 'top_k' more than once: leave one"),
        pytest.param(["--set", "x=" + "[" * 50_000], 2, "--set x is nested too deeply", id="deep-2-nested"),
        (["--set", "top_k=3", "--llm", "a"], 2, "'a' knows no option 'top_k'"),
        (["--only-failed"], 2, "out.jsonl is not the output of a finished run"),
        (["--only-failed", "--overwrite"], 2, "--only-failed keeps what --overwrite would throw away"),
        (["--only-failed", "-o", "-"], 2, "--only-failed does rows of a file again: name it with --output"),
        (["--output-format", "openai-batch", "-o", "x.csv", "-i", "none"], 2, "the input none cannot be read"),
        (["-o", "/dev/full"], 1, "/dev/full cannot be written: No space left on device"),
    ],
)
def test_a_mistake_is_one_sentence(
    genpool: Genpool, source: Path, target: Path, arguments: list[str], code: int, said: str
) -> None:
    write(source, "one")
    done = genpool("generate", "-i", str(source), "-o", str(target), *arguments)
    assert done.returncode == code
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not target.exists()


def test_the_input_is_never_written_over(genpool: Genpool, echo_fleet: Fleet, source: Path) -> None:
    write(source, "one")
    content = source.read_text()
    done = genpool("generate", "-i", str(source), "-o", str(source))
    assert "is the input and the output: write to another file" in done.stderr
    with source.open() as stdin, source.open("a") as stdout:
        shell = subprocess.run(
            command("generate", "-i", "-", "-o", "-", "--broker", echo_fleet.address),
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (done.returncode, shell.returncode) == (2, 2)
    assert source.read_text() == content


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_whole_rows_and_tells_how_to_go_on(
    start: Start, genpool: Genpool, echo_gate: Gate, source: Path, target: Path, number: signal.Signals
) -> None:
    write(source, "one", "two", "hold", "four")
    process = start("generate", "-i", str(source), "-o", str(target), "--llm", "a")
    until(lambda: target.exists() and len(rows(target.read_text())) == 2, "two rows in the file")
    process.send_signal(number)
    _, err, code = ended(process)
    echo_gate.open()
    assert code == 128 + number
    assert f"genpool: stopped by {number.name}; 2 rows are written whole, up to line 2 of the input" in err
    assert "Traceback" not in err

    # What it says can be done as it stands.
    assert "to go on, run the same command again" in err
    report = target.with_name("out.jsonl.report.json")
    assert json.loads(report.read_text())["finished"] is False
    source.write_text(source.read_text().replace("hold", "three"))
    done = genpool("generate", "-i", str(source), "-o", str(target), "--llm", "a")
    assert done.returncode == 0
    assert [row["generations"] for row in rows(target.read_text())] == [["ONE"], ["TWO"], ["THREE"], ["FOUR"]]
    assert json.loads(report.read_text())["finished"] is True
    assert not target.with_name("out.jsonl.journal").exists()


def test_a_signal_while_waiting_for_the_input(start: Start, target: Path) -> None:
    process = start("generate", "-i", "-", "-o", str(target), "--llm", "a")
    until(target.exists, "the start")
    process.send_signal(signal.SIGTERM)
    # Its pipe stays open: the signal alone ends it.
    assert process.wait(PATIENCE_S) == 128 + signal.SIGTERM
    assert process.stderr is not None
    assert "stopped by SIGTERM; no row was written" in process.stderr.read()


def test_a_signal_while_waiting_for_an_llm(start: Start, source: Path, target: Path) -> None:
    write(source, "one")
    process = start("generate", "-i", str(source), "-o", str(target), "--llm", "nobody")
    assert process.stderr is not None
    assert "no worker has announced an LLM named 'nobody'" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, err, code = ended(process)
    assert (code, target.exists()) == (130, False)
    assert "stopped by SIGINT; no row was written" in err


def test_a_reader_that_goes_away_ends_it(start: Start, echo_gate: Gate, source: Path) -> None:
    write(source, "one", "hold", "three")
    process = start("generate", "-i", str(source), "-o", "-", "--llm", "a")
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["generations"] == ["ONE"]
    process.stdout.close()
    echo_gate.open()
    assert process.wait(PATIENCE_S) == 128 + signal.SIGPIPE
    assert process.stderr is not None
    err = process.stderr.read()
    assert "nobody reads the output any more; 1 row is written whole" in err
    assert "Traceback" not in err
    process.stdout = None


def test_a_file_that_may_not_grow_ends_with_a_whole_line_and_can_be_gone_on_with(
    genpool: Genpool, echo_fleet: Fleet, source: Path, target: Path
) -> None:
    write(source, *("row" for _ in range(50)))
    done = subprocess.run(
        command("generate", "-i", str(source), "-o", str(target), "--broker", echo_fleet.address, "--llm", "a"),
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000)),
        check=False,
    )
    written = rows(target.read_text())
    assert 0 < len(written) < 50
    assert done.returncode == 1
    assert f"{len(written)} rows are written whole" in done.stderr
    assert "run the same command again" in done.stderr
    assert "cannot be written: File too large" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert genpool("generate", "-i", str(source), "-o", str(target), "--llm", "a").returncode == 0
    assert len(rows(target.read_text())) == 50


def test_nobody_has_to_hear_of_it(echo_fleet: Fleet, source: Path, target: Path) -> None:
    write(source, "one")
    arguments = ("generate", "-i", str(source), "-o", str(target), "--llm", "a", "--broker", echo_fleet.address)
    closed = subprocess.run(["sh", "-c", '"$@" 2>&-', "sh", *command(*arguments)], timeout=PATIENCE_S, check=False)
    assert (closed.returncode, len(rows(target.read_text()))) == (0, 1)


def test_on_a_terminal_it_draws_a_bar_below_the_log(echo_fleet: Fleet, source: Path, target: Path) -> None:
    write(source, "one", "fail", "three")
    ours, its = pty.openpty()
    process = subprocess.Popen(
        command("generate", "-i", str(source), "-o", str(target), "--broker", echo_fleet.address, "--llm", "a"),
        stderr=its,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "200"},
    )
    os.close(its)
    drawn = b""
    try:
        while chunk := os.read(ours, 65536):
            drawn += chunk
    except OSError:
        pass  # how a terminal ends on Linux
    os.close(ours)
    assert process.wait(PATIENCE_S) == 1
    text = drawn.decode()
    assert "generations (3 rows written, 1 failed, " in text
    assert "3/3" in text
    assert "line 2 failed: RowError: this row is bad" in text


def test_help_is_enough_to_work_from(genpool: Genpool) -> None:
    said = genpool("generate", "--help").stdout
    for word in (
        "--num-generations",
        "--llm",
        "--system-prompt",
        "--if-lost",
        "--strict",
        "--only-failed",
        "--overwrite",
        "the same command goes on",
        "OUTPUT.report.json",
        "Exit codes",
        "generation_model",
    ):
        assert word in said
