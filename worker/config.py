"""``genpool worker --config``: the command's options in a TOML file.

llm = "qwen"
engine = "openai"
concurrency = 128

[set]
base_url = "http://127.0.0.1:8000/v1"
stop = ["\\n\\n"]
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import click

from ..protocol.errors import ConfigurationError
from .setting import FileSettings, refuse_secret

_SETTINGS = "set"


def read_config(context: click.Context, option: click.Parameter, path: Path | None) -> FileSettings | None:
    """Make the file at ``path`` the defaults of the command's options. A callback of click's, for an eager option.

    Returns:
        The engine's settings in the file; None without a file.

    Raises:
        ConfigurationError: names the file and the key that cannot be used.
    """
    if path is None:
        return None
    content = _parsed(path)
    settings = content.pop(_SETTINGS, {})
    known = {_name(one): one for one in context.command.params if _is_public(one) and one is not option}
    try:
        if not isinstance(settings, dict):
            raise ConfigurationError(f"{_SETTINGS} must be a table of the engine's settings: write [{_SETTINGS}]")
        for key, value in cast(dict[str, Any], settings).items():
            refuse_secret(key, value)
        context.default_map = dict(_option(context, known, key, value) for key, value in content.items())
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from error
    return FileSettings(path, cast(dict[str, Any], settings))


def _parsed(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigurationError(f"the configuration {path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # no TOML, or no UTF-8
        raise ConfigurationError(f"{path} is no TOML file: {error}") from error


def _option(context: click.Context, known: Mapping[str, click.Parameter], key: str, value: Any) -> tuple[str, object]:
    """The name by which click knows the option ``key``, and its value."""
    refuse_secret(key, value)
    option = known.get(key.replace("_", "-"))
    if option is None:
        raise ConfigurationError(
            f"there is no option {key!r}: there are {', '.join(sorted(known))}, and the engine's settings go below "
            f"[{_SETTINGS}]"
        )
    kind, types = _kind(option)
    if not isinstance(value, types) or (isinstance(value, bool) and types is not bool):
        raise ConfigurationError(f"{key} must be {kind}, got {value!r}")
    try:
        return option.name or key, option.type.convert(value, option, context)
    except click.BadParameter as error:
        raise ConfigurationError(f"{key}: {error.message}") from error


def _kind(option: click.Parameter) -> tuple[str, type | tuple[type, ...]]:
    """What the values of ``option`` are called, and their types in TOML."""
    match option.type:
        case click.types.BoolParamType():
            return "true or false", bool
        case click.types.IntParamType():
            return "a whole number", int
        case click.types.FloatParamType():
            return "a number", (int, float)
        case _:
            return "a text", str


def _name(option: click.Parameter) -> str:
    return option.opts[0].lstrip("-")


def _is_public(option: click.Parameter) -> bool:
    """Whether it is one that a person gives once."""
    return isinstance(option, click.Option) and not option.hidden and not option.multiple
