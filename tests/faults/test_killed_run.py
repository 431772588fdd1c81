"""``genpool generate``, killed wherever it is: the same command goes on, and the file is that of a run left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import PATIENCE_S, Fleet, until

from genpool.client.entry import bodies, unpacked
from genpool.client.journal import MAGIC
from genpool.client.standing import Block, Finished

ROWS = 150
KILLS = 10

# Notes what it answers, and takes long enough for the kills to come in between.
SOURCE = """
import os, time
from pathlib import Path
from genpool import LLM, TextGenerationTask
from genpool.worker.llm import RowCall

class Slow(LLM):
    concurrency = 4

    @property
    def model_name(self):
        return os.environ["MODEL"]

    def _generate(self, inputs, num_generations=1):
        return [self.generate_row(RowCall(row, num_generations=num_generations)) for row in inputs]

    def generate_row(self, call):
        text = call.content["input"]
        time.sleep(0.01)
        with open(os.environ["NOTED"], "ab", buffering=0) as noted:
            noted.write(f"{self.model_name} {text}\\n".encode())
        said = f"{text.upper()} {call.seed}"
        output = {"model_name": self.model_name, "prompt_used": text, "raw_output": said, "parsed_output": None}
        return [output.copy() for _ in range(call.num_generations)]

def load():
    return Slow(TextGenerationTask())
"""


@pytest.fixture
def slow_fleet(tmp_path: Path) -> Iterator[Fleet]:
    """The LLMs "a" and "b"; rows of a client that is gone are soon forgotten."""
    (tmp_path / "slow_llm.py").write_text(SOURCE)
    with Fleet(tmp_path) as fleet:
        fleet.start_broker("--client-grace", "0.05")
        for name in ("a", "b"):
            given = {"MODEL": name, "NOTED": str(tmp_path / "noted"), "PYTHONPATH": str(tmp_path)}
            fleet.start_worker(name, "--load", "slow_llm:load", environment=given)
        fleet.wait_for(lambda report: sum(llm["capacity"] for llm in report["llms"]) == 8)
        yield fleet


def known(target: Path, texts: list[str]) -> set[tuple[int, str]]:
    """What is in the file or in the journal by now: LLMs' positions with the texts that they answered."""
    found: set[tuple[int, str]] = set()
    journal = target.with_name(f"{target.name}.journal")
    if not journal.exists():
        return found
    with journal.open("rb") as file:
        file.seek(len(MAGIC))
        entries = [unpacked(body) for body, _ in list(bodies(file))[1:]]
    found |= {(entry.at, texts[entry.number]) for entry in entries if isinstance(entry, Finished)}
    assert any(isinstance(entry, Block) for entry in entries) or not whole_lines(target)
    for row in map(json.loads, whole_lines(target)):
        found |= {("ab".index(model), row["input"]) for model in row["generation_model"]}
    return found


def whole_lines(path: Path) -> list[bytes]:
    return [line for line in path.read_bytes().splitlines(True) if line.endswith(b"\n")] if path.exists() else []


def test_killed_at_many_points_it_makes_the_file_of_a_run_left_alone(slow_fleet: Fleet, tmp_path: Path) -> None:
    texts = [f"row {number}" for number in range(ROWS)]
    source, alone, target = tmp_path / "in.jsonl", tmp_path / "alone.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"input": text, "id": at}) + "\n" for at, text in enumerate(texts)))
    common = ["-i", str(source), "--broker", slow_fleet.address, "--llm", "a", "--llm", "b", "-n", "3", "--seed", "5"]

    def start(output: Path) -> subprocess.Popen[bytes]:
        return slow_fleet.start("generate", *common, "-o", str(output))

    assert start(alone).wait(PATIENCE_S) == 0
    noted = tmp_path / "noted"
    chance = random.Random(os.environ.get("GENPOOL_KILL_SEED", "0"))
    finished: set[tuple[int, str]] = set()
    for _ in range(KILLS):
        noted.write_bytes(b"")
        process = start(target)
        kill_after(process, target, more=chance.choice([0, 1, 5, 12, 20]), seconds=chance.uniform(0, 0.05))
        slow_fleet.wait_for(lambda report: report["rows"] == 0)
        again = {("ab".index(model), text) for model, text in noted_lines(noted)} & finished
        assert not again, "a finished share was made again"
        if process.returncode == 0:
            break
        finished = known(target, texts)
    noted.write_bytes(b"")
    assert start(target).wait(PATIENCE_S) == 0
    assert not {("ab".index(model), text) for model, text in noted_lines(noted)} & finished
    assert target.read_bytes() == alone.read_bytes()
    assert Counter(json.loads(line)["input"] for line in whole_lines(target)) == Counter(texts)
    assert sorted(path.name for path in tmp_path.glob("out.jsonl*")) == ["out.jsonl", "out.jsonl.report.json"]


