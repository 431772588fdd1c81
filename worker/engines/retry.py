"""Whether a failed request is worth another try, and when. No clock and no sleep."""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import parsedate_to_datetime

import openai

# A time-out and a lock of the server's, too many requests; 500 and above besides.
_AGAIN = frozenset({408, 409, 429})

# A quota that is used up is told as too many requests, and comes back when somebody has paid.
_SPENT = ("insufficient_quota", "billing_hard_limit_reached")

# What OpenAI says of a request that has more tokens by itself than a minute may have, as too many requests too.
_TOO_LARGE = "request too large"

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 8.0

# The part of a pause that is drawn, so that requests refused together do not come back together.
_JITTER = 0.25

# A server that wants to be left alone for longer is unwell: rows are better handed back, and somebody told, than kept.
_LONGEST_RETRY_AFTER_S = 60.0


def pause_s(error: openai.OpenAIError, tries: int, draw: float) -> float | None:
    """Seconds until the request that failed with ``error`` is worth another try; None where it is not.

    Args:
        error: how the last try failed.
        tries: how many tries were made before it.
        draw: from 0 to 1, for the jitter.
    """
    if isinstance(error, openai.APIStatusError):
        if not _may_pass(error):
            return None
        wanted_s = retry_after_s(error.response.headers)
        if wanted_s:
            return wanted_s * (1 + _JITTER * draw) if wanted_s <= _LONGEST_RETRY_AFTER_S else None
    elif not isinstance(error, openai.APIConnectionError):
        return None
    return min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0**tries) * (1 - _JITTER * draw)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """What an answer's ``Retry-After`` asks for, in seconds; a date counts from the server's own ``Date``."""
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[name]) * unit_s)
        except (KeyError, ValueError):
            continue
    try:
        until, now = (parsedate_to_datetime(headers[name]) for name in ("retry-after", "date"))
        return max(0.0, (until - now).total_seconds())
    except (KeyError, TypeError, ValueError):
        return None


def is_spent(error: openai.APIError) -> bool:
    """Whether the server says that the quota is used up."""
    return error.code in _SPENT or error.type in _SPENT


def is_too_large(error: openai.APIError) -> bool:
    """Whether the server says that this request is beyond a limit of tokens by itself, whatever else is asked."""
    return getattr(error, "status_code", None) == 429 and _TOO_LARGE in f"{error} {error.body}".lower()


def _may_pass(error: openai.APIStatusError) -> bool:
    if error.response.headers.get("x-should-retry") == "false":
        return False
    if is_spent(error) or is_too_large(error):
        return False
    return error.status_code in _AGAIN or error.status_code >= 500
