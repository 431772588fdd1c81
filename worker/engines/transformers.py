"""Models of Hugging Face ``transformers`` in this process, on torch.

generate_batch ── prompts ─▶ tokens ── Runner.run ─▶ completions ── text, usage ─▶ outputs
                    └── a row that is too long, or that its task cannot put into words, fails by itself
"""

# The package is in an extra, and has no complete types; without it, its name is that of the file beside this one.
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partialmethod
from pathlib import Path
from typing import Any, Literal, cast

import torch
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from ...protocol.errors import ConfigurationError, RowError
from ...protocol.home import expanded
from ...tasks.base import TaskLike
from ...tasks.output import LLMOutput
from ...tasks.prompt import SupportedFormats
from ...tasks.text_generation import TextGenerationTask
from ..llm import RowCall
from .completion import Completion, Request, Runner, Sampling, Vocabulary
from .continuous import ContinuousBatch
from .gguf import model_path
from .padded import PaddedBatch
from .row import Engine, check_json, check_positive, seed_at, sent_prompt

log = logging.getLogger("genpool.worker")

# What transformers samples by where neither the user nor the model says.
_FALLBACKS = {"temperature": 1.0, "top_p": 1.0, "top_k": 50, "repetition_penalty": 1.0}

_OPTIONS = ("max_new_tokens", *_FALLBACKS, "stop")

# What transformers' continuous batching leaves out.
_NOT_CONTINUOUS = frozenset({"repetition_penalty"})

_CONTINUOUS_ROWS = 64

_CHAT: list[dict[str, Any]] = [{"role": "system", "content": "a"}, {"role": "user", "content": "a"}]


