"""Text for people: what another process has sent, for a log or a terminal, and how many there are of something."""

from __future__ import annotations

import re

# Control characters, which could forge a line of a log or command a terminal; marks that turn text around; and lone
# surrogates, which few streams take.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """``text`` on one line, and with escapes for what is no visible character."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def plural(number: int, what: str) -> str:
    """``1 row``, ``2 rows``."""
    return f"{number} {what}{'' if number == 1 else 's'}"
