"""Decisions made from bytes: the same bytes lead to the same decisions, and a changed byte to others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

# Numbers around which machines and formats change their ways.
_EDGES = (2**15, 2**31 - 1, 2**32, 2**53 + 1, 2**62, 2**63 - 2, 2**63 - 1)
_SECONDS = (0.0, 1e-9, 0.05, 0.5, 1.0, 3.0, 20.0, 1e6, 1e308)


class Choices:
    """Reads ``data`` from its start. Behind its end every choice is the first of those that there are."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def are_over(self) -> bool:
        """Whether all bytes are read."""
        return self._at >= len(self._data)

    def below(self, count: int) -> int:
        """A number from 0 to ``count`` - 1, at most 255."""
        if self.are_over:
            return 0
        self._at += 1
        return self._data[self._at - 1] % count

    def one_of(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]

    def some_of(self, items: Sequence[T], most: int) -> list[T]:
        """Up to ``most`` of them, some perhaps more than once."""
        return [self.one_of(items) for _ in range(self.below(most + 1))]

    def flag(self) -> bool:
        return self.below(2) == 1

    def rarely(self) -> bool:
        return self.below(32) == 31

    def count(self) -> int:
        """Most often a small one, of those that fit into 63 bits."""
        number = self.below(64)
        return number % 8 if number < 64 - len(_EDGES) else _EDGES[number - 64]

    def seconds(self) -> float:
        return self.one_of(_SECONDS)

    def blob(self, most: int = 255) -> bytes:
        """Bytes as they are, at most 255."""
        start = self._at + 1
        self._at = min(len(self._data), start + self.below(most + 1))
        return self._data[start : self._at]

    def rest(self) -> bytes:
        """All bytes that are left."""
        start, self._at = self._at, len(self._data)
        return self._data[start:]

    def text(self) -> str:
        """A short one, now and then with line ends, surrogates or whatever."""
        if self.below(8):
            return self.one_of(("", "a", "b", "llm", "it was told to stop", "\ud800", "a\nb\x1b[2J"))
        return self.blob(16).decode("utf-8", "surrogateescape")
