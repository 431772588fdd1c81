"""Models behind a server that speaks OpenAI's chat completions: vLLM, llama.cpp's server, a hosted API.

engine threads ── generate_row ──▶ LoopThread ── AsyncOpenAI, at most ``concurrency`` requests ──▶ server
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard, cast
from urllib.parse import urlsplit

import openai
from openai.types.chat import ChatCompletion, ChatCompletionMessage

from ...protocol.errors import ConfigurationError, EngineUnwell
from ...tasks.base import TaskLike
from ...tasks.output import LLMOutput
from ...tasks.prompt import SupportedFormats, chat_messages
from ...tasks.text_generation import TextGenerationTask
from ..llm import RowCall
from .fanout import FanOut
from .fault import CANARY_TIMEOUT_S, Blame, sentence_of
from .key import read_key
from .loop import LoopThread
from .row import RowEngine, check_json, check_positive, sampling

log = logging.getLogger("genpool.worker")

_WIRE_NAMES = {
    "max_new_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "stop": "stop",
    "response_format": "response_format",
}

# OpenAI's own reasoning models refuse ``max_tokens``, and many servers do not know the newer name.
_OFFICIAL_WIRE_NAMES = _WIRE_NAMES | {"max_new_tokens": "max_completion_tokens"}

# Formats that are right inside a chat message. The others write a model's turn markers, which the server adds itself.
_CHAT_FORMATS = (None, "default", "openai")

# A server that is there accepts a connection at once and lists its models soon, however long a completion takes.
_CONNECT_S = 5.0
_QUICK_S = 10.0

_NO_KEY = "none"


class OpenAILLM(RowEngine):
    """A model on a server with OpenAI's chat completions interface.

    Where the server answers with fewer choices than asked for, or takes no more than one, the rest is asked for in
    requests of their own.

    Args:
        model: the model's name on the server; None takes the first that the server lists.
        task: what the LLM does with an input. Text generation if None.
        base_url: where the server is, up to ``/v1``. The environment variable ``OPENAI_BASE_URL`` if None, else
            OpenAI itself.
        api_key_env: the environment variable that holds the key.
        api_key_file: a file that holds the key, in place of the variable; it is read again when the server refuses
            the key. Where neither gives a key, a server at ``base_url`` is asked without one.
        max_new_tokens, temperature, top_p, frequency_penalty, presence_penalty, stop: sampling, unless a call says
            otherwise; None leaves it to the server.
        seed: seeds rows that bring none. Requests of one row differ in their seeds.
        extra_body: more fields for each request, such as the server's own sampling options.
        timeout_s: how long a request may take, tries and pauses included.
        max_retries: how often a request is tried again, after growing pauses, when the server cannot be reached, is
            overloaded or fails.
        concurrency: requests at once.
        num_threads, prompt_format, prompt_formatting_fn: as for ``LLM``; a format for text completion is refused.

    Raises:
        ConfigurationError: there is no key, or an argument cannot be used.
        EngineUnwell: the server cannot be reached, refuses the key, or lists no model.
    """

    option_names = frozenset(_WIRE_NAMES)

    def __init__(
        self,
        model: str | None = None,
        task: TaskLike | None = None,
        base_url: str | None = None,
        api_key_env: str = "OPENAI_API_KEY",
        api_key_file: str | Path | None = None,
        max_new_tokens: int | None = 128,
        temperature: float | None = None,
        top_p: float | None = None,
        frequency_penalty: float | None = None,
        presence_penalty: float | None = None,
        stop: list[str] | None = None,
        seed: int | None = None,
        extra_body: dict[str, Any] | None = None,
        timeout_s: float = 600.0,
        max_retries: int = 4,
        concurrency: int = 64,
        num_threads: int | None = None,
        prompt_format: SupportedFormats | None = None,
        prompt_formatting_fn: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(
            task=TextGenerationTask() if task is None else task,
            num_threads=num_threads,
            prompt_format=prompt_format,
            prompt_formatting_fn=prompt_formatting_fn,
        )
        numbers = {"max_new_tokens": max_new_tokens, "timeout_s": timeout_s, "concurrency": concurrency}
        check_positive(numbers, numbers)
        if prompt_format not in _CHAT_FORMATS:
            raise ConfigurationError(
                f"prompt_format={prompt_format!r} writes a model's turn markers, and the server adds its own: "
                "use 'openai' or leave it out"
            )
        if max_retries < 0:
            raise ConfigurationError(f"max_retries must not be below 0, got {max_retries}")
        base_url = _base_url(base_url)
        self._read_key = partial(_api_key, base_url, api_key_env, api_key_file)
        self._client = openai.AsyncOpenAI(
            api_key=self._read_key(),
            base_url=base_url,
            timeout=openai.Timeout(None, connect=_CONNECT_S),
            max_retries=max_retries,
        )
        self._address = _without_login(str(self._client.base_url))
        self._rows_at_once = concurrency
        self._wire_names = _WIRE_NAMES if base_url else _OFFICIAL_WIRE_NAMES
        self._settings: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "frequency_penalty": frequency_penalty,
            "presence_penalty": presence_penalty,
            "stop": stop,
        }
        self._seed = seed
        self._extra_body = extra_body
        self._timeout_s = timeout_s
        self._fan_out = FanOut[ChatCompletion](lambda answer: len(answer.choices))
        self._permits = asyncio.Semaphore(concurrency)
        self._loop = LoopThread("genpool-openai", self._client.close)
        try:
            self._model = self._loop.run(self._find_model(model, is_official=base_url is None))
        except BaseException:
            self._loop.close()
            raise
        self._blame = Blame(self._address, self._canary, sentence_of)

    @property
    def model_name(self) -> str:
        """The model's name on the server."""
        return self._model

    def close(self) -> None:
        """Ends the requests that run and the connections."""
        super().close()
        self._loop.close()

    def generate_row(self, call: RowCall) -> list[LLMOutput]:
        """The outputs of one row. Their usage adds up to the server's count: the first of a request's outputs has it.

        Raises:
            RowError: the server refuses the row (400, 413, 422).
            EngineUnwell: the server cannot be reached, is overloaded, or refuses the key, the model or the quota.
            TimeoutError, RuntimeError: this row's request failed, while the server answers others.
            concurrent.futures.CancelledError: ``call.cancelled`` was set; the request was closed.
            Closed: after ``close()``.
        """
        if self._is_closed:
            raise self._closed()
        messages = chat_messages(self.prompt_of(call))
        body = {"messages": messages, **sampling(self._wire_names, self._settings, call.options)}
        check_json(body)
        seed = self._seed if call.seed is None else call.seed
        answers = self._loop.run(
            self._fan_out.answers(call.num_generations, seed, partial(self._ask, call, body)), call.cancelled
        )
        return [output for answer in answers for output in self._outputs(call, messages, answer)][
            : call.num_generations
        ]

    def _outputs(self, call: RowCall, messages: list[dict[str, Any]], answer: ChatCompletion) -> Iterable[LLMOutput]:
        usage = None if answer.usage is None else answer.usage.model_dump()
        for choice in answer.choices:
            yield self._output(call, messages, choice.message.content or "", choice.finish_reason, usage)
            usage = None

    async def _ask(self, call: RowCall, body: dict[str, Any], count: int, seed: int | None) -> ChatCompletion:
        fields = body if count == 1 else body | {"n": count}
        if seed is not None:
            fields = fields | {"seed": seed}
        async with self._permits:
            if call.cancelled.is_set():
                raise asyncio.CancelledError("nobody wants the row any more")
            try:
                answer = await self._create(fields)
            except (openai.OpenAIError, TimeoutError, ValueError) as error:
                raise await self._blame.of(error) from error
        if not _is_completion(answer):
            said = " ".join(str(answer).split())[:200]
            raise EngineUnwell(f"{self._address} answered with something that is no chat completion: {said}")
        return answer

    async def _create(self, fields: dict[str, Any]) -> object:
        try:
            # Around the client library's own tries: it would begin a row that takes too long again and again.
            async with asyncio.timeout(self._timeout_s):
                return await self._create_with_new_key(fields)
        except TimeoutError:
            raise TimeoutError(f"no answer within {self._timeout_s:g} s") from None

    async def _create_with_new_key(self, fields: dict[str, Any]) -> object:
        """Asks once more when the key is refused and another one is given by now."""
        create = partial(cast(Any, self._client.chat.completions).create, model=self._model, **fields)
        key = self._client.api_key
        try:
            return await create(extra_body=self._extra_body)
        except openai.AuthenticationError:
            with suppress(ConfigurationError):  # a file that is just being written
                self._client.api_key = self._read_key()
            if self._client.api_key == key:
                raise
            return await create(extra_body=self._extra_body)

    async def _canary(self) -> None:
        # Made anew each time, for its key may have been exchanged.
        canary = self._client.with_options(timeout=CANARY_TIMEOUT_S, max_retries=0)
        await canary.chat.completions.create(
            model=self._model, messages=[{"role": "user", "content": "a"}], extra_body={"max_tokens": 1}
        )

    async def _find_model(self, model: str | None, is_official: bool) -> str:
        """``model``, once the server has shown that it is there, or the first model it lists."""
        if model is None and is_official:
            raise ConfigurationError("OpenAI serves many models: name one as the model")
        try:
            listed = await self._client.with_options(timeout=_QUICK_S, max_retries=1).models.list()
            names = [one.id for one in listed.data]
        except openai.APIStatusError as error:
            # Not every server lists its models, and not every key may ask for them.
            if model is not None and error.status_code != 401:
                return model
            hint = "" if self._address.endswith("/v1") else " (base_url mostly ends in /v1)"
            raise EngineUnwell(f"{self._address} does not list its models: {sentence_of(error)}{hint}") from error
        except openai.OpenAIError as error:
            raise EngineUnwell(f"{self._address} cannot be reached: {sentence_of(error)}") from error
        except (AttributeError, TypeError, ValueError) as error:
            raise EngineUnwell(f"{self._address} is no OpenAI server: its list of models cannot be read") from error
        if model is not None:
            return model
        if not names:
            raise EngineUnwell(f"{self._address} lists no model")
        if len(names) > 1:
            log.warning("%s has the models %s: %s is taken", self._address, ", ".join(names), names[0])
        return names[0]


def _is_completion(answer: object) -> TypeGuard[ChatCompletion]:
    """Whether it has the parts that are read. The client library believes whatever a server answers."""
    choices: object = getattr(answer, "choices", None)
    if not isinstance(choices, list):
        return False
    messages = [getattr(one, "message", None) for one in cast(list[object], choices)]
    return bool(messages) and all(isinstance(one, ChatCompletionMessage) for one in messages)


def _base_url(given: str | None) -> str | None:
    url = given or os.environ.get("OPENAI_BASE_URL") or None
    if url is not None and not url.startswith(("http://", "https://")):
        raise ConfigurationError(f"base_url must begin with http:// or https://, got {_without_login(url)!r}")
    return url


def _api_key(base_url: str | None, env: str, file: str | Path | None) -> str:
    key = read_key(env, file)
    if key is None and base_url is None:
        raise ConfigurationError(
            f"there is no key: set the environment variable {env} or api_key_file, or base_url for a server without one"
        )
    return key or _NO_KEY


def _without_login(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")
