"""llama.cpp in this process: GGUF models on CPU or GPU, several rows at a time in one batch.

The binding (``xllamacpp``) holds llama.cpp's whole server. Its calls block without holding the GIL; each of
``n_parallel`` slots generates one completion, and further calls wait inside it for a free slot.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import xllamacpp

from ...protocol.errors import ConfigurationError, RowError
from ...tasks.base import TaskLike
from ...tasks.output import LLMOutput
from ...tasks.prompt import SupportedFormats
from ...tasks.text_generation import TextGenerationTask
from ..llm import RowCall
from .gguf import has_chat_template, model_path
from .row import RowEngine, check_json, check_positive, sampling, seed_at, sent_prompt

log = logging.getLogger("genpool.worker")

_WIRE_NAMES = {
    "max_new_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repeat_penalty": "repeat_penalty",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "stop": "stop",
    "response_format": "response_format",
}

_QUIET, _VERBOSE = -1, 3

_Chunk = Mapping[str, Any]


class _Server(Protocol):
    """The part of ``xllamacpp.Server`` used here. What ``on_chunk`` raises is swallowed; returning True stops."""

    def handle_chat_completions(self, body: Mapping[str, Any], on_chunk: Callable[[_Chunk], bool]) -> None: ...
    def handle_completions(self, body: Mapping[str, Any], on_chunk: Callable[[_Chunk], bool]) -> None: ...


class LlamaCppLLM(RowEngine):
    """A GGUF model run by llama.cpp in this process.

    Start a worker with it::

        genpool worker --llm small --engine llamacpp --model small.gguf --set n_ctx=4096 --set n_parallel=8

    A prompt goes through the model's own chat template. Text goes in as it is where ``prompt_format`` (other than
    "openai") or ``prompt_formatting_fn`` makes text of a prompt, and where the model has no chat template, as base
    models: there a prompt is its system prompt, a line break and the rest.

    Args:
        model: path of the GGUF file.
        task: what the LLM does with an input. Text generation if None.
        max_new_tokens, temperature, top_p, top_k, min_p, repeat_penalty, frequency_penalty, presence_penalty, stop:
            sampling, unless a call says otherwise.
        response_format: what the answer must look like, as OpenAI writes it:
            ``{"type": "json_schema", "json_schema": {"schema": {...}}}``.
        seed: seeds rows that bring none. A row's k-th generation samples with its seed + k. What runs beside a row
            and the prompts cached before it change its last digits, so that a seed does not promise the same text.
        n_ctx: tokens of prompt and completion together, for each of the slots.
        n_parallel: completions that run at once, and the most one row's call runs at once.
        n_threads: CPU threads. llama.cpp's choice if None: the host's physical cores, whoever else runs there.
        n_gpu_layers: layers put on the GPU; -1 for all that fit.
        chat_template: a Jinja template, or llama.cpp's name of one ("chatml", "gemma"), in place of the model's own.
        verbose: lets llama.cpp write its log to stderr.
        num_threads, prompt_format, prompt_formatting_fn: as for ``LLM``.

    Raises:
        ConfigurationError: there is no such file, llama.cpp cannot load it, or an argument cannot be used.
    """

    option_names = frozenset(_WIRE_NAMES)
    provider_name = "llamacpp"

    def __init__(
        self,
        model: str | Path,
        task: TaskLike | None = None,
        max_new_tokens: int = 128,
        temperature: float = 0.8,
        top_p: float = 0.95,
        top_k: int = 40,
        min_p: float = 0.05,
        repeat_penalty: float = 1.1,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        stop: list[str] | None = None,
        response_format: dict[str, Any] | None = None,
        seed: int | None = None,
        n_ctx: int = 2048,
        n_parallel: int = 4,
        n_threads: int | None = None,
        n_gpu_layers: int = -1,
        chat_template: str | None = None,
        verbose: bool = False,
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
        numbers = {"max_new_tokens": max_new_tokens, "n_ctx": n_ctx, "n_parallel": n_parallel, "n_threads": n_threads}
        check_positive(numbers, numbers)
        _check_ends(max_new_tokens, stop, ConfigurationError)
        self._path = model_path(model)
        self._rows_at_once = n_parallel
        self._seed = seed
        self._settings: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "min_p": min_p,
            "repeat_penalty": repeat_penalty,
            "frequency_penalty": frequency_penalty,
            "presence_penalty": presence_penalty,
            "stop": stop,
            "response_format": response_format,
        }
        self._takes_text = prompt_formatting_fn is not None or prompt_format not in (None, "openai")
        self._takes_chat = chat_template is not None or has_chat_template(self._path)
        if not self._takes_chat and not self._takes_text:
            log.warning("%s has no chat template: prompts go in as plain text", self._path.name)
        params = _params(self._path, n_ctx * n_parallel, n_parallel, n_threads, n_gpu_layers, verbose)
        self._server: _Server | None = _load(params, self._path, chat_template)

    @property
    def model_name(self) -> str:
        """The file's name without its ending: where the file lies is the host's own affair."""
        return self._path.stem

    def close(self) -> None:
        """Stops what runs at its next token. The model is freed once nothing runs any more."""
        super().close()
        self._server = None

    def generate_row(self, call: RowCall) -> list[LLMOutput]:
        """The outputs of one row; more generations than slots are made in several goes.

        Raises:
            RowError: the row is too long, empty, or wants what llama.cpp refuses.
            concurrent.futures.CancelledError: ``call.cancelled`` was set.
            Closed: after ``close()``.
            RuntimeError: llama.cpp failed.
        """
        prompt_used, body = self._request(call)
        seed = self._seed if call.seed is None else call.seed
        outputs: list[LLMOutput] = []
        for first in range(0, call.num_generations, self._rows_at_once):
            count = min(self._rows_at_once, call.num_generations - first)
            choices = self._complete(call, body | {"n": count}, seed_at(seed, first))
            outputs += [self._output(call, prompt_used, one.text, one.finish_reason, one.usage) for one in choices]
        return outputs

    def _request(self, call: RowCall) -> tuple[Any, dict[str, Any]]:
        """What counts as the prompt used, and the body of the request for it."""
        # Never empty: llama.cpp does not answer an empty prompt with more than one generation.
        used = sent_prompt(self.prompt_of(call), self._takes_text, self._takes_chat)
        body = sampling(_WIRE_NAMES, self._settings, call.options)
        body["prompt" if isinstance(used, str) else "messages"] = used
        if "response_format" in body:
            schema = _schema(body["response_format"])
            if isinstance(used, str):
                # llama.cpp heeds a response_format in chats only, and says nothing.
                del body["response_format"]
                body["json_schema"] = schema
        check_json(body)
        _check_ends(body.get("max_tokens"), body.get("stop"), RowError)
        return used, body

    def _complete(self, call: RowCall, body: dict[str, Any], seed: int | None) -> list[_Choice]:
        server = self._server
        if server is None:
            raise self._closed()
        if call.cancelled.is_set():
            raise CancelledError("nobody wants the row any more")
        joined = _Joined(body["n"], lambda: call.cancelled.is_set() or self._server is None)
        # Streaming, because only a callback can stop a completion. Each choice then brings its own usage.
        body = body | {"stream": True, "stream_options": {"include_usage": True}}
        if seed is not None:
            body["seed"] = seed
        handle = server.handle_completions if "prompt" in body else server.handle_chat_completions
        try:
            handle(body, joined.take)
        except (TypeError, ValueError) as error:
            raise RowError(f"llama.cpp refuses the row: {error}") from error
        return joined.choices()


@dataclass(slots=True)
class _Choice:
    text: str = ""
    finish_reason: str | None = None
    usage: Mapping[str, int] | None = None


class _Joined:
    """Joins the chunks of one streamed call, in which the choices take turns."""

    def __init__(self, count: int, unwanted: Callable[[], bool]) -> None:
        self._choices = [_Choice() for _ in range(count)]
        self._unwanted = unwanted
        self._stopped = False
        self._fault: Exception | None = None
        self._finished = self._choices[0]

    def take(self, chunk: _Chunk) -> bool:
        """Takes one chunk; True stops the call."""
        try:
            self._add(chunk)
            self._stopped = self._unwanted()
        except Exception as error:
            # The binding would swallow it and go on.
            self._fault = error
        return self._stopped or self._fault is not None

    def choices(self) -> list[_Choice]:
        """Every choice, whole.

        Raises:
            RowError, RuntimeError, CancelledError: as for ``LlamaCppLLM.generate_row``.
        """
        if self._fault is not None:
            raise self._fault
        if self._stopped:
            raise CancelledError("stopped while it was generated")
        missing = [index for index, one in enumerate(self._choices) if one.finish_reason is None]
        if missing:
            raise RuntimeError(f"llama.cpp ended the call without finishing generations {missing}")
        return self._choices

    def _add(self, chunk: _Chunk) -> None:
        if "error" in chunk:
            raise _error(chunk["error"])
        for part in chunk["choices"]:
            index: int = part["index"]
            choice = self._choices[index]
            choice.text += part["delta"].get("content") or "" if "delta" in part else part["text"]
            if part["finish_reason"] is not None:
                choice.finish_reason = part["finish_reason"]
                self._finished = choice
        if chunk.get("usage"):
            # Names no choice: llama.cpp sends it with, or straight after, the end of the choice it is about.
            self._finished.usage = chunk["usage"]


def _error(error: Mapping[str, Any]) -> Exception:
    sentence = f"llama.cpp: {error.get('message', error)}"
    return RowError(sentence) if error.get("code") == 400 else RuntimeError(sentence)


def _check_ends(max_new_tokens: Any, stop: Any, error: type[Exception]) -> None:
    """Raises ``error`` for what llama.cpp takes without a word: an empty stop text ends every completion at once."""
    if max_new_tokens is not None and (type(max_new_tokens) is not int or max_new_tokens < 1):
        raise error(f"max_new_tokens must be a whole number of at least 1, got {max_new_tokens!r}")
    texts: Any = [stop] if isinstance(stop, str) else stop or []
    if not isinstance(texts, list) or not all(isinstance(one, str) and one for one in cast(list[Any], texts)):
        raise error(f"stop must be a list of texts that are not empty, got {stop!r}")


def _schema(response_format: Any) -> Any:
    """The JSON schema in it; None where any text will do. Raises RowError where it has none."""
    try:
        match response_format["type"]:
            case "text":
                return None
            case "json_object":
                return response_format.get("schema", {"type": "object"})
            case "json_schema":
                return response_format["json_schema"]["schema"]
            case other:
                raise RowError(f"llama.cpp knows no response_format of the type {other!r}")
    except (AttributeError, KeyError, TypeError) as error:
        raise RowError(
            'response_format must be {"type": "json_schema", "json_schema": {"schema": {...}}} or '
            f'{{"type": "json_object"}}, got {response_format!r}'
        ) from error


def _params(path: Path, n_ctx: int, n_parallel: int, n_threads: int | None, n_gpu_layers: int, verbose: bool) -> Any:
    params = cast(Any, xllamacpp).CommonParams()
    params.model.path = str(path)
    params.n_ctx = n_ctx
    params.n_parallel = n_parallel
    params.n_gpu_layers = n_gpu_layers
    params.verbosity = _VERBOSE if verbose else _QUIET
    if n_threads is not None:
        params.cpuparams.n_threads = n_threads
    # Otherwise the prompts of finished rows are kept, up to 8 GiB of them.
    params.cache_ram_mib = 0
    # The binding always opens an HTTP port on loopback: this closes it to everybody else on the host.
    params.api_keys = [secrets.token_hex(32)]
    return params


def _load(params: Any, path: Path, chat_template: str | None) -> _Server:
    if chat_template is not None:
        params.chat_template = chat_template
        params.use_jinja = "{" in chat_template
    try:
        server = cast(_Server, cast(Any, xllamacpp).Server(params))
    except RuntimeError as error:
        template = "" if chat_template is None else " with this chat_template"
        raise ConfigurationError(f"llama.cpp cannot load {path}{template}; verbose=true shows why") from error
    # A server that is freed before its loop has begun waits for that loop for ever: one token shows that it has.
    server.handle_completions({"prompt": "a", "max_tokens": 1, "stream": True}, lambda chunk: True)
    if chat_template is not None:
        _try_template(server, chat_template)
    return server


def _try_template(server: _Server, chat_template: str) -> None:
    """An unknown name is told only by the first call, so one is made here."""
    body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1, "stream": True}
    try:
        server.handle_chat_completions(body, lambda chunk: True)
    except (RuntimeError, ValueError) as error:
        raise ConfigurationError(f"llama.cpp cannot use chat_template={chat_template!r}: {error}") from error
