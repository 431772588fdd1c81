"""Settings of an engine, as text or with the types of a file, read by the types in its constructor's signature."""

from __future__ import annotations

import json
import math
import types
from collections.abc import Callable, Mapping
from collections.abc import Callable as AbstractCallable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, cast, get_args, get_origin

from ..protocol.errors import ConfigurationError
from ..tasks.named import described, named_object

_TRUTHS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_NONES = ("none", "null")

_KINDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "a table",
}


@dataclass(frozen=True, slots=True)
class FileSettings:
    """An engine's settings as the file at ``path`` has them, by their names."""

    path: Path
    values: Mapping[str, Any]


def typed(key: str, text: str, hint: Any) -> Any:
    """The value that ``text`` stands for, where the setting ``key`` has the type ``hint``.

    Raises:
        ConfigurationError: names the setting and what it must be.
    """
    options = _union(hint)
    if type(None) in options and text.strip().lower() in _NONES:
        return None
    readers = [_reader(option) for option in options if option is not type(None)]
    for _, read in sorted(readers, key=lambda one: one[0] == "a text"):
        try:
            return read(text)
        except ConfigurationError as error:
            raise ConfigurationError(f"the setting {key}: {error}") from error
        except RecursionError:
            raise ConfigurationError(f"the setting {key} is nested too deeply") from None
        except ValueError:
            continue
    needed = " or ".join(dict.fromkeys(kind for kind, _ in readers))
    raise ConfigurationError(f"the setting {key} must be {needed}, got {text!r}")


def fitting(key: str, value: Any, hint: Any) -> Any:
    """``value``, which came with a type, as the setting ``key`` of the type ``hint`` takes it.

    Raises:
        ConfigurationError: names the setting and what it must be.
    """
    options = [option for option in _union(hint) if option is not type(None)]
    for option in options:
        origin = get_origin(option) or option
        if origin is float and type(value) is int:
            return float(value)
        if isinstance(value, str) and origin not in _KINDS:
            return typed(key, value, option)
        if origin in _KINDS and type(value) is origin and _fits(value, get_args(option)):
            return value
    needed = " or ".join(_KINDS.get(get_origin(option) or option) or _reader(option)[0] for option in options)
    raise ConfigurationError(f"the setting {key} must be {needed}, got {value!r}")


def _fits(value: Any, items: tuple[Any, ...]) -> bool:
    """Whether a number is finite, and the items of a list are of their type."""
    if isinstance(value, list):
        return not items or all(type(one) is items[0] for one in cast(list[Any], value))
    return not isinstance(value, float) or math.isfinite(value)


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


def load_function(spec: str) -> Callable[..., Any]:
    """The function or class at ``package.module:function``; the current directory is searched first.

    Raises:
        ConfigurationError: ``spec`` leads to nothing that can be called.
    """
    try:
        found = named_object(spec)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    if not callable(found):
        raise ConfigurationError(f"{spec} is {described(found)}, and cannot be called")
    return cast(Callable[..., Any], found)
