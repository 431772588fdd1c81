"""From the words of a command line to a loaded LLM: engines by name, settings by key, functions by their path."""

from __future__ import annotations

import importlib
import inspect
import json
import math
import re
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Callable as AbstractCallable
from pathlib import Path
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from ..protocol.errors import ConfigurationError
from ..tasks.base import TaskLike, require_task
from ..tasks.text_generation import TextGenerationTask
from .llm import LLM

# Imported only when asked for: each needs the package of the extra that has its name.
ENGINES: dict[str, str] = {
    "llamacpp": "genpool.worker.engines.llamacpp:LlamaCppLLM",
    "openai": "genpool.worker.engines.openai:OpenAILLM",
}

_EXTRA_PACKAGES = {"llamacpp": "xllamacpp", "openai": "openai"}

_SPEC = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_TRUTHS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_NONES = ("none", "null")


def load_engine(name: str, model: str | None, pairs: Sequence[str], task: TaskLike | None) -> LLM:
    """Loads the engine called ``name`` with ``model``, the settings in ``pairs`` (``key=value``) and ``task``.

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
    if task is not None:
        settings["task"] = task
    required = [one.name for one in _parameters(cls).values() if one.default is one.empty]
    missing = [key for key in required if key not in settings and key != "task"]
    if missing:
        raise ConfigurationError(f"the engine {name} needs {_names(missing)}")
    return cls(**settings)


def engine_settings(cls: type, pairs: Sequence[str]) -> dict[str, Any]:
    """The constructor arguments of ``cls`` that ``pairs`` of ``key=value`` stand for, by the types in its signature.

    Lists are separated by commas or written as JSON, dicts are JSON, functions ``package.module:function``; ``none``
    is None where the type allows it.

    Raises:
        ConfigurationError: names the pair that cannot be used, and what could.
    """
    hints = get_type_hints(cast(Any, cls).__init__)
    known = {key: hints.get(key, str) for key in _parameters(cls) if key != "task"}
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip()
        if not equals:
            raise ConfigurationError(f"a setting is written key=value, got {pair!r}")
        if key not in known:
            raise ConfigurationError(f"{cls.__name__} has no setting {key!r}: it has {_names(sorted(known))}")
        if key in settings:
            raise ConfigurationError(f"the setting {key} is given twice")
        settings[key] = _typed(key, text, known[key])
    return settings


def load_function(spec: str) -> Callable[..., Any]:
    """The function or class at ``package.module:function``; the current directory is searched first.

    Raises:
        ConfigurationError: ``spec`` leads to nothing that can be called.
    """
    found = _load(spec)
    if not callable(found):
        raise ConfigurationError(f"{spec} is {_a(found)}, and cannot be called")
    return cast(Callable[..., Any], found)


def load_task(spec: str) -> TaskLike:
    """The task at ``package.module:task``: an object, or a class or function that makes one without arguments.

    Raises:
        ConfigurationError: ``spec`` leads to no task.
    """
    found = _load(spec)
    if isinstance(found, type) or inspect.isroutine(found):
        try:
            found = found()
        except Exception as error:
            raise ConfigurationError(f"{spec} makes no task when called without arguments: {_told(error)}") from error
    try:
        require_task(found)
    except TypeError as error:
        raise ConfigurationError(f"{spec} is no task: {error}") from error
    return cast(TaskLike, found)


def load_user_llm(function: Callable[..., Any], task: TaskLike | None) -> LLM:
    """Calls a loader of the user's, with the task where it takes a positional argument.

    Where no task is named, a loader that must have one gets text generation.

    Raises:
        ConfigurationError: the loader returned no LLM.
    """
    name = f"{function.__module__}:{getattr(function, '__qualname__', type(function).__name__)}"
    loaded = function(*_loader_arguments(name, function, task))
    if not isinstance(loaded, LLM):
        raise ConfigurationError(f"the loader {name} must return an LLM (a genpool.LLM), and returned {_a(loaded)}")
    return loaded


def _loader_arguments(name: str, function: Callable[..., Any], task: TaskLike | None) -> list[TaskLike]:
    try:
        parameters = inspect.signature(function).parameters.values()
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
        if error.name is None or error.name.partition(".")[0] != _EXTRA_PACKAGES.get(name):
            raise
        raise ConfigurationError(
            f'the engine {name} needs the package {error.name}: pip install "genpool[{name}]"'
        ) from error


def _parameters(cls: type) -> Mapping[str, inspect.Parameter]:
    parameters = inspect.signature(cls).parameters
    return {key: one for key, one in parameters.items() if one.kind not in _REST}


def _load(spec: str) -> Any:
    if not _SPEC.fullmatch(spec):
        raise ConfigurationError(f"a function or task is named as package.module:name, got {spec!r}")
    module_name, _, path = spec.partition(":")
    # Scripts installed by pip do not look in the current directory, and ``python -m`` does.
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"{spec}: there is no module {error.name!r}; looked in {here} and in what is installed"
        ) from error
    except Exception as error:
        raise ConfigurationError(f"{spec}: importing {module_name} raised {_told(error)}") from error
    for name in path.split("."):
        if not hasattr(found, name):
            raise ConfigurationError(f"{spec}: {_a(found)} has no {name!r}")
        found = getattr(found, name)
    return found


def _typed(key: str, text: str, hint: Any) -> Any:
    options = _union(hint)
    if type(None) in options and text.strip().lower() in _NONES:
        return None
    readers = [_reader(option) for option in options if option is not type(None)]
    for _, read in sorted(readers, key=lambda one: one[0] == "a text"):
        try:
            return read(text)
        except ConfigurationError as error:
            raise ConfigurationError(f"the setting {key}: {error}") from error
        except ValueError:
            continue
    needed = " or ".join(dict.fromkeys(kind for kind, _ in readers))
    raise ConfigurationError(f"the setting {key} must be {needed}, got {text!r}")


def _union(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _reader(hint: Any) -> tuple[str, Callable[[str], Any]]:
    """What a value of the type ``hint`` is called, and what reads one from text, raising ValueError."""
    origin = get_origin(hint) or hint
    if origin is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}", lambda text: _read_literal(text, get_args(hint))
    if origin is AbstractCallable:
        return "a package.module:function", load_function
    simple: dict[Any, tuple[str, Callable[[str], Any]]] = {
        bool: ("true or false", _read_bool),
        int: ("a whole number", int),
        float: ("a number", _read_float),
        list: ("a list, by commas or as JSON", lambda text: _read_list(text, get_args(hint))),
        dict: ("a JSON object", _read_dict),
    }
    return simple.get(origin, ("a text", str))


def _read_bool(text: str) -> bool:
    truth = _TRUTHS.get(text.strip().lower())
    if truth is None:
        raise ValueError(text)
    return truth


def _read_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _read_list(text: str, item: tuple[Any, ...]) -> list[Any]:
    _, read = _reader(item[0] if item else str)
    if not text.lstrip().startswith("["):
        return [read(one) for one in text.split(",")] if text else []
    values = json.loads(text)
    return [read(one) if isinstance(one, str) else _expect(one, item) for one in values]


def _expect(value: Any, item: tuple[Any, ...]) -> Any:
    if item and not isinstance(value, item[0]):
        raise ValueError(value)
    return value


def _read_dict(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(text)  # noqa: TRY004
    return cast(dict[str, Any], value)


def _read_literal(text: str, values: tuple[Any, ...]) -> Any:
    for value in values:
        if str(value) == text.strip():
            return value
    raise ValueError(text)


def _names(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def _a(value: object) -> str:
    if isinstance(value, types.ModuleType):
        return f"the module {value.__name__}"
    return "None" if value is None else f"{type(value).__name__} {value!r:.80}"


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