class TransformersLLM(Engine):
    """A model of Hugging Face transformers, run by torch in this process.

        genpool worker --llm small --engine transformers --model FOLDER|NAME --batch-size 8
        genpool worker --llm small --engine transformers --model FOLDER|NAME --set batching=continuous

    A static batch, the default, ends with its longest completion. In a continuous one a row takes the place of one
    that has ended; it needs no --batch-size, and heeds neither seeds nor ``repetition_penalty``.

    Prompts go through the tokenizer's chat template. Text goes in as it is where ``prompt_format`` (other than
    "openai") or ``prompt_formatting_fn`` makes text of a prompt, and where the tokenizer has no chat template, as base
    models: there a prompt is its system prompt, a line break and the rest.

    Args:
        model: a folder, a GGUF file, or a name on the Hugging Face hub.
        task: what the LLM does with an input. Text generation if None.
        tokenizer: the folder or name of its tokenizer; the model's own if None.
        gguf_file: the name of the GGUF file in ``model``, whose weights are unpacked to ``dtype``.
        device: a torch device ("cuda:1"); None takes CUDA, MPS or the CPU, whichever there is first.
        n_threads: CPU threads of the whole process. torch's choice if None: the host's cores, whoever else runs there.
        dtype: of the weights; "auto" is what the model was saved in.
        model_kwargs: more arguments for ``from_pretrained``, such as ``attn_implementation`` or ``device_map``.
        chat_template: a Jinja template in place of the tokenizer's own.
        max_new_tokens, stop: sampling, unless a call says otherwise. A stop text is no part of the completion.
        temperature, top_p, top_k, repetition_penalty: as above; None takes what the model's
            ``generation_config.json`` says, and else 1, 1, 50 and 1. Temperature 0 takes the likeliest token always:
            several generations of a row are then one completion, repeated.
        batching: which of the two a batch is.
        cache_tokens: with continuous batching, the tokens of all rows that run; None takes most of the memory that is
            free.
        concurrency: calls at once. None is 1 static batch, or 64 rows of a continuous one.
        seed: seeds rows that bring none. A row's k-th generation samples with its seed + k. The rows beside it change
            the last digits of its probabilities, so that a seed does not promise the same text in another batch.
        num_threads, prompt_format, prompt_formatting_fn: as for ``LLM``.

    Raises:
        ConfigurationError: there is no such model, transformers cannot load it, or an argument cannot be used.
    """

    option_names = frozenset(_OPTIONS)
    provider_name = "transformers"

    def __init__(
        self,
        model: str | Path,
        task: TaskLike | None = None,
        tokenizer: str | Path | None = None,
        gguf_file: str | None = None,
        device: str | None = None,
        n_threads: int | None = None,
        dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto",
        model_kwargs: dict[str, Any] | None = None,
        chat_template: str | None = None,
        max_new_tokens: int = 128,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        repetition_penalty: float | None = None,
        stop: list[str] | None = None,
        batching: Literal["static", "continuous"] = "static",
        cache_tokens: int | None = None,
        concurrency: int | None = None,
        seed: int | None = None,
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
        self._settings: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "repetition_penalty": repetition_penalty,
            "stop": stop,
        }
        self._seed = seed
        self._concurrency = concurrency or (_CONTINUOUS_ROWS if batching == "continuous" else 1)
        numbers = {"cache_tokens": cache_tokens, "concurrency": concurrency, "n_threads": n_threads}
        check_positive(numbers, numbers)
        # Before anything is loaded, which takes a while.
        _check_settings(self._settings)
        if batching == "continuous":
            _check_continuous({"seed": seed, "repetition_penalty": repetition_penalty})
        source = _source(model, gguf_file)
        if n_threads is not None:
            torch.set_num_threads(n_threads)
        self._model_name = source.name
        with _no_progress_bars():
            self._tokenizer = _load_tokenizer(source, tokenizer, chat_template)
            loaded = _load_model(source, dtype, device, model_kwargs or {})
        self._settings = _over(_own_sampling(loaded), self._settings)
        self._takes_text = prompt_formatting_fn is not None or prompt_format not in (None, "openai")
        self._takes_chat = bool(self._tokenizer.chat_template)
        self._takes_system = self._takes_chat and _takes_system(self._tokenizer)
        if not self._takes_chat and not self._takes_text:
            log.warning("%s has no chat template: prompts go in as plain text", source.name)
        vocabulary = _vocabulary(loaded, self._tokenizer)
        self._runner: Runner
        if batching == "static":
            self._runner = PaddedBatch(loaded, vocabulary, _context(loaded))
        else:
            self.option_names = self.option_names - _NOT_CONTINUOUS
            self._settings = _continuous(self._settings)
            self._runner = ContinuousBatch(loaded, vocabulary, _context(loaded), cache_tokens)

    @property
    def model_name(self) -> str:
        """The name on the hub, or the folder's or the file's: where it lies is the host's own affair."""
        return self._model_name

    @property
    def concurrency(self) -> int:
        return self.num_threads or self._concurrency

    def close(self) -> None:
        """Stops what runs at its next token. The model is freed once nothing holds it any more."""
        super().close()
        self._runner.close()

    def generate_batch(self, calls: Sequence[RowCall]) -> list[list[LLMOutput] | Exception]:
        """The outputs of every row.

        Raises:
            RowError: an option cannot be used.
            MemoryError: there is no room for so many rows at once.
            Closed: after ``close()``.
            EngineDead: the device does nothing more.
        """
        if self._is_closed:
            raise self._closed()
        sampling = self._sampling(calls[0].options)
        prompts = [self._prompt(call) for call in calls]
        requests = [
            self._request(call, prompt, position)
            for call, prompt in zip(calls, prompts, strict=True)
            if isinstance(prompt, _Prompt)
            for position in range(1 if sampling.is_greedy else call.num_generations)
        ]
        completions = iter(self._runner.run(requests, sampling) if requests else [])
        return [
            self._outputs(call, prompt, completions, sampling) if isinstance(prompt, _Prompt) else prompt
            for call, prompt in zip(calls, prompts, strict=True)
        ]

    def _generate(self, inputs: list[dict[str, Any]], num_generations: int = 1) -> list[list[LLMOutput]]:
        answers = self.generate_batch([RowCall(one, "input", num_generations, self.wishes) for one in inputs])
        return [_raised(answer) for answer in answers]

    def _sampling(self, options: Mapping[str, Any]) -> Sampling:
        """The engine's settings with ``options`` over them; an option of None leaves the setting."""
        try:
            return Sampling.read(_over(self._settings, options))
        except ValueError as error:
            raise RowError(str(error)) from error

    def _prompt(self, call: RowCall) -> _Prompt | Exception:
        """The row's prompt. What a task, a format or a template raises is the row's own."""
        try:
            used = sent_prompt(self.prompt_of(call), self._takes_text, self._takes_chat)
            check_json({"prompt": used})
            return _Prompt(used, self._fitting(self._encode(used)))
        except Exception as error:
            return error

    def _encode(self, used: str | list[dict[str, Any]]) -> list[int]:
        if isinstance(used, str):
            return self._tokenizer(used, verbose=False)["input_ids"]
        messages = used if self._takes_system else _without_system(used)
        text = _templated(self._tokenizer, messages)
        # The template has written what begins a prompt.
        return self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def _fitting(self, tokens: list[int]) -> list[int]:
        if not tokens:
            raise RowError("the prompt is empty")
        context = self._runner.context
        if context is not None and len(tokens) >= context:
            raise RowError(
                f"the prompt has {len(tokens)} tokens and leaves no room for an answer: {context} is the most"
            )
        return tokens

    def _request(self, call: RowCall, prompt: _Prompt, position: int) -> Request:
        seed = self._seed if call.seed is None else call.seed
        return Request(prompt.tokens, seed_at(seed, position), call.cancelled.is_set)

    def _outputs(
        self, call: RowCall, prompt: _Prompt, completions: Iterator[Completion | None], sampling: Sampling
    ) -> list[LLMOutput] | Exception:
        """Takes the row's completions off ``completions``."""
        count = 1 if sampling.is_greedy else call.num_generations
        made = [next(completions) for _ in range(count)]
        wanted = [one for one in made if one is not None]
        if len(wanted) < count:
            return CancelledError("nobody wants the row any more")
        repeated = wanted * (call.num_generations // count)
        return [self._output_of(call, prompt, one) for one in repeated]

    def _output_of(self, call: RowCall, prompt: _Prompt, made: Completion) -> LLMOutput:
        usage = {"prompt_tokens": len(prompt.tokens), "completion_tokens": made.num_tokens}
        return self._output(call, prompt.used, made.text, made.finish_reason, usage)


def _over(settings: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """``settings`` with those of ``values`` in their places that are not None."""
    return {**settings, **{name: value for name, value in values.items() if value is not None}}


def _check_settings(settings: Mapping[str, Any]) -> None:
    try:
        Sampling.read(_over({**_FALLBACKS, "stop": None}, settings))
    except ValueError as error:
        raise ConfigurationError(str(error)) from error


def _check_continuous(settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        if value is not None:
            raise ConfigurationError(f"continuous batching heeds no {name}: leave it out, or set batching=static")


@dataclass(frozen=True, slots=True)
class _Prompt:
    used: str | list[dict[str, Any]]
    tokens: list[int]


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a model comes from: ``place`` is a folder or a name on the hub."""

    place: str
    gguf_file: str | None
    name: str

    @property
    def arguments(self) -> dict[str, Any]:
        return {} if self.gguf_file is None else {"gguf_file": self.gguf_file}


def _source(model: str | Path, gguf_file: str | None) -> _Source:
    """Finds the model before transformers does, which would take a mistyped path for a name on the hub.

    Raises:
        ConfigurationError: there is no such folder or file.
    """
    path = expanded(model)
    if path.is_dir():
        if gguf_file is None:
            return _Source(str(path), None, path.resolve().name)
        return _Source(str(path), gguf_file, model_path(path / gguf_file).stem)
    if gguf_file is None and (path.is_file() or path.suffix == ".gguf"):
        file = model_path(path)
        return _Source(str(file.parent), file.name, file.stem)
    name = str(model)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ConfigurationError(f"there is no model folder at {path}")
    return _Source(name, gguf_file, name if gguf_file is None else Path(gguf_file).stem)


@contextmanager
def _no_progress_bars() -> Generator[None]:
    """Bars over weights are noise in a worker's log. That over a GGUF file heeds no switch of transformers."""
    was = tqdm.__init__
    setattr(tqdm, "__init__", partialmethod(was, disable=True))  # noqa: B010  a type checker would see a method
    try:
        yield
    finally:
        setattr(tqdm, "__init__", was)  # noqa: B010


def _load_tokenizer(source: _Source, tokenizer: str | Path | None, chat_template: str | None) -> Any:
    with _loading("the tokenizer of", source.place if tokenizer is None else str(tokenizer)) as place:
        loaded = AutoTokenizer.from_pretrained(place, **(source.arguments if tokenizer is None else {}))
    if chat_template is not None:
        loaded.chat_template = chat_template
        try:
            _templated(loaded, _CHAT[1:])
        except RowError as error:
            raise ConfigurationError(f"chat_template cannot be used: {error}") from error
    return loaded


def _load_model(source: _Source, dtype: str, device: str | None, model_kwargs: Mapping[str, Any]) -> Any:
    with _loading("the model", source.place) as place:
        arguments = {**source.arguments, "dtype": dtype, **model_kwargs}
        loaded = cast(Any, AutoModelForCausalLM).from_pretrained(place, **arguments)
        if "device_map" not in model_kwargs:
            loaded = loaded.to(_best_device() if device is None else device)
    return loaded.eval()


@contextmanager
def _loading(what: str, place: str) -> Generator[str]:
    """Turns what transformers raises, of many kinds, into one sentence."""
    try:
        yield place
    except Exception as error:
        said = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ConfigurationError(f"transformers cannot load {what} {place}: {said}") from error


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _own_sampling(model: Any) -> dict[str, Any]:
    """The sampling that the model asks for, with the fallbacks for what it leaves open.

    It is taken off the model's ``generation_config``, which ``generate`` would mix into that of every call.
    """
    config = model.generation_config
    own = {name: getattr(config, name, None) for name in _FALLBACKS}
    config.update(do_sample=False, **dict.fromkeys(_FALLBACKS))
    return {"stop": None, **_over(_FALLBACKS, own)}


def _continuous(settings: Mapping[str, Any]) -> dict[str, Any]:
    """``settings`` without what continuous batching leaves out."""
    for name in _NOT_CONTINUOUS:
        if settings[name] != _FALLBACKS[name]:
            log.warning("continuous batching heeds no %s: the model's own %s is left out", name, settings[name])
    return {**settings, **{name: _FALLBACKS[name] for name in _NOT_CONTINUOUS}}


def _context(model: Any) -> int | None:
    """The most tokens of prompt and completion together; None where the model knows no such limit."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def _vocabulary(model: Any, tokenizer: Any) -> Vocabulary:
    ends = _ends(model.generation_config) | _ends(model.config) | _ends(tokenizer)
    padding = tokenizer.pad_token_id
    if padding is None:
        padding = min(ends, default=0)
    return Vocabulary(lambda tokens: tokenizer.decode(tokens, skip_special_tokens=True), ends, padding)


def _ends(source: Any) -> frozenset[int]:
    value = getattr(source, "eos_token_id", None)
    return frozenset() if value is None else frozenset(value if isinstance(value, list) else [value])


def _templated(tokenizer: Any, messages: list[dict[str, Any]]) -> str:
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    # Templates are programs: they raise of their own, and fail on messages that they do not expect.
    except Exception as error:
        raise RowError(f"the chat template refuses the messages: {error}") from error


def _takes_system(tokenizer: Any) -> bool:
    try:
        _templated(tokenizer, _CHAT)
    except RowError:
        return False
    return True


def _without_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """``messages`` with the system prompt at the head of the user's first turn, for templates that refuse it."""
    match messages:
        case [{"role": "system", "content": str(system)}, {"role": "user", "content": str(user)} as first, *rest]:
            return [{**first, "content": f"{system}\n\n{user}"}, *rest]
        case _:
            return messages


def _raised(answer: list[LLMOutput] | Exception) -> list[LLMOutput]:
    if isinstance(answer, Exception):
        raise answer
    return answer
