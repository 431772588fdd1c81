"""What the broker answers over HTTP: a table of paths and who answers there."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

from .board import Board, Report, Turn
from .http import Handler, Page
from .metrics import CONTENT_TYPE, render

# The loop ticks 20 times a second. Whoever restarts a broker for this must be sure that it hangs and is not just slow.
_DEAD_S = 5.0

# Less than the 10 s for which Prometheus waits as a rule.
_PATIENCE_S = 5.0


def pages(board: Board) -> Mapping[str, Handler]:
    """The pages by their paths."""
    return {
        "/metrics": Metrics(board),
        "/healthz": lambda: health(board.turn, time.monotonic()),
        "/readyz": lambda: readiness(board.turn, time.monotonic()),
    }


def health(turn: Turn, now: float) -> Page:
    """Whether the loop turns."""
    if now >= turn.at + _DEAD_S:
        since = f"for {now - turn.at:.1f} s" if turn.at > float("-inf") else "yet"
        return _sentence(503, f"the broker's loop has not turned {since}")
    return _sentence(200, "the broker's loop turns")


def readiness(turn: Turn, now: float) -> Page:
    """Whether clients and workers are served."""
    page = health(turn, now)
    if page.status != 200:
        return page
    if turn.unready:
        return _sentence(503, turn.unready)
    return _sentence(200, "the broker serves clients and workers")


class Metrics:
    """The page of metrics. A report is rendered once, however many ask for it."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._rendering = threading.Lock()
        self._report: Report = {}
        self._page = Page(200, CONTENT_TYPE, b"")

    def __call__(self) -> Page:
        try:
            report = self._board.report(_PATIENCE_S)
        except TimeoutError as error:
            return _sentence(503, str(error))
        with self._rendering:
            if report is not self._report:
                self._report, self._page = report, Page(200, CONTENT_TYPE, render(report))
            return self._page


def _sentence(status: int, text: str) -> Page:
    return Page(status, "text/plain; charset=utf-8", f"{text}\n".encode())
