"""Engine calls that wait for a thread."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class CallQueue(Generic[Item]):
    """First in, first out, for one thread that puts and many that get.

    Of those that sleep one is woken at a time, and the next not before that one runs. So calls of some microseconds are
    made by threads that are awake. From Python 3.13 on, ``queue.SimpleQueue`` gives each item to another thread that
    sleeps, and all of them want the interpreter's lock at once.
    """

    def __init__(self) -> None:
        self._items: deque[Item] = deque()
        self._bell = threading.Lock()
        self._bell.acquire()
        self._rings = False  # until whom it wakes runs, and not only until it wakes

    def put(self, item: Item) -> None:
        """Add an item."""
        self._items.append(item)
        self._ring()

    def get(self) -> Item:
        """Take the first item, which is waited for."""
        while True:
            try:
                item = self._items.popleft()
            except IndexError:  # rather than a look before: another thread may take the last one
                self._bell.acquire()
                self._rings = False
                continue
            if self._items:
                self._ring()
            return item

    def _ring(self) -> None:
        if not self._rings:
            self._rings = True
            try:
                self._bell.release()
            except RuntimeError:
                pass  # another thread has rung it in the same moment
