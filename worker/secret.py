"""The secrets of this process: what leaves it, be it an error, a traceback or a line of a log, goes without them.

Providers repeat a refused key in their errors, and libraries log addresses with the logins in them.
"""

from __future__ import annotations

import base64
import logging
import os
import re
from typing import Any, cast
from urllib.parse import quote, unquote, urlsplit

from ..protocol.secret import LOGIN, is_secret_name

HIDDEN = "[secret]"

# Shorter ones stand for a key where none is needed ("none", "EMPTY"), and in ordinary words.
_SHORTEST = 8


class _Known:
    """The secrets that are known, and what finds them."""

    def __init__(self) -> None:
        self._forms: set[str] = set()
        self.pattern = re.compile(r"(?!)")  # finds nothing

    def add(self, forms: set[str]) -> None:
        if not forms <= self._forms:
            self._forms = self._forms | forms
            # The longest first, for one may begin like another.
            self.pattern = re.compile("|".join(map(re.escape, sorted(self._forms, key=len, reverse=True))))


_known = _Known()


def hide(*secrets: str) -> None:
    """From now on ``redacted`` knows these, as they are and as they stand in an address."""
    _known.add({form for one in secrets for form in (one, quote(one, safe="")) if len(one) >= _SHORTEST})


def hide_login(url: str) -> None:
    """From now on ``redacted`` knows the password in ``url``, and what a request has in its place."""
    user, colon, password = urlsplit(url).netloc.rpartition("@")[0].partition(":")
    if colon:
        login = f"{unquote(user)}:{unquote(password)}"
        hide(password, unquote(password), base64.b64encode(login.encode()).decode())


def hide_environment() -> None:
    """From now on ``redacted`` knows what the environment holds under the name of a secret."""
    hide(*(value for name, value in os.environ.items() if is_secret_name(name)))


def redacted(text: str) -> str:
    """``text`` without the secrets that are known, and without passwords in addresses."""
    return LOGIN.sub(f"{HIDDEN}@", _known.pattern.sub(HIDDEN, text))


class _Record(logging.LogRecord):
    """A log record without secrets, whoever logs it and whatever handles it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.exc_info:
            # A formatter takes this where it is, and makes its own where it is not.
            self.exc_text = redacted(logging.Formatter().formatException(self.exc_info))

    def getMessage(self) -> str:  # noqa: N802  the name is logging's
        return redacted(super().getMessage())

    @property
    def fields(self) -> dict[str, Any]:
        """What a call of logging has put there as ``extra``: logging writes it past this, into the record's dict."""
        return _redacted_within(self.__dict__.get("fields", {}))


def _redacted_within(value: Any) -> Any:
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, dict):
        return {name: _redacted_within(one) for name, one in cast("dict[str, Any]", value).items()}
    return [_redacted_within(one) for one in cast("list[Any]", value)] if isinstance(value, list) else value


def redact_logs() -> None:
    """Keep secrets out of all that this process logs from now on, those of the environment included."""
    hide_environment()
    logging.setLogRecordFactory(_Record)
