"""Several brokers in one text: their addresses with commas between."""

from __future__ import annotations

from collections.abc import Iterable

_BETWEEN = ","


def split(text: str) -> list[str]:
    """Each broker's address. Spaces around it do not count."""
    return [one.strip() for one in text.split(_BETWEEN)]


def joined(addresses: Iterable[str]) -> str:
    """One text for all of them."""
    return _BETWEEN.join(addresses)
