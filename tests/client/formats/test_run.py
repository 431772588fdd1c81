"""Whole runs of the command from one format into another."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from echo import Genpool
from extras import require

from genpool.client.formats.format import NAMES, format_of, open_source

ROWS = [{"input": "one", "score": 0.5}, {"input": "fail", "score": math.nan}, {"input": "three", "score": math.inf}]


@pytest.fixture(params=[name for name in NAMES if name != "openai-batch"])
def name(request: pytest.FixtureRequest) -> str:
    package = format_of("-", request.param).package
    if package:
        require(package)
    return request.param


def read(path: Path, name: str) -> list[dict[str, Any]]:
    with open_source(str(path), name) as source:
        return [line.row for line in source.read()]


def test_a_run_into_each_format_and_out_of_it_again(genpool: Genpool, tmp_path: Path, name: str) -> None:
    source, middle, target = tmp_path / "in.jsonl", tmp_path / "middle", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    options = ["--llm", "a", "--quiet"]
    done = genpool("generate", "-i", str(source), "-o", str(middle), "--output-format", name, *options)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    rows = read(middle, name)
    assert [row["input"] for row in rows] == ["one", "fail", "three"]
    made = [json.loads(row["generations"]) if name == "csv" else row["generations"] for row in rows]
    assert made == [["ONE"], [None], ["THREE"]]
    assert "this row is bad" in rows[1]["error"]
    keeps_all = format_of("-", name).has_nan
    scores = ["0.5", "nan", "inf"] if keeps_all else ["0.5", "non", "non"]  # of None
    assert [str(row["score"]).lower()[:3] for row in rows] == scores
    assert not middle.with_name("middle.partial.jsonl").exists()

    done = genpool("generate", "-i", str(middle), "-o", str(target), "--input-format", name, *options)
    assert done.returncode == 1, done.stderr
    assert [row["generations"] for row in read(target, "jsonl")] == [["ONE"], [None], ["THREE"]]


def test_a_batch_file_is_answered_by_its_ids(genpool: Genpool, tmp_path: Path) -> None:
    def request(custom_id: str, **body: Any) -> str:
        body |= {"model": "any", "messages": [{"role": "user", "content": custom_id}]}
        return json.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body})

    lines = [request("first", n=2), request("second", n=3), "{oops", request("last")]
    batch = ["--input-format", "openai-batch", "--output-format", "openai-batch", "--map", "input=messages"]
    done = genpool(
        "generate", "-i", "-", "-o", "-", *batch, "-n", "2", "--llm", "a", "--llm", "b", stdin="\n".join(lines)
    )
    assert done.returncode == 1, done.stderr
    first, second, third, last = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["custom_id"] for one in (first, second, third, last)] == ["first", "second", "row-3", "last"]
    for answer, text in ((first, "FIRST"), (last, "LAST")):
        choices = answer["response"]["body"]["choices"]
        assert [choice["message"]["content"] for choice in choices] == [text] * 2
        assert [choice["model"] for choice in choices] == ["model-a", "model-b"]
        assert answer["error"] is None
    assert "it asks for n=3, and this run makes 2 for each row" in second["error"]["message"]
    assert (second["response"], third["response"]) == (None, None)
    assert "this is no JSON" in third["error"]["message"]
