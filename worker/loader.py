"""From the words of a command line to a loaded LLM: engines by name, settings by key, functions by their path."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast, get_type_hints

from ..protocol.errors import ConfigurationError
from ..protocol.secret import refuse_secret
from ..tasks.base import TaskLike
from ..tasks.named import described, named_task
from ..tasks.text_generation import TextGenerationTask
from .llm import LLM
from .parameters import parameters_of
from .setting import FileSettings, fitting, typed

# Imported only when asked for: each needs the package of the extra that has its name.
ENGINES: dict[str, str] = {
    "litellm": "genpool.worker.engines.litellm:LiteLLM",
    "llamacpp": "genpool.worker.engines.llamacpp:LlamaCppLLM",
    "openai": "genpool.worker.engines.openai:OpenAILLM",
    "transformers": "genpool.worker.engines.transformers:TransformersLLM",
}

_EXTRA_PACKAGES = {
    "litellm": ["litellm"],
    "llamacpp": ["xllamacpp"],
    "openai": ["openai"],
    "transformers": ["torch", "transformers"],
}


def load_engine(
    name: str,
    model: str | None,
    pairs: Sequence[str],
    task: TaskLike | None,
    file: FileSettings | None = None,
    concurrency: int | None = None,
) -> LLM:
    """Loads the engine called ``name`` with ``model``, the settings in ``pairs`` (``key=value``) and ``task``.

    ``model`` and ``pairs`` go before the settings of ``file``. ``concurrency`` is how many calls it will get at once:
    an engine that has a setting of that name, and nothing else said for it, takes so many.

    Raises:
        ConfigurationError: no such engine, its package is not installed, or a setting or the model cannot be used.
        EngineUnwell: the engine's server is not there.
    """
    cls = _engine_class(name)
    settings = engine_settings(cls, pairs)
    if model is not None:
        if "model" in settings:
            raise ConfigurationError("the model is given twice, by itself and as a setting")
        settings["model"] = model
    if file is not None:
        settings = {**file_settings(cls, file), **settings}
    if concurrency is not None and "concurrency" in _parameters(cls):
        settings.setdefault("concurrency", concurrency)
    if task is not None:
        settings["task"] = task
    required = [one.name for one in _parameters(cls).values() if one.default is one.empty]
    missing = [key for key in required if key not in settings and key != "task"]
    if missing:
        options = " ".join("--model" if key == "model" else f"--set {key}=…" for key in missing)
        raise ConfigurationError(f"the engine {name} needs {_names(missing)}: give {options}")
    return cls(**settings)


def engine_settings(cls: type, pairs: Sequence[str]) -> dict[str, Any]:
    """The constructor arguments of ``cls`` that ``pairs`` of ``key=value`` stand for, by the types in its signature.

    Lists are separated by commas or written as JSON, dicts are JSON, functions ``package.module:function``; ``none``
    is None where the type allows it.

    Raises:
        ConfigurationError: names the pair that cannot be used, and what could.
    """
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip()
        if not equals:
            refuse_secret(re.split(r"\W", key, maxsplit=1)[0], pair)
            raise ConfigurationError(f"a setting is written key=value, got {pair!r}")
        hint = _hint(cls, key)
        if key in settings:
            raise ConfigurationError(f"the setting {key} is given twice")
        refuse_secret(key, text)
        settings[key] = typed(key, text, hint)
        refuse_secret(key, settings[key])
    return settings


def file_settings(cls: type, file: FileSettings) -> dict[str, Any]:
    """The constructor arguments of ``cls`` that ``file`` has.

    Raises:
        ConfigurationError: names the file and the setting that cannot be used, and what could.
    """
    try:
        return {key: fitting(key, value, _hint(cls, key)) for key, value in file.values.items()}
    except ConfigurationError as error:
        raise ConfigurationError(f"{file.path}: {error}") from error


def _hint(cls: type, key: str) -> Any:
    """The type of the setting ``key``. Raises ConfigurationError where there is none, or where it would be a secret."""
    refuse_secret(key)
    known = _parameters(cls).keys() - {"task"}
    if key not in known:
        raise ConfigurationError(f"{cls.__name__} has no setting {key!r}: it has {_names(sorted(known))}")
    return get_type_hints(cast(Any, cls).__init__).get(key, str)


def load_task(spec: str) -> TaskLike:
    """The task at ``package.module:task``: an object, or a class or function that makes one without arguments.

    Raises:
        ConfigurationError: ``spec`` leads to no task.
    """
    try:
        return named_task(spec)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error


def load_user_llm(function: Callable[..., Any], task: TaskLike | None) -> LLM:
    """Calls a loader of the user's, with the task where it takes a positional argument.

    Where no task is named, a loader that must have one gets text generation.

    Raises:
        ConfigurationError: the loader returned no LLM.
    """
    name = f"{function.__module__}:{getattr(function, '__qualname__', type(function).__name__)}"
    loaded = function(*_loader_arguments(name, function, task))
    if not isinstance(loaded, LLM):
        raise ConfigurationError(
            f"the loader {name} must return an LLM (a genpool.LLM), and returned {described(loaded)}"
        )
    return loaded


def _loader_arguments(name: str, function: Callable[..., Any], task: TaskLike | None) -> list[TaskLike]:
    try:
        parameters = parameters_of(function).values()
    except (TypeError, ValueError):
        return [TextGenerationTask() if task is None else task]
    positional = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    required = [one.name for one in parameters if one.default is one.empty and one.kind not in _REST]
    if required[1:] or (required and not positional):
        raise ConfigurationError(f"the loader {name} must need no more than the task, and needs {_names(required)}")
    takes_task = positional or any(one.kind == one.VAR_POSITIONAL for one in parameters)
    if not takes_task or (task is None and not required):
        return []
    return [TextGenerationTask() if task is None else task]


_REST = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _engine_class(name: str) -> type[LLM]:
    if name not in ENGINES:
        raise ConfigurationError(f"there is no engine {name!r}: there are {_names(sorted(ENGINES))}")
    module, _, cls = ENGINES[name].partition(":")
    try:
        return getattr(importlib.import_module(module), cls)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _EXTRA_PACKAGES.get(name, ()):
            raise
        raise ConfigurationError(
            f'the engine {name} needs the package {error.name}: pip install "genpool[{name}]"'
        ) from error


def _parameters(cls: type) -> Mapping[str, inspect.Parameter]:
    return {key: one for key, one in parameters_of(cls).items() if one.kind not in _REST}


def _names(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
