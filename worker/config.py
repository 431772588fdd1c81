"""``genpool worker --config``: the command's options in a TOML file.

llm = "qwen"
engine = "openai"
concurrency = 128

[set]
base_url = "http://127.0.0.1:8000/v1"
stop = ["\\n\\n"]
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import click

from ..protocol.errors import ConfigurationError
from ..protocol.option import parse_file, public_options, typed_option
from ..protocol.secret import refuse_secret
from .setting import FileSettings

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
    content, _ = parse_file(path, "the configuration")
    settings = content.pop(_SETTINGS, {})
    known = public_options(context.command, but=option)
    try:
        if not isinstance(settings, dict):
            raise ConfigurationError(f"{_SETTINGS} must be a table of the engine's settings: write [{_SETTINGS}]")
        for key, value in cast(dict[str, Any], settings).items():
            refuse_secret(key, value)
        context.default_map = dict(_option(context, known, key, value) for key, value in content.items())
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from error
    return FileSettings(path, cast(dict[str, Any], settings))


def _option(context: click.Context, known: Mapping[str, click.Parameter], key: str, value: Any) -> tuple[str, object]:
    """The name by which click knows the option ``key``, and its value."""
    refuse_secret(key, value)
    option = known.get(key.replace("_", "-"))
    if option is None:
        raise ConfigurationError(
            f"there is no option {key!r}: there are {', '.join(sorted(known))}, and the engine's settings go below "
            f"[{_SETTINGS}]"
        )
    return option.name or key, typed_option(context, option, key, value)
