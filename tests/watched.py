"""A cancel flag that does something when an engine looks at it."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Watched(threading.Event):
    """A cancel flag that calls ``on_look(k)`` when it is looked at for the k-th time."""

    def __init__(self, on_look: Callable[[int], object]) -> None:
        super().__init__()
        self.looks = 0
        self._on_look = on_look

    def is_set(self) -> bool:
        self.looks += 1
        self._on_look(self.looks)
        return super().is_set()
