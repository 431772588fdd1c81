"""The key of an API. It comes from the environment or a file: a command line can be read by everybody on the host."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from ...protocol.errors import ConfigurationError


def read_key(env: str | None, file: str | Path | None) -> str | None:
    """The key in ``file``, or without one in the environment variable ``env``; None where that is not set.

    Raises:
        ConfigurationError: the file cannot be read or is empty.
    """
    if file is None:
        return (env and os.environ.get(env, "").strip()) or None
    try:
        key = Path(file).expanduser().read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"api_key_file {file} cannot be read: {error}") from error
    if not key:
        raise ConfigurationError(f"api_key_file {file} is empty")
    return key


class Key:
    """A key that may be exchanged while it is used.

    Args and errors are those of ``read_key``; ``otherwise`` is what stands for a key where there is none.
    """

    def __init__(self, env: str | None, file: str | Path | None, otherwise: str | None = None) -> None:
        self._read = lambda: read_key(env, file) or otherwise
        self.value = self._read()

    def is_new(self) -> bool:
        """Read it again; whether it is another one by now."""
        former = self.value
        with suppress(ConfigurationError):  # a file that is just being written
            self.value = self._read()
        return self.value != former
