"""Models behind a server that speaks OpenAI's interface: vLLM, SGLang, llama.cpp's server, Ollama, a hosted API.

engine threads ── generate_row ──▶ LoopThread ── at most ``concurrency`` requests ── Endpoint ──▶ server
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from ...protocol.errors import ConfigurationError, RowError
from ...tasks.base import TaskLike
from ...tasks.prompt import SupportedFormats
from ...tasks.text_generation import TextGenerationTask
from ..llm import RowCall
from .answer import Answer
from .endpoint import Api, Endpoint
from .limiter import Limiter
from .rate import rows_at_once
from .row import check_positive, sampling, sent_prompt
from .server import ServerEngine, check_chat_format, check_retries

_WIRE_NAMES = {
    "max_new_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "stop": "stop",
}

# Not OpenAI's own, but called the same by vLLM, SGLang and llama.cpp.
_OPEN_WIRE_NAMES = {"top_k": "top_k", "min_p": "min_p"}

_CHAT_WIRE_NAMES = {"response_format": "response_format"}

# OpenAI's own reasoning models refuse ``max_tokens``, and many servers do not know the newer name.
_OFFICIAL_CHAT_WIRE_NAMES = {"max_new_tokens": "max_completion_tokens"}

# What this engine says itself: another value would change which answer comes, or how it is read.
_OWN_FIELDS = frozenset({"model", "messages", "prompt", "n", "stream", "stream_options"})


class OpenAILLM(ServerEngine):
    """A model on a server with OpenAI's interface: chat completions, or plain completions for base models.

    Where the server answers with fewer choices than asked for, or takes no more than one, the rest is asked for in
    requests of their own. Start a worker beside each server::

        vllm serve Qwen/Qwen2.5-7B-Instruct --port 8000
        genpool worker --llm qwen --engine openai --set base_url=http://127.0.0.1:8000/v1

    or, for a hosted API, with the key in the environment::

        export OPENAI_API_KEY=...
        genpool worker --llm gpt --engine openai --model gpt-4o-mini --rpm 500 --tpm 200000

    Args:
        model: the model's name on the server; None takes the first that the server lists.
        task: what the LLM does with an input. Text generation if None.
        base_url: where the server is, up to ``/v1``. The environment variable ``OPENAI_BASE_URL`` if None, else
            OpenAI itself.
        api: "chat" has the server apply the model's chat template. "completions" sends a text as it is: what
            ``prompt_format`` or ``prompt_formatting_fn`` makes of a prompt, else its system prompt, a line break and
            the rest.
        api_key_env: the environment variable that holds the key.
        api_key_file: a file that holds the key, in place of the variable; it is read again when the server refuses
            the key. Where neither gives a key, a server at ``base_url`` is asked without one.
        max_new_tokens, temperature, top_p, top_k, min_p, frequency_penalty, presence_penalty, stop: sampling, unless a
            call says otherwise; None leaves it to the server. OpenAI itself knows no ``top_k`` and ``min_p``.
        response_format: what the answer must look like, as OpenAI writes it:
            ``{"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}``. For chat only.
        seed: seeds rows that bring none. Requests of one row differ in their seeds.
        extra_body: more fields for each request, such as the server's own sampling options
            (``{"repetition_penalty": 1.1}``). A call's option of this name goes before it, field by field.
        rpm, tpm: requests, and tokens of prompts and completions together, that go to the server in a minute at
            most, from this worker; None for no limit. No more rows are taken at once than a minute lets go.
        timeout_s: how long a request may take, tries and pauses included, but not the wait for ``rpm`` and ``tpm``.
        max_retries: how often a request is tried again, after growing pauses or what ``Retry-After`` says, when the
            server cannot be reached, is overloaded or fails.
        concurrency: requests at once.
        num_threads, prompt_format, prompt_formatting_fn: as for ``LLM``; for chat, a format for text completion is
            refused.

    Raises:
        ConfigurationError: there is no key, or an argument cannot be used.
        EngineUnwell: the server cannot be reached, refuses the key, or lists no model.
    """

    provider_name = "openai"

    def __init__(
        self,
        model: str | None = None,
        task: TaskLike | None = None,
        base_url: str | None = None,
        api: Api = "chat",
        api_key_env: str = "OPENAI_API_KEY",
        api_key_file: str | Path | None = None,
        max_new_tokens: int | None = 128,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        min_p: float | None = None,
        frequency_penalty: float | None = None,
        presence_penalty: float | None = None,
        stop: list[str] | None = None,
        response_format: dict[str, Any] | None = None,
        seed: int | None = None,
        extra_body: dict[str, Any] | None = None,
        rpm: float | None = None,
        tpm: float | None = None,
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
        numbers = {
            "max_new_tokens": max_new_tokens,
            "timeout_s": timeout_s,
            "concurrency": concurrency,
            "rpm": rpm,
            "tpm": tpm,
        }
        check_positive(numbers, numbers)
        check_retries(max_retries)
        _check_format(api, prompt_format)
        _check_extra(extra_body or {}, ConfigurationError)
        self._endpoint = Endpoint(
            api, base_url, api_key_env, api_key_file, timeout_s, max_retries, concurrency, Limiter(rpm, tpm)
        )
        self._is_chat = api == "chat"
        self._wire_names = _wire_names(api, self._endpoint.is_official)
        self.option_names = frozenset({*self._wire_names, "extra_body"})
        self._settings: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "min_p": min_p,
            "frequency_penalty": frequency_penalty,
            "presence_penalty": presence_penalty,
            "stop": stop,
            "response_format": response_format,
        }
        self._check_settings()
        self._extra_body = extra_body or {}
        at_once = rows_at_once(concurrency, rpm, tpm, max_new_tokens)
        self._open("genpool-openai", self._endpoint.close, at_once, seed)
        try:
            self._loop.run(self._endpoint.find_model(model))
        except BaseException:
            self._loop.close()
            raise

    @property
    def model_name(self) -> str:
        """The model's name on the server."""
        return self._endpoint.model

    def _request(self, call: RowCall) -> tuple[Any, dict[str, Any]]:
        prompt = sent_prompt(self.prompt_of(call), takes_text=not self._is_chat, takes_chat=self._is_chat)
        fields = sampling(self._wire_names, self._settings, call.options) | self._extra_of(call)
        return prompt, fields

    async def _answer(self, prompt: Any, fields: Mapping[str, Any], tokens: int) -> Answer:
        return await self._endpoint.ask(prompt, fields, tokens)

    def _extra_of(self, call: RowCall) -> dict[str, Any]:
        given: object = call.options.get("extra_body")
        if given is None:
            return self._extra_body
        if not isinstance(given, Mapping):
            raise RowError(f"extra_body must be a dict of fields for the request, got {given!r}")
        extra = cast(Mapping[str, Any], given)
        _check_extra(extra, RowError)
        return {**self._extra_body, **extra}

    def _check_settings(self) -> None:
        """Settings that would never be sent are a mistake."""
        unknown = [name for name, value in self._settings.items() if value is not None and name not in self._wire_names]
        if unknown:
            where = "OpenAI itself" if self._endpoint.is_official else "api='completions'"
            raise ConfigurationError(f"{where} takes no {', '.join(unknown)}: leave it out, or see extra_body")


def _wire_names(api: Api, is_official: bool) -> dict[str, str]:
    open_names = {} if is_official else _OPEN_WIRE_NAMES
    chat_names = _CHAT_WIRE_NAMES if api == "chat" else {}
    official = _OFFICIAL_CHAT_WIRE_NAMES if api == "chat" and is_official else {}
    return _WIRE_NAMES | open_names | chat_names | official


def _check_format(api: Api, prompt_format: str | None) -> None:
    if api == "chat":
        check_chat_format(prompt_format, ", or set api='completions'")
    elif prompt_format == "openai":
        raise ConfigurationError("prompt_format='openai' makes chat messages, and api='completions' sends a text")


def _check_extra(extra: Mapping[str, Any], error: type[Exception]) -> None:
    own = sorted(_OWN_FIELDS & extra.keys())
    if own:
        raise error(f"extra_body must leave {', '.join(own)} to the engine")
