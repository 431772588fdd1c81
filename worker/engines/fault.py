"""Whose fault a failed request is: the row's, or the server's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar, cast

import openai

from ...protocol.errors import EngineUnwell, RowError
from ..secret import redacted
from .retry import is_spent, is_too_large, retry_after_s

_ROW = frozenset({400, 413, 422})

_T = TypeVar("_T")

# The key, a balance, the model, a limit of requests or tokens in a minute: no row's fault unless it is too large by
# itself, and a canary may be small enough.
# All else may befall one row only: a moderation's 403, a gateway's 502 or a cut where the row crashes what is behind.
_SERVER = frozenset({401, 402, 404, 429})

# Who answers so is there, and is not about to be mended.
_THERE = frozenset({200, 500})

CANARY_TIMEOUT_S = 10.0
_LONGEST_SENTENCE = 300


class Blame:
    """Turns a failed request into the error that says who is at fault.

    Where it may be either, a canary decides: a request of one token. If that is answered, it is the row; else a row
    that never gets through would be handed back, and tried first, for ever.

    Args:
        address: where the server is, for the sentences.
        canary: sends that request, and raises what the client library does.
        sentence_of: what the server said in an error of that library.
    """

    def __init__(
        self, address: str, canary: Callable[[], Awaitable[object]], sentence_of: Callable[[Exception], str]
    ) -> None:
        self._address = address
        self._send_canary = canary
        self._sentence_of = sentence_of

    async def of(self, error: Exception) -> Exception:
        """The error to raise in place of ``error``: RowError, EngineUnwell, or TimeoutError or RuntimeError."""
        sentence = f"{self._address}: {self._sentence_of(error)}"
        status = getattr(error, "status_code", None)
        if status in _ROW or (isinstance(error, openai.APIError) and is_too_large(error)):
            return RowError(sentence)
        if not _tells_of_server(error) and await self._answers_others():
            return TimeoutError(sentence) if isinstance(error, TimeoutError) else RuntimeError(sentence)
        return EngineUnwell(sentence)

    async def judged(self, error: Exception, ask: Callable[[], Awaitable[_T]]) -> _T:
        """What the row's request brings once more, where it is the row's fault that it failed: mostly an error again.

        Between the two, the server may have been mended, which no row shall be charged for.

        Raises:
            RowError, EngineUnwell, TimeoutError, RuntimeError: as ``of`` says.
        """
        blamed = await self.of(error)
        if type(blamed) is RuntimeError and getattr(error, "status_code", None) not in _THERE:
            with suppress(openai.OpenAIError, TimeoutError, ValueError):
                return await ask()
        raise blamed from error

    async def _canary(self) -> None:
        # Client libraries limit how long nothing comes, and a busy server may send a blank now and then for ever.
        async with asyncio.timeout(CANARY_TIMEOUT_S):
            await self._send_canary()

    async def _answers_others(self) -> bool:
        try:
            await self._canary()
        except openai.BadRequestError:
            # It would rather have had another canary, but it is there and has the model.
            return True
        except (openai.OpenAIError, TimeoutError, ValueError):
            return False
        return True


def _tells_of_server(error: Exception) -> bool:
    """Whether the server has said that it is no row's fault, or that it wants to be left alone for now."""
    if getattr(error, "status_code", None) in _SERVER or (isinstance(error, openai.APIError) and is_spent(error)):
        return True
    rest_s = retry_after_s(error.response.headers) if isinstance(error, openai.APIStatusError) else None
    return rest_s is not None and rest_s > CANARY_TIMEOUT_S


def sentence_of(error: Exception) -> str:
    """What the server said, in a line; what happened where it said nothing."""
    if isinstance(error, openai.APIStatusError):
        return f"{error.status_code} {said(error.body) or error.response.reason_phrase}"
    if isinstance(error, openai.APIConnectionError) and error.__cause__ is not None:
        cause = error.__cause__
        return line(f"{error.message.rstrip('.')} ({str(cause) or type(cause).__name__})")
    if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)):
        return "answered with something that is no completion: a text that is no JSON"
    return line(str(error))


def said(body: object) -> str:
    """The sentence in the body of an answer that tells of an error."""
    if isinstance(body, dict):
        fields = cast(dict[str, Any], body)
        if isinstance(fields.get("error"), dict):
            fields = cast(dict[str, Any], fields["error"])
        body = fields.get("message") or fields.get("detail") or fields.get("error") or fields
    return line(str(body)) if body else ""


def line(text: str) -> str:
    """``text`` in one line that is not too long, without secrets: providers repeat a key that they refuse."""
    # Before it is cut, for of half a secret nobody would know that it is one.
    return " ".join(redacted(text).split())[:_LONGEST_SENTENCE]