def kill_after(process: subprocess.Popen[bytes], target: Path, *, more: int, seconds: float) -> None:
    """Kill it so long after it has written so many rows, unless it comes to its end."""
    lines = len(whole_lines(target)) + more
    until(lambda: len(whole_lines(target)) >= lines or process.poll() is not None, "some rows more")
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def noted_lines(path: Path) -> list[tuple[str, str]]:
    return [(line[0], line[2:]) for line in path.read_text().splitlines()]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "genpool-test", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        reason = "a disk of its own needs root, and a system that lets it mount"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_one_sentence_and_with_room_it_goes_on(
    slow_fleet: Fleet, tmp_path: Path, small_disk: Path
) -> None:
    source, target, ballast = tmp_path / "in.jsonl", small_disk / "out.jsonl", small_disk / "ballast"
    texts = [f"row {number} {'x' * 100}" for number in range(60)]
    source.write_text("".join(json.dumps({"input": text}) + "\n" for text in texts))
    ballast.write_bytes(bytes(40 * 1024))
    command = ["generate", "-i", str(source), "-o", str(target), "--llm", "a", "--broker", slow_fleet.address]
    assert slow_fleet.start(*command).wait(PATIENCE_S) == 1
    said = max(tmp_path.glob("*-generate.log")).read_text()
    assert said.splitlines()[-1].endswith("cannot be written: No space left on device")
    assert "run the same command again" in said
    assert "Traceback" not in said
    written = target.read_bytes()
    assert written.endswith(b"\n")
    assert 0 < len(whole_lines(target)) < len(texts)
    ballast.unlink()
    assert slow_fleet.start(*command).wait(PATIENCE_S) == 0
    assert [json.loads(line)["input"] for line in whole_lines(target)] == texts
    assert target.read_bytes().startswith(written)


def test_the_report_tells_of_workers_that_were_lost_also_before_the_run_went_on(
    slow_fleet: Fleet, tmp_path: Path
) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"input": f"row {number}"}) + "\n" for number in range(600)))
    given = {"MODEL": "a", "NOTED": str(tmp_path / "noted"), "PYTHONPATH": str(tmp_path)}
    lost = [slow_fleet.start_worker("a", "--load", "slow_llm:load", environment=given) for _ in range(2)]
    slow_fleet.wait_for(lambda report: sum(llm["capacity"] for llm in report["llms"]) == 16)
    command = ["generate", "-i", str(source), "-o", str(target), "--llm", "a", "--broker", slow_fleet.address]

    def lose(number: int) -> subprocess.Popen[bytes]:
        """Have the run begin or go on, and lose a worker."""
        process = slow_fleet.start(*command)
        until(lambda: len(whole_lines(target)) > 100 + 200 * number, "some rows")
        lost[number].kill()
        slow_fleet.wait_for(lambda report: len(report["lost"]) == number + 1)
        return process

    process = lose(0)
    process.terminate()
    assert process.wait(PATIENCE_S) == 128 + signal.SIGTERM
    # Longer than the run will have worked.
    slow_fleet.wait_for(lambda report: report["lost"][0]["ago_s"] > 3)
    assert lose(1).wait(PATIENCE_S) == 0
    assert len(whole_lines(target)) == 600
    told = json.loads(target.with_name("out.jsonl.report.json").read_text())["workers_lost"]
    assert [(one["pid"], one["llm"]) for one in told] == [(one.pid, "a") for one in lost]
    said = max(tmp_path.glob("*-generate.log")).read_text()
    assert all(f":{one.pid} of 'a', " in said for one in lost)
