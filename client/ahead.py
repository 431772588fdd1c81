"""The inputs of a long list that wait to become rows: packed, and no more, until their LLMs need them.

A row that waits is some ten objects. A hundred thousand of them would keep Python's collector busy, and the LLMs idle
until they are made.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence

from .maker import Voice
from .part import Part

# So many rows of an LLM are under way, or so many times what it runs at once: a little more than may be at the broker
# (see machine.py), so that it never waits for those that were put off.
_LEAST_ROWS = 384
_ROWS_PER_CAPACITY = 6


class Ahead:
    """What a call has put off, and whether its LLMs need it.

    ``under_way`` counts each LLM's rows that have begun and not ended, by its position. ``is_hurried`` when nothing
    is to be put off any more.
    """

    def __init__(self, voices: Sequence[Voice]) -> None:
        self.under_way: defaultdict[int, int] = defaultdict(int)
        self.is_hurried = False
        self._voices = voices
        self._parts: deque[Part] = deque()

    def __len__(self) -> int:
        return sum(len(part.inputs) for part in list(self._parts))

    @property
    def is_empty(self) -> bool:
        return not self._parts

    def put_off(self, part: Part) -> None:
        """Keep these inputs, behind the others."""
        self._parts.append(part)

    def next_part(self) -> Part | None:
        """What is to begin now, if something is. Threads may ask at once."""
        if not self._parts or not self.needs_rows():
            return None
        try:
            return self._parts.popleft()
        except IndexError:
            return None

    def needs_rows(self) -> bool:
        """Whether an LLM should have more rows under way: those of a slow one keep no other waiting."""
        if self.is_hurried or not self.under_way:
            return True
        return any(count < self._enough(at) for at, count in list(self.under_way.items()))

    def clear(self) -> None:
        """Nobody wants any of them."""
        self._parts.clear()

    def _enough(self, at: int) -> int:
        info = self._voices[at].info
        return max(_LEAST_ROWS, _ROWS_PER_CAPACITY * info.capacity if info is not None else 0)
