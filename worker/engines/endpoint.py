"""A model behind a server with OpenAI's interface: where it is, the key for it, and requests that outlive trouble.

ask ── its turn (rpm, tpm) ──▶ request ──▶ Answer
          ▲                      └── refused, or lost ──▶ pause and try again, or the error that says whose fault it is
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import urlsplit
from urllib.request import getproxies

import openai
from openai.types.chat import ChatCompletionMessage

from ...protocol.errors import ConfigurationError, EngineUnwell
from ..secret import hide_login
from .answer import Answer, Choice, counts_of
from .attempt import Attempts
from .fault import CANARY_TIMEOUT_S, Blame, said, sentence_of
from .key import Key
from .limiter import Limiter

log = logging.getLogger("genpool.worker")

Api = Literal["chat", "completions"]

# A server that is there accepts a connection at once and lists its models soon, however long a completion takes.
_CONNECT_S = 5.0
_QUICK_S = 10.0

_NO_KEY = "none"


class Endpoint:
    """One server, and the model on it once ``find_model`` was awaited. Of one event loop.

    Args: as for ``OpenAILLM``; ``concurrency`` is how many requests it may be asked for at once.

    Raises:
        ConfigurationError: there is no key, or an argument cannot be used.
    """

    def __init__(
        self,
        api: Api,
        base_url: str | None,
        api_key_env: str,
        api_key_file: str | Path | None,
        timeout_s: float,
        max_retries: int,
        concurrency: int,
        limiter: Limiter,
    ) -> None:
        url = _base_url(base_url)
        self.is_official = url is None
        self._key = _key(url, api_key_env, api_key_file)
        self._client = openai.AsyncOpenAI(
            api_key=self._key.value or _NO_KEY,
            base_url=url,
            timeout=openai.Timeout(None, connect=_CONNECT_S),
            # Its own tries would not tell a used-up quota from an overload, nor wait for their turn.
            max_retries=0,
            http_client=_http_client(concurrency),
        )
        self.address = _without_login(str(self._client.base_url))
        self.model = ""
        self._api: Api = api
        self._attempts = Attempts(timeout_s, max_retries, limiter)
        self._limiter = limiter
        self._blame = Blame(self.address, self._ask_canary, sentence_of)

    async def close(self) -> None:
        """End the connections."""
        await self._client.close()

    async def find_model(self, model: str | None) -> None:
        """Take ``model``, once the server has shown that it is there, or the first model it lists.

        Raises:
            ConfigurationError: OpenAI itself needs a name.
            EngineUnwell: the server cannot be reached, refuses the key, or lists no model.
        """
        if model is None and self.is_official:
            raise ConfigurationError("OpenAI serves many models: name one as the model")
        try:
            listed = await self._client.with_options(timeout=_QUICK_S, max_retries=1).models.list()
            names: list[Any] = [one.id for one in listed.data]
        except openai.APIStatusError as error:
            # Not every server lists its models, and not every key may ask for them.
            if model is not None and error.status_code != 401:
                self.model = model
                return
            hint = "" if self.address.endswith("/v1") else " (base_url mostly ends in /v1)"
            raise EngineUnwell(f"{self.address} does not list its models: {sentence_of(error)}{hint}") from error
        except openai.OpenAIError as error:
            raise EngineUnwell(f"{self.address} cannot be reached: {sentence_of(error)}") from error
        except (AttributeError, TypeError, ValueError, RecursionError):
            names = [None]
        if model is not None:
            self.model = model  # which needs no list, and some servers have one of another form
            return
        if not names:
            raise EngineUnwell(f"{self.address} lists no model")
        # The client library believes whatever a server answers.
        if not all(isinstance(name, str) for name in names):
            raise EngineUnwell(f"{self.address} is no OpenAI server: its list of models cannot be read")
        if len(names) > 1:
            log.warning("%s has the models %s: %s is taken", self.address, ", ".join(names), names[0])
        self.model = names[0]

    async def ask(self, prompt: str | list[dict[str, Any]], fields: Mapping[str, Any], tokens: int) -> Answer:
        """The answer to one request.

        Args:
            prompt: chat messages, or a text for plain completions.
            fields: the other fields of the request's body.
            tokens: about how many tokens it will use, as far as is known before.

        Raises:
            RowError, EngineUnwell, TimeoutError, RuntimeError: as for ``OpenAILLM.generate_row``.
        """
        ask = partial(self._ask_with_new_key, prompt, fields)
        try:
            answer = await self._attempts.until_answered(ask, tokens)
        except (openai.OpenAIError, TimeoutError, ValueError) as error:
            once_more = partial(self._attempts.until_answered, ask, tokens, max_retries=0)
            answer = await self._blame.judged(error, once_more)
        if answer.tokens is not None:
            self._limiter.correct(answer.tokens - tokens)
        return answer

    async def _ask_with_new_key(self, prompt: Any, fields: Mapping[str, Any]) -> Answer:
        """Ask once more when the key is refused and another one is given by now."""
        used = self._key.value
        try:
            return await self._create(self._client, prompt, fields)
        except openai.AuthenticationError:
            if not self._key.is_another_than(used):
                raise
        self._client.api_key = self._key.value or _NO_KEY
        return await self._create(self._client, prompt, fields)

    async def _ask_canary(self) -> Answer:
        # Made anew each time, for its key may have been exchanged.
        client = self._client.with_options(timeout=CANARY_TIMEOUT_S)
        prompt = [{"role": "user", "content": "a"}] if self._api == "chat" else "a"
        return await self._create(client, prompt, {"max_tokens": 1})

    async def _create(self, client: openai.AsyncOpenAI, prompt: Any, fields: Mapping[str, Any]) -> Answer:
        # As extra fields, because the client library refuses those that only other servers know.
        try:
            if self._api == "chat":
                found = await client.chat.completions.create(model=self.model, messages=prompt, extra_body=fields)
            else:
                found = await client.completions.create(model=self.model, prompt=prompt, extra_body=fields)
        except RecursionError:
            raise ValueError("answered with something that is no completion: JSON that is nested too deeply") from None
        answer = read_answer(found)
        if answer is None:
            raise ValueError(f"answered with something that is no completion: {_without_completion(found)}")
        return answer


def _without_completion(found: object) -> str:
    """What a server has sent in place of a completion. What may be one in another form is named, but not repeated."""
    error: object = getattr(found, "error", None)
    if error is not None:
        return said({"error": error})
    if isinstance(found, str):
        return found if found.lstrip().startswith("<") else "a text that is no JSON"
    return "choices without a text" if getattr(found, "choices", None) else "JSON without choices"


def read_answer(answer: object) -> Answer | None:
    """What a completion or a chat completion says; None where it is neither.

    The client library believes whatever a server answers: no part is sure to have its declared type.
    """
    parts: object = getattr(answer, "choices", None)
    choices = [_read_choice(part) for part in cast(list[object], parts)] if isinstance(parts, list) else []
    whole = [choice for choice in choices if choice is not None]
    if not whole or len(whole) < len(choices):
        return None
    return Answer(whole, counts_of(getattr(answer, "usage", None)))


def _read_choice(part: object) -> Choice | None:
    message = getattr(part, "message", None)
    # A message may have no content (a call of a tool, say); a choice of plain completions always has its text.
    is_message = isinstance(message, ChatCompletionMessage)
    text: object = message.content or _refusal(message) if is_message else getattr(part, "text", None)
    reason: object = getattr(part, "finish_reason", None)
    return Choice(text, reason if isinstance(reason, str) else None) if isinstance(text, str) else None


def _refusal(message: ChatCompletionMessage) -> str:
    """What a model that was asked for JSON says in place of it, where OpenAI keeps that apart."""
    refusal: object = getattr(message, "refusal", None)
    return refusal if isinstance(refusal, str) else ""


def _http_client(concurrency: int) -> Any:
    """Connections for so many requests at once: by default the client library keeps 100 open, and shares 1,000.

    Raises:
        ConfigurationError: what the environment says of proxies and certificates cannot be used.
    """
    if not all(_has_host(url if "://" in url else f"http://{url}") for url in _proxies()):
        # Which one is not repeated, for it may hold a password.
        raise ConfigurationError("a proxy that the environment names is no address: it must be http://HOST:PORT")
    limits = type(openai.DEFAULT_CONNECTION_LIMITS)(
        max_connections=None, max_keepalive_connections=concurrency, keepalive_expiry=5.0
    )
    try:
        return openai.DefaultAsyncHttpxClient(limits=limits)
    except (ImportError, OSError, ValueError) as error:
        raise ConfigurationError(
            f"a proxy or a file of certificates that the environment names cannot be used: {error}"
        ) from error


def _proxies() -> list[str]:
    """The proxies that the client library takes from the environment; of a bad port it learns only in a request."""
    named = getproxies()
    return [named[scheme] for scheme in ("http", "https", "all") if named.get(scheme)]


def _base_url(given: str | None) -> str | None:
    url = given or os.environ.get("OPENAI_BASE_URL") or None
    if url is None:
        return None
    got = "" if "@" in url else f", got {url!r}"
    if not url.startswith(("http://", "https://")):
        raise ConfigurationError(f"base_url must begin with http:// or https://{got}")
    if "?" in url:
        # Not repeated, for a query may hold a key.
        raise ConfigurationError("base_url must have no '?': requests add their own path to its end")
    if not _has_host(url):
        raise ConfigurationError(f"base_url must be http://HOST:PORT/v1, or the same with https{got}")
    hide_login(url)
    return url


def _has_host(url: str) -> bool:
    """Whether there can be a server at ``url``: the client library would find out with an error of its own, or late."""
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and " " not in parts.netloc and parts.port != 0 and url.isprintable()
    except ValueError:
        return False


def _key(base_url: str | None, env: str, file: str | Path | None) -> Key:
    key = Key(env, file)
    if key.value is None and base_url is None:
        raise ConfigurationError(
            f"there is no key: set the environment variable {env} or api_key_file, or base_url for a server without one"
        )
    return key


def _without_login(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")
