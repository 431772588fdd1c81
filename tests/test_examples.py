"""The examples, run as a user runs them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fleet import Fleet

ROOT = Path(__file__).resolve().parents[1]

# What a sentence at the end says of the prompts that no pair was made of.
LEFT_OUT = re.compile(r"(\d+) (?:rated alike|without two ratings|without two different answers|failed)")


def make_pairs(fleet: Fleet, folder: Path, prompts: list[str], *arguments: str) -> tuple[list[dict[str, Any]], str]:
    """The pairs that the example writes for ``prompts``, and what it says."""
    source, target = folder / "prompts.jsonl", folder / "pairs.jsonl"
    source.write_text("".join(json.dumps({"input": prompt}) + "\n" for prompt in prompts))
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/examples/preference.py"), str(source), str(target), *arguments],
        env={**os.environ, "GENPOOL_BROKER": fleet.address},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in target.read_text().splitlines()], done.stderr


def start_judging(fleet: Fleet) -> None:
    """A broker, and the LLMs "a" and "b"."""
    fleet.start_broker()
    for name in ("a", "b"):
        environment = {"MODEL": name, "PYTHONPATH": str(ROOT / "tests")}
        fleet.start_worker(name, "--load", "judging:load", environment=environment)
    fleet.wait_for(lambda report: sum(llm["capacity"] for llm in report["llms"]) == 2)


def test_pairs_of_what_a_judge_rates_highest_and_lowest(tmp_path: Path) -> None:
    with Fleet(tmp_path) as fleet:
        start_judging(fleet)
        prompts = ["Say so.", "It is a tie:", "Say mumble", "Say it."]
        pairs, said = make_pairs(fleet, tmp_path, prompts, "-n", "4", "--llm", "a", "--llm", "b", "--judge", "b")
        few, said_of_few = make_pairs(fleet, tmp_path, ["Say so."], "-n", "2", "--llm", "a", "--llm", "b")
    assert sorted(pairs, key=lambda pair: pair["prompt"][0]["content"]) == [
        {
            "prompt": [{"role": "user", "content": f"Say {word}"}],
            "chosen": [{"role": "assistant", "content": f"{word} {word}"}],
            "rejected": [{"role": "assistant", "content": word}],
        }
        for word in ("it.", "so.")
    ]
    assert "2 pairs of 4 prompts are in" in said
    assert "no pair was made of 1 rated alike, 1 without two ratings that can be read" in said
    assert few == []
    assert "0 pairs of 1 prompts" in said_of_few
    assert "1 without two different answers" in said_of_few


def test_an_input_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"input": "x"}\n{"prompt": "y"}\n')
    with Fleet(tmp_path) as fleet:
        start_judging(fleet)
        script = [sys.executable, str(ROOT / "scripts/examples/preference.py")]
        done = subprocess.run(
            [*script, str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"), "--broker", fleet.address],
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
    assert done.returncode == 1
    assert "in.jsonl, line 2: it must be a JSON object with a text at `input`" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("target", "arguments", "sentence"),
    [
        ("pairs.jsonl", ["--judge", "gwen"], "no worker has announced an LLM named 'gwen' at "),
        ("pairs.jsonl", ["--llm", "a", "--llm", "gwen"], "no worker has announced an LLM named 'gwen' at "),
        ("pairs.jsonl", ["--llm", "a", "--llm", "b", "--broker", "127.0.0.1:1"], "no broker at tcp://127.0.0.1:1"),
        ("absent/pairs.jsonl", [], "absent/pairs.jsonl cannot be used: No such file or directory"),
    ],
    ids=["a judge that nobody serves", "an LLM that nobody serves", "no broker", "no folder"],
)
def test_what_no_prompt_can_be_answered_with_is_told_at_once(
    tmp_path: Path, target: str, arguments: list[str], sentence: str
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"input": "Say so."}\n' * 3)
    with Fleet(tmp_path) as fleet:
        start_judging(fleet)
        script = [sys.executable, str(ROOT / "scripts/examples/preference.py")]
        done = subprocess.run(
            [*script, str(source), str(tmp_path / target), "--broker", fleet.address, "--wait", "2", *arguments],
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
    assert done.returncode == 1
    assert sentence in done.stderr.splitlines()[-1]
    assert "Errno" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.timeout(180)
def test_two_small_models_answer_and_one_of_them_judges(tmp_path: Path, smollm2_path: Path, gemma_path: Path) -> None:
    """A model this small may give ratings that cannot be read: then it is said, and nothing breaks."""
    prompts = ["Name a colour.", "What is the capital of France?", "Write a sentence about rain."]
    settings = ["--engine", "llamacpp", "--set", "n_threads=1", "--set", "max_new_tokens=24", "--set", "n_parallel=2"]
    with Fleet(tmp_path) as fleet:
        fleet.start_broker()
        fleet.start_worker("smollm2", *settings, "--model", str(smollm2_path))
        fleet.start_worker("gemma3", *settings, "--model", str(gemma_path))
        pairs, said = make_pairs(
            fleet, tmp_path, prompts, "-n", "2", "--llm", "smollm2", "--llm", "gemma3", "--judge", "smollm2"
        )
    assert f"{len(pairs)} pairs of 3 prompts" in said
    assert len(pairs) + sum(map(int, LEFT_OUT.findall(said))) == 3
    for pair in pairs:
        assert [message["role"] for part in pair.values() for message in part] == ["user", "assistant", "assistant"]
        assert pair["prompt"][0]["content"] in prompts
        assert pair["chosen"] != pair["rejected"]
