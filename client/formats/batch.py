"""The batch files of OpenAI: a request a line in, an answer a line out, joined by ``custom_id``.

https://platform.openai.com/docs/guides/batch describes both. A request becomes a row of ``custom_id``, ``messages`` and
``model``, and generation options of its own.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from ...protocol.limits import MAX_COUNT
from ...tasks.output import LLMOutput, tokens_told
from .base import Line
from .jsonl import JsonlSource, encode

_URL = "/v1/chat/completions"
_REQUEST = {"custom_id", "method", "url", "body"}

# What a body may say, by the names that engines have for it. `seed` is the row's, and no engine's option.
_OPTIONS = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "stop": "stop",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "response_format": "response_format",
    "seed": "seed",
}
_READ_APART = {"messages", "model", "n"}


class BatchSource(JsonlSource):
    """A file of requests, or standard input.

    Args:
        num_generations: what the run makes for each row, which an ``n`` must agree with; None takes any.
        path, is_read_twice: as for ByteFile.

    Raises:
        ConfigurationError: when it cannot be read.
    """

    def __init__(self, path: str, *, num_generations: int | None = None, is_read_twice: bool = False) -> None:
        super().__init__(path, is_read_twice=is_read_twice)
        self._num_generations = num_generations
        self._seen: dict[str, int] = {}

    def read(self) -> Iterator[Line]:
        self._seen = {}
        return super().read()

    def line_of(self, number: int, row: dict[str, Any]) -> Line:
        custom_id = row.get("custom_id")
        try:
            self._check_id(number, custom_id)
            body = _body(row)
            self._check_n(body.get("n"))
            options = _options(body)
        except ValueError as error:
            # The answer that says so has to be found by it.
            return Line(number, {"custom_id": custom_id}, f"{self.at(number)}: {error}")
        asked = {name: body[name] for name in ("messages", "model") if name in body}
        return Line(number, {"custom_id": custom_id, **asked}, options=options)

    def _check_id(self, number: int, custom_id: object) -> None:
        if not isinstance(custom_id, str) or not custom_id:
            raise ValueError("a request has a `custom_id`, which is a text")
        if custom_id in self._seen:
            raise ValueError(f"the custom_id {custom_id!r} is that of line {self._seen[custom_id]} too")
        self._seen[custom_id] = number

    def _check_n(self, n: object) -> None:
        made = self._num_generations
        if n is not None and made is not None and n != made:
            raise ValueError(f"it asks for n={n!r}, and this run makes {made} for each row: run those with -n {n!r}")


def _body(request: Mapping[str, Any]) -> dict[str, Any]:
    """What a request asks for, without what is not set. Raises ValueError that says what cannot be answered."""
    unknown = sorted(set(request) - _REQUEST)
    if unknown:
        raise ValueError(f"a request has no {', '.join(unknown)}, but {', '.join(sorted(_REQUEST))}")
    if request.get("method") != "POST" or request.get("url") != _URL:
        asked = f"{request.get('method')} {request.get('url')}"
        raise ValueError(f"only POST {_URL} can be answered, and this is {asked}")
    body = request.get("body")
    if not isinstance(body, dict):
        raise ValueError("the `body` of a request is a JSON object")  # noqa: TRY004  what is read is wrong, and no argument
    # null and false are what a field is that is not set: `"stream": false` asks for nothing.
    said = {
        name: value for name, value in cast(dict[str, Any], body).items() if value is not None and value is not False
    }
    unknown = sorted(set(said) - _READ_APART - set(_OPTIONS))
    if unknown:
        raise ValueError(f"the body says {', '.join(unknown)}, which cannot be honoured: take it out of the request")
    return said


def _options(body: Mapping[str, Any]) -> dict[str, Any]:
    """The generation options in a body. Raises ValueError where it says one twice."""
    if "max_tokens" in body and "max_completion_tokens" in body:
        raise ValueError(
            "the body says max_tokens and max_completion_tokens, which are one and the same: leave one out"
        )
    if not isinstance(body.get("seed", 0), int) or body.get("seed") is True:
        raise ValueError(f"the seed is an integer, and not {body['seed']!r}")
    if abs(body.get("seed", 0)) > MAX_COUNT:
        raise ValueError(f"the seed is an integer of 64 bits, and {body['seed']} has more")
    return {_OPTIONS[name]: value for name, value in body.items() if name in _OPTIONS}


def encode_answer(line: Line, outputs: Sequence[LLMOutput], error: str) -> bytes:
    """One line of an output file: the answer to a request, or why there is none.

    A row of another format that has no ``custom_id`` is known by its number.
    """
    custom_id = line.row.get("custom_id") or f"row-{line.number}"
    answer: dict[str, Any] = {"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": custom_id}
    if error:
        code = "invalid_request" if line.problem else "generation_failed"
        return encode(answer | {"response": None, "error": {"code": code, "message": error}})
    body = _completion(outputs)
    response = {"status_code": 200, "request_id": body["id"].removeprefix("chatcmpl-"), "body": body}
    return encode(answer | {"response": response, "error": None})


def _completion(outputs: Sequence[LLMOutput]) -> dict[str, Any]:
    """A chat completion with a choice for each output. Where several models made them, each choice names its own."""
    models = list(dict.fromkeys(str(output.get("model_name")) for output in outputs))
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": ",".join(models),
        "choices": [_choice(at, output, is_named=len(models) > 1) for at, output in enumerate(outputs)],
        "usage": _usage(outputs),
    }


def _choice(index: int, output: LLMOutput, *, is_named: bool) -> dict[str, Any]:
    choice = {
        "index": index,
        "message": {"role": "assistant", "content": output.get("raw_output"), "refusal": None},
        "logprobs": None,
        "finish_reason": output.get("finish_reason", "stop"),
    }
    return choice | {"model": output.get("model_name")} if is_named else choice


def _usage(outputs: Sequence[LLMOutput]) -> dict[str, int] | None:
    """The tokens of all outputs; None where no engine has counted."""
    counted = [output["usage"] for output in outputs if "usage" in output]
    if not counted:
        return None
    prompt, completion = (
        sum(tokens_told(usage, name) for usage in counted) for name in ("prompt_tokens", "completion_tokens")
    )
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
