"""What holds a secret, told by its name or its look: no command line and no file that others read may have one."""

from __future__ import annotations

import re
from typing import Any, cast

from .errors import ConfigurationError

# What settings and environment variables are called that hold one: api_key, HF_TOKEN, AWS_SECRET_ACCESS_KEY.
_NAME = re.compile(r"(^|[_.-]|api)(key|token|secret|password)$", re.IGNORECASE)

# A user and a password in an address.
LOGIN = re.compile(r"(?<=://)[^\s/?#:'\"]*:[^\s/?#'\"]*@(?=[\w\[])")

_READ_BY_OTHERS = "others can read command lines and configuration"


def is_secret_name(name: str) -> bool:
    """Whether what is called so holds a secret."""
    return _NAME.search(name) is not None


def has_login(text: str) -> bool:
    """Whether an address with a password stands in ``text``."""
    return LOGIN.search(text) is not None


def refuse_secret(key: str, value: object = None) -> None:
    """Raises ConfigurationError where ``key`` is a secret's name, or ``value`` holds one: nobody else may read it."""
    if is_secret_name(key):
        raise ConfigurationError(
            f"{key} is a secret, and {_READ_BY_OTHERS}: set api_key_env to the name of an environment variable that "
            "holds it, or api_key_file to a file"
        )
    if isinstance(value, str) and has_login(value):
        raise ConfigurationError(
            f"{key} has a password in it, and {_READ_BY_OTHERS}: put the address into an environment variable, such as "
            "OPENAI_BASE_URL"
        )
    if isinstance(value, dict):
        for name, inner in cast(dict[Any, object], value).items():
            if isinstance(inner, str):
                refuse_secret(f"{key}.{name}", inner)
