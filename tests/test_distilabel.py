"""Tasks of the real distilabel 0.6 work unchanged, in an environment of its own: it needs packages that we do not."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import canned
import pytest
from extras import require
from fleet import PATIENCE_S, Fleet

ROOT = Path(__file__).resolve().parents[1]
TESTS = str(ROOT / "tests")

# Made once; git ignores it.
FOLDER = ROOT / ".distilabel"

# Without its own requirements, as `datasets` is large: its tasks need no more than the packages that follow.
DISTILABEL = "distilabel==0.6.0"
NEEDED = ["jinja2", "packaging", "typing_extensions"]

# Making the environment takes its time.
pytestmark = pytest.mark.timeout(300)


def pip(*arguments: str) -> None:
    done = subprocess.run(
        [FOLDER / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"pip install {' '.join(arguments)}: {done.stderr[-2000:]}"


def make_environment() -> None:
    """An environment with distilabel, in which genpool is this checkout."""
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"] + NEEDED
    wanted = hashlib.sha256(json.dumps([DISTILABEL, needed, sys.version, str(ROOT)]).encode()).hexdigest()
    stamp = FOLDER / "stamp"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    require("torch")  # this is one of the heavy tests, which come with the heavy extras
    venv.create(FOLDER, with_pip=True, clear=True)
    pip(*needed)
    pip("--no-deps", DISTILABEL)
    (FOLDER / "path").mkdir()
    (FOLDER / "path/genpool").symlink_to(ROOT)
    stamp.write_text(wanted)


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """The environment variables of a command in it."""
    # Tests run side by side, and one of them makes it. Any file does for the lock, which ends with the descriptor.
    with (ROOT / "pyproject.toml").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        make_environment()
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(FOLDER / "path"), TESTS])}


@pytest.fixture(scope="module")
def fleet(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Serves "a" and "b", which know nothing of distilabel."""
    with Fleet(tmp_path_factory.mktemp("fleet")) as fleet:
        fleet.start_broker()
        for name in ("a", "b"):
            fleet.start_worker(name, "--load", "canned:load", environment={"MODEL": name, "PYTHONPATH": TESTS})
        fleet.wait_for(lambda report: sum(llm["capacity"] for llm in report["llms"]) == 2)
        yield fleet


@pytest.fixture(scope="module")
def results(environment: dict[str, str], fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each task gave: its outputs from a local LLM, and from a pool."""
    script = [str(FOLDER / "bin/python"), str(ROOT / "tests/distilabel_tasks.py"), fleet.address]
    done = subprocess.run(
        script,
        env=environment,
        cwd=tmp_path_factory.mktemp("run"),
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    # Before it there may be log lines, which distilabel writes there: that a slow machine's broker is waited for, say.
    return json.loads(done.stdout.splitlines()[-1])


EXPECTED: dict[str, Any] = {
    "text": [{"generations": "NAME A COLOUR"}, {"generations": "NAME A TOWN"}],
    "ultrafeedback": [[{"rating": 3.0, "rationale": "so long"}, {"rating": 4.0, "rationale": "so long"}]],
    "self_instruct": [{"instructions": ["Name a town.", "Name a river."]}] * 2,
    "evol_instruct": [{"instructions": canned.EVOL_INSTRUCT}] * 2,
}


@pytest.mark.parametrize("task", EXPECTED)
def test_what_a_task_reads(results: dict[str, Any], task: str) -> None:
    local = [[output["parsed_output"] for output in row] for row in results[task]["local"]]
    pooled = [[output["parsed_output"] for output in row] for row in results[task]["pooled"]]
    assert local == [[parsed] for parsed in EXPECTED[task]]
    assert pooled == [[parsed, parsed] for parsed in EXPECTED[task]]
    assert [output["model_name"] for row in results[task]["pooled"] for output in row] == ["a", "b"] * len(pooled)


def test_principles_are_appended_where_the_prompt_is_made(results: dict[str, Any]) -> None:
    prompts = [output["prompt_used"] for row in results["text"]["pooled"] for output in row]
    assert all(prompt.startswith("Be brief. ") and prompt.endswith(("colour", "town")) for prompt in prompts)


def test_a_labelling_run_over_a_file(environment: dict[str, str], fleet: Fleet, tmp_path: Path) -> None:
    """By the task's name on the command line; what it makes has the columns that distilabel gave it."""
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    given = {"input": "name a colour", "generations": ["red", "blue"]}
    source.write_text(json.dumps(given) + "\n")
    command = ["-m", "genpool.cli", "generate", "-i", str(source), "-o", str(target), "--llm", "a", "--quiet"]
    done = subprocess.run(
        [FOLDER / "bin/python", *command, "--task", "distilabel_tasks:ultrafeedback"],
        env={**environment, "GENPOOL_BROKER": fleet.address},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    row = json.loads(target.read_text())
    assert {name: row[name] for name in given} == given
    assert (row["rating"], row["rationale"]) == ([3.0, 4.0], ["so long", "so long"])
    assert row["labelling_model"] == "a"
    assert row["raw_labelling_response"] == canned.answer(row["labelling_prompt"])
