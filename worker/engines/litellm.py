"""Models of the providers that litellm covers, with or without OpenAI's interface, and what their answers cost.

engine threads ── generate_row ──▶ LoopThread ── litellm, at most ``concurrency`` requests ──▶ provider
"""

# litellm is no dependency of the core, and only partly typed; without it, its name is that of this file.
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

# Without these litellm downloads prices, headers and tokenizers, and reads keys from a .env file above its own folder.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS", "True")
os.environ.setdefault("LITELLM_OFFLINE_MODE", "True")
os.environ.setdefault("LITELLM_MODE", "PRODUCTION")

import litellm
import openai
from litellm.exceptions import ContentPolicyViolationError, ContextWindowExceededError, UnsupportedParamsError

from ...protocol.errors import ConfigurationError, EngineUnwell, RowError
from ...tasks.base import TaskLike
from ...tasks.prompt import SupportedFormats
from ...tasks.text_generation import TextGenerationTask
from ..llm import RowCall
from ..secret import hide_login
from .answer import Answer, Choice, counts_of
from .attempt import Attempts
from .fault import CANARY_TIMEOUT_S, Blame, line, said
from .key import Key
from .limiter import Limiter
from .rate import rows_at_once
from .row import check_positive, sampling, sent_prompt
from .server import ServerEngine, check_chat_format, check_retries

# It prints advice beside each error.
litellm.suppress_debug_info = True

# By litellm's names, which are OpenAI's whatever the provider's are.
_WIRE_NAMES = {
    "max_new_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "stop": "stop",
    "response_format": "response_format",
}

# What litellm writes before and behind the provider's own words.
_BEFORE = re.compile(r"(litellm\.)?(\w+: )*(\w+Exception (\w+ )?- )?")
_BEHIND = re.compile(r"\. Handle with `litellm\.\w+`\.$")

# Errors of which litellm itself knows that they are the row's.
_ROWS = (ContextWindowExceededError, ContentPolicyViolationError, UnsupportedParamsError)

# What this engine says itself.
_OWN_OPTIONS = frozenset({"model", "messages", "n", "stream", "timeout", "max_retries", "num_retries"})

# What would be on a command line, for everybody on the host to read. litellm finds them in the environment, too.
_SECRETS = frozenset({"api_key", "aws_secret_access_key", "aws_session_token", "azure_ad_token", "vertex_credentials"})

# How long a request may take is decided around all of its tries. litellm takes no timeout for its own one.
_TIMEOUT = openai.Timeout(86_400.0, connect=5.0)

_NO_KEY = "none"


