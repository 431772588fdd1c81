"""Options of commands: paths, the broker's address, and what of them stands in a TOML file, with its types."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from .address import DEFAULT_ADDRESS, ENVIRONMENT_VARIABLE
from .errors import ConfigurationError


class UserPath(click.Path):
    """The path of a file or a folder, and not empty: `Path` takes that for the folder that it was started in."""

    def __init__(self, *, file_okay: bool = True, dir_okay: bool = True) -> None:
        super().__init__(file_okay=file_okay, dir_okay=dir_okay, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("it is empty: name a file or a folder.", param, ctx)
        return super().convert(value, param, ctx)


def broker_option(command: str, *, takes_several: bool = True) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """``--broker`` of the ``genpool`` command of this name: what ``address.resolve`` takes."""
    several = "; several with commas" if takes_several else ""
    return click.option(
        "--broker",
        envvar=[f"GENPOOL_{command.upper()}_BROKER", ENVIRONMENT_VARIABLE],
        metavar="ADDRESS",
        help=f"tcp://HOST:PORT, HOST:PORT, or a connection file{several}.  "
        f"[default: {DEFAULT_ADDRESS.removeprefix('tcp://')}]",
    )


def parse_file(path: Path, what: str) -> tuple[dict[str, Any], str]:
    """The content of the TOML file, and its text. ``what`` it is, for people: "the configuration".

    Raises:
        ConfigurationError: when it cannot be read, or is none.
    """
    try:
        text = path.read_bytes().decode()
        return tomllib.loads(text), text
    except OSError as error:
        raise ConfigurationError(f"{what} {path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # no TOML, or no UTF-8
        raise ConfigurationError(f"{path} is no TOML file: {error}") from error


def public_options(command: click.Command, but: click.Parameter | None = None) -> dict[str, click.Parameter]:
    """By name, the options of ``command`` that a person gives once."""
    return {
        one.opts[0].lstrip("-"): one
        for one in command.params
        if isinstance(one, click.Option) and not one.hidden and not one.multiple and one is not but
    }


def typed_option(context: click.Context, option: click.Parameter, key: str, value: Any) -> Any:
    """``value``, which the file has under ``key``, as the option takes it.

    Raises:
        ConfigurationError: names the key and what it must be.
    """
    kind, types = _kind(option)
    if not isinstance(value, types) or (isinstance(value, bool) and types is not bool):
        raise ConfigurationError(f"{key} must be {kind}, got {value!r}")
    try:
        return option.type.convert(value, option, context)
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
