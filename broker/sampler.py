"""The thread that asks the broker's loop for its counts now and then, and keeps their history for the web page."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress

from .board import Board
from .history import EVERY_S, History

# A loop that stands still for longer leaves a gap.
_PATIENCE_S = EVERY_S / 2


class Sampler:
    """A history that one thread writes and others read. ``plain`` is made once for each sample."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._history = History()
        self._lock = threading.Lock()
        self._plain = self._history.plain()

    @property
    def plain(self) -> dict[str, object]:
        """The history as data, which nobody changes: see History."""
        return self._plain

    def sample(self) -> None:
        """Enter what the loop counts now, if it turns."""
        with suppress(TimeoutError), self._lock:
            self._history.add(self._board.counts(_PATIENCE_S))
            self._plain = self._history.plain()

    def run(self, is_over: threading.Event) -> None:
        """Sample until it is over."""
        while True:
            self.sample()
            if is_over.wait(EVERY_S):
                return


@contextmanager
def sampling(board: Board) -> Generator[Sampler]:
    """Sample in a thread meanwhile. Its end waits for nobody, not even for a loop that does not turn."""
    sampler, is_over = Sampler(board), threading.Event()
    threading.Thread(target=sampler.run, args=(is_over,), name="genpool-sampler", daemon=True).start()
    try:
        yield sampler
    finally:
        is_over.set()