class LiteLLM(ServerEngine):
    """A model of a provider that litellm covers: Anthropic, Gemini, Bedrock, Mistral and a hundred more.

    The key is in the environment, or in a file::

        export ANTHROPIC_API_KEY=...
        genpool worker --llm claude --engine litellm --model anthropic/claude-sonnet-4-5

    What the provider has no word for, by litellm's tables, is not asked of it: ``option_names`` has only the options
    that it takes, a row's seed is left out, and several generations are asked for one by one. An output's usage has
    its ``cost`` in US dollars, where litellm knows the model's prices.

    Args:
        model: litellm's name of the model: the provider's, a stroke, and the model's own.
        task: what the LLM does with an input. Text generation if None.
        api_base: where the provider is, if not at its usual address.
        api_key_env: the environment variable that holds the key; the provider's usual one if None.
        api_key_file: a file that holds the key, in place of the variable; it is read again when the provider refuses
            the key.
        max_new_tokens, temperature, top_p, frequency_penalty, presence_penalty, stop: sampling, unless a call says
            otherwise; None leaves it to the provider.
        response_format: what the answer must look like, as OpenAI writes it:
            ``{"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}``.
        seed: seeds rows that bring none. Requests of one row differ in their seeds.
        extra_options: more arguments of ``litellm.acompletion``: the provider's own sampling options, its region.
        rpm, tpm: requests, and tokens of prompts and completions together, that go to the provider in a minute at
            most, from this worker; None for no limit.
        timeout_s: how long a request may take, tries and pauses included, but not the wait for ``rpm`` and ``tpm``.
        max_retries: how often a request is tried again, after growing pauses, when the provider cannot be reached, is
            overloaded or fails.
        concurrency: requests at once.
        num_threads, prompt_format, prompt_formatting_fn: as for ``LLM``; a format for text completion is refused.

    Raises:
        ConfigurationError: litellm does not know the provider, there is no key, or an argument cannot be used.
    """

    provider_name = "litellm"

    def __init__(
        self,
        model: str,
        task: TaskLike | None = None,
        api_base: str | None = None,
        api_key_env: str | None = None,
        api_key_file: str | Path | None = None,
        max_new_tokens: int | None = 128,
        temperature: float | None = None,
        top_p: float | None = None,
        frequency_penalty: float | None = None,
        presence_penalty: float | None = None,
        stop: list[str] | None = None,
        response_format: dict[str, Any] | None = None,
        seed: int | None = None,
        extra_options: dict[str, Any] | None = None,
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
        check_chat_format(prompt_format)
        _check_extra(extra_options or {})
        if api_base is not None:
            hide_login(api_base)
        self._model = model
        provider, takes = _provider_of(model, api_base)
        self._wire_names = {name: wire for name, wire in _WIRE_NAMES.items() if wire in takes}
        self.option_names = frozenset(self._wire_names)
        self._settings: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "frequency_penalty": frequency_penalty,
            "presence_penalty": presence_penalty,
            "stop": stop,
            "response_format": response_format,
        }
        refused = [name for name, value in self._settings.items() if value is not None and name not in self._wire_names]
        if refused:
            raise ConfigurationError(f"{provider} takes no {', '.join(refused)}: leave it out")
        limiter = Limiter(rpm, tpm)
        self._provider = _Provider(
            model,
            {"api_base": api_base, **(extra_options or {})},
            _key(model, api_base, api_key_env, api_key_file),
            takes_seed="seed" in takes,
            attempts=Attempts(timeout_s, max_retries, limiter),
            limiter=limiter,
        )
        at_once = rows_at_once(concurrency, rpm, tpm, max_new_tokens)
        self._open("genpool-litellm", _close_clients, at_once, seed, takes_n="n" in takes)

    @property
    def model_name(self) -> str:
        """The model's name, as litellm has it."""
        return self._model

    def _request(self, call: RowCall) -> tuple[Any, dict[str, Any]]:
        fields = sampling(self._wire_names, self._settings, call.options)
        return sent_prompt(self.prompt_of(call), takes_text=False, takes_chat=True), fields

    async def _answer(self, prompt: Any, fields: Mapping[str, Any], tokens: int) -> Answer:
        return await self._provider.ask(prompt, fields, tokens)


class _Provider:
    """Requests for one model. Of one event loop."""

    def __init__(
        self, model: str, options: dict[str, Any], key: Key, takes_seed: bool, attempts: Attempts, limiter: Limiter
    ) -> None:
        self._model = model
        self._options = options
        self._key = key
        self._takes_seed = takes_seed
        self._attempts = attempts
        self._limiter = limiter
        self._blame = _Blame(model, self._ask_canary, _sentence_of)

    async def ask(self, messages: list[dict[str, Any]], fields: Mapping[str, Any], tokens: int) -> Answer:
        """The answer to one request, which will use about ``tokens``. Raises what ``generate_row`` does."""
        if not self._takes_seed:
            fields = {name: value for name, value in fields.items() if name != "seed"}
        ask = partial(self._ask_with_new_key, messages, fields)
        try:
            answer = await self._attempts.until_answered(ask, tokens)
        except (openai.OpenAIError, TimeoutError) as error:
            once_more = partial(self._attempts.until_answered, ask, tokens, max_retries=0)
            answer = await self._blame.judged(error, once_more)
        read = _read(answer)
        if read.tokens is not None:
            self._limiter.correct(read.tokens - tokens)
        return read

    async def _ask_with_new_key(self, messages: list[dict[str, Any]], fields: Mapping[str, Any]) -> object:
        """Ask once more when the key is refused and another one is given by now."""
        used = self._key.value
        try:
            return await self._create(messages, fields)
        except openai.AuthenticationError:
            if not self._key.is_another_than(used):
                raise
        return await self._create(messages, fields)

    async def _ask_canary(self) -> object:
        return await self._create([{"role": "user", "content": "a"}], {"max_tokens": 1, "timeout": CANARY_TIMEOUT_S})

    async def _create(self, messages: list[dict[str, Any]], fields: Mapping[str, Any]) -> object:
        request = {"timeout": _TIMEOUT, **self._options, **fields, "messages": messages}
        try:
            # Its own retries would repeat what was refused for good.
            answer: Any = await litellm.acompletion(
                self._model, api_key=self._key.value, max_retries=0, num_retries=0, **request
            )
        except openai.APIStatusError as error:
            # What a server wants of retries, which litellm keeps apart for many providers.
            error.response.headers.update(getattr(error, "litellm_response_headers", None) or {})
            raise
        if not answer.choices:
            raise openai.OpenAIError("answered with something that is no completion: no choices")
        return answer


