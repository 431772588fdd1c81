"""The key of an API. It comes from the environment or a file: a command line can be read by everybody on the host."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from ...protocol.errors import ConfigurationError
from ...protocol.home import expanded
from ...protocol.private import refuse_shared
from ..secret import hide, hide_environment

_USUAL_NAME = re.compile(r"[A-Z_][A-Z0-9_]*")


def read_key(env: str | None, file: str | Path | None) -> str | None:
    """The key in ``file``, or without one in the environment variable ``env``; None where that is not set.

    Neither logs nor errors of this process have it from then on: see secret.py.

    Raises:
        ConfigurationError: the file cannot be read, is empty, or is ours and can be read by others; ``env`` is no
            variable's name; or it is no key that a request can carry.
    """
    key = _variable(env or "") if file is None else _content(Path(file))
    hide(key)
    # A library that refuses such a header says it with escapes, in which nobody knows the secret again.
    if not (key.isascii() and key.isprintable()):
        where = f"the environment variable {env}" if file is None else f"api_key_file {file}"
        raise ConfigurationError(
            f"{where} has a line break or another character that no key has: write the key there, and nothing else"
        )
    return key or None


def _variable(name: str) -> str:
    if name and name not in os.environ and not _USUAL_NAME.fullmatch(name):
        # Not repeated, for it may well be the key.
        raise ConfigurationError("api_key_env must be the name of an environment variable, and what is given is none")
    return os.environ.get(name, "").strip()


def _content(path: Path) -> str:
    path = expanded(path)
    try:
        refuse_shared(path, "api_key_file")
        key = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"api_key_file {path} cannot be read: {error}") from error
    if not key:
        raise ConfigurationError(f"api_key_file {path} is empty")
    return key


class Key:
    """A key that may be exchanged while it is used.

    Args and errors are those of ``read_key``; ``otherwise`` is what stands for a key where there is none.
    """

    def __init__(self, env: str | None, file: str | Path | None, otherwise: str | None = None) -> None:
        hide_environment()  # where neither is given, a library may find a key there by itself
        self._read = lambda: read_key(env, file) or otherwise
        self.value = self._read()

    def is_another_than(self, used: str | None) -> bool:
        """Read it again; whether it is by now another one than that which a request was made with."""
        with suppress(ConfigurationError):  # a file that is just being written
            self.value = self._read()
        return self.value != used
