"""OpenAI's batch files: as their own types read them, and requests that cannot be answered."""

# pyright: reportMissingImports=false
# openai is an extra.

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from extras import require

from genpool.client.formats.base import Line
from genpool.client.formats.format import format_of, open_source
from genpool.tasks.output import LLMOutput

MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "batch.jsonl"


def request(custom_id: Any = "one", **body: Any) -> dict[str, Any]:
    body = {"model": "gpt-x", "messages": MESSAGES, **body}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def read(path: Path, *requests: Any, num_generations: int | None = 1) -> list[Line]:
    path.write_text("".join(json.dumps(one) + "\n" for one in requests))
    with open_source(str(path), "openai-batch", num_generations=num_generations) as source:
        assert source.count() == len(requests)
        lines = list(source.lines(lambda: ["messages"]))
        source.rewind()
        assert list(source.lines(lambda: ["messages"])) == lines
        return lines


def answer(line: Line, *outputs: LLMOutput, error: str = "") -> dict[str, Any]:
    encode_row = format_of("-", "openai-batch").encode_row
    assert encode_row is not None
    return json.loads(encode_row(line, outputs, error))


def output(text: str, model: str = "m", **said: Any) -> LLMOutput:
    made = LLMOutput(model_name=model, prompt_used=MESSAGES, raw_output=text, parsed_output=text)
    return made | said  # pyright: ignore[reportReturnType]


def test_a_request_is_a_row_with_options_of_its_own(path: Path) -> None:
    said = {"temperature": 0.5, "top_p": 0.9, "stop": ["."], "frequency_penalty": 0.1, "presence_penalty": 0.2}
    form = {"type": "json_object"}
    unset = {"n": 1, "stream": False, "tools": None}
    first, second = read(
        path,
        request("one", max_tokens=7, seed=3, response_format=form, **said, **unset),
        request("two", max_completion_tokens=8),
    )
    row = {"custom_id": "one", "messages": MESSAGES, "model": "gpt-x"}
    options = {"max_new_tokens": 7, "seed": 3, "response_format": form, **said}
    assert first == Line(1, row, options=options)
    assert second.options == {"max_new_tokens": 8}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (request("bad", n=3), "it asks for n=3, and this run makes 1 for each row: run those with -n 3"),
        (
            request("bad", tools=[], logprobs=True),
            "the body says logprobs, tools, which cannot be honoured: take it out",
        ),
        (request("first"), "the custom_id 'first' is that of line 1 too"),
        (request(None), "a request has a `custom_id`, which is a text"),
        (request("bad", seed="x"), "the seed is an integer, and not 'x'"),
        (request("bad", seed=1 << 64), f"the seed is an integer of 64 bits, and {1 << 64} has more"),
        (request("bad", max_tokens=1, max_completion_tokens=2), "which are one and the same: leave one out"),
        ({**request("bad"), "url": "/v1/embeddings"}, "only POST /v1/chat/completions can be answered"),
        ({**request("bad"), "method": "GET"}, "and this is GET /v1/chat/completions"),
        ({**request("bad"), "body": []}, "the `body` of a request is a JSON object"),
        ({**request("bad"), "params": {}}, "a request has no params, but body, custom_id, method, url"),
        (request("bad", messages=None), "the column 'messages' is missing"),
        ([], "a row is a JSON object"),
    ],
)
def test_a_request_that_cannot_be_honoured_says_so_in_its_answer(path: Path, wrong: Any, said: str) -> None:
    first, bad, last = read(path, request("first"), wrong, request("last"))
    assert (first.problem, last.problem, bad.number) == ("", "", 2)
    assert bad.problem.startswith(f"{path}, line 2: ")
    assert said in bad.problem
    answered = answer(bad, error=bad.problem)
    wanted = wrong["custom_id"] if isinstance(wrong, dict) and wrong["custom_id"] else "row-2"
    assert (answered["custom_id"], answered["response"]) == (wanted, None)
    assert answered["error"] == {"code": "invalid_request", "message": bad.problem}


def test_n_may_be_what_the_run_makes_or_not_be_said(path: Path) -> None:
    assert not any(line.problem for line in read(path, request("a", n=2), request("b"), num_generations=2))
    assert not any(line.problem for line in read(path, request("a", n=2), num_generations=None))


def test_an_answer_is_what_openais_client_reads(path: Path) -> None:
    require("openai")
    from openai.types.chat import ChatCompletion

    (line,) = read(path, request("one", n=2), num_generations=2)
    usage = {"prompt_tokens": 5, "completion_tokens": 2}
    answered = answer(line, output("A", usage=usage, finish_reason="length"), output("B", usage=usage))
    assert (answered["custom_id"], answered["error"]) == ("one", None)
    assert answered["id"].startswith("batch_req_")
    assert answered["response"]["status_code"] == 200
    assert answered["response"]["request_id"]
    completion = ChatCompletion.model_validate(answered["response"]["body"], strict=True)
    assert [choice.message.content for choice in completion.choices] == ["A", "B"]
    assert [choice.index for choice in completion.choices] == [0, 1]
    assert [choice.finish_reason for choice in completion.choices] == ["length", "stop"]
    assert completion.model == "m"
    assert completion.usage is not None
    assert (completion.usage.prompt_tokens, completion.usage.total_tokens) == (10, 14)


@pytest.mark.parametrize("usage", [None, {"prompt_tokens": None}, {"completion_tokens": float("nan")}, "5"], ids=repr)
def test_an_output_that_says_odd_things_of_itself_costs_no_run(path: Path, usage: Any) -> None:
    (line,) = read(path, request("one"))
    body = answer(line, LLMOutput(usage=usage))["response"]["body"]  # pyright: ignore[reportCallIssue]
    assert body["usage"] == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    assert body["choices"][0]["message"]["content"] is None


def test_each_choice_names_its_model_where_there_are_several(path: Path) -> None:
    (line,) = read(path, request())
    body = answer(line, output("A", "m1"), output("B", "m2"))["response"]["body"]
    assert [choice["model"] for choice in body["choices"]] == ["m1", "m2"]
    assert (body["model"], body["usage"]) == ("m1,m2", None)


def test_a_row_that_failed_says_why(path: Path) -> None:
    (line,) = read(path, request())
    answered = answer(line, output("A"), error="TimeoutError: too late")
    assert answered["response"] is None
    assert answered["error"] == {"code": "generation_failed", "message": "TimeoutError: too late"}


def test_rows_of_another_format_are_known_by_their_number() -> None:
    assert answer(Line(7, {"input": "x"}), output("X"))["custom_id"] == "row-7"