class _Blame(Blame):
    """Does not believe every status: some providers tell of a spent quota or an unknown model with 400."""

    async def of(self, error: Exception) -> Exception:
        raised = await super().of(error)
        is_doubtful = isinstance(raised, RowError) and not isinstance(error, _ROWS)
        return EngineUnwell(str(raised)) if is_doubtful and await self._refuses_all(error) else raised

    async def _refuses_all(self, error: Exception) -> bool:
        """Whether the canary is refused with the same words."""
        try:
            await self._canary()
        except (openai.OpenAIError, TimeoutError) as other:
            return self._sentence_of(other) == self._sentence_of(error)
        return False


async def _close_clients() -> None:
    """Ends the connections that litellm keeps for requests of this event loop."""
    cache = litellm.in_memory_llm_clients_cache
    mark: str = cache.update_cache_key_with_event_loop("")
    for name in [name for name in cache.cache_dict if name.endswith(mark)]:
        await cache.cache_dict.pop(name).close()


def _check_extra(extra: Mapping[str, Any]) -> None:
    own = sorted(_OWN_OPTIONS & extra.keys())
    if own:
        raise ConfigurationError(f"extra_options must leave {', '.join(own)} to the engine")
    secrets = sorted(_SECRETS & extra.keys())
    if secrets:
        raise ConfigurationError(f"extra_options must not hold {', '.join(secrets)}: use the environment, or a file")


def _provider_of(model: str, api_base: str | None) -> tuple[str, frozenset[str]]:
    """The provider's name, and the parameters that it takes."""
    try:
        _, provider, _, _ = litellm.get_llm_provider(model, api_base=api_base)
    except openai.BadRequestError as error:
        raise ConfigurationError(
            f"litellm knows no provider for the model {model!r}: write it as provider/model, as in "
            "anthropic/claude-sonnet-4-5"
        ) from error
    takes = litellm.get_supported_openai_params(model, custom_llm_provider=provider)
    return provider, frozenset([*_WIRE_NAMES.values(), "n", "seed"] if takes is None else takes)


def _key(model: str, api_base: str | None, env: str | None, file: str | Path | None) -> Key:
    """The key, or None in it where the provider is known to others than by a key: a cloud's profile, a project."""
    missing: list[str] = litellm.validate_environment(model)["missing_keys"]
    lacks_key = bool(missing) and all(name.endswith("_API_KEY") for name in missing)
    key = Key(env, file, _NO_KEY if lacks_key and api_base is not None else None)
    if key.value is None and (lacks_key or env is not None):
        raise ConfigurationError(
            f"there is no key for {model}: set the environment variable {env or ' or '.join(missing)} or api_key_file"
        )
    return key


def _read(answer: Any) -> Answer:
    choices = [Choice(choice.message.content or "", choice.finish_reason) for choice in answer.choices]
    return Answer(choices, counts_of(getattr(answer, "usage", None)), answer._hidden_params.get("response_cost"))


def _sentence_of(error: Exception) -> str:
    """What the provider said, in a line."""
    text = _BEHIND.sub("", str(getattr(error, "message", error)).partition("Traceback (most ")[0])
    text = text[cast(re.Match[str], _BEFORE.match(text)).end() :]
    with suppress(ValueError):
        text = said(json.loads(text))
    status = getattr(error, "status_code", None)
    return line(text if status is None else f"{status} {text}")
