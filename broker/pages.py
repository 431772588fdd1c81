"""What the broker answers over HTTP: a table of paths and who answers there."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from .board import Board, Report, Turn
from .http import Handler, Page
from .metrics import CONTENT_TYPE, render
from .overview import overview
from .sampler import Sampler

# The loop ticks 20 times a second. Whoever restarts a broker for this must be sure that it hangs and is not just slow.
_DEAD_S = 5.0

# Less than the 10 s for which Prometheus waits as a rule.
_PATIENCE_S = 5.0

_JSON = "application/json"

_WEB = Path(__file__).parent / "web"

# The web page, by paths: its files and their types.
_FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}


def pages(board: Board, sampler: Sampler) -> Mapping[str, Handler]:
    """The pages by their paths."""
    return {
        **{path: _file(*file) for path, file in _FILES.items()},
        "/api/report": Rendered(
            lambda: board.report(_PATIENCE_S), lambda report: _json(overview(report, board.turn.unready)), _JSON
        ),
        "/api/history": Rendered(lambda: sampler.plain, _json, _JSON),
        "/metrics": Rendered(lambda: board.report(_PATIENCE_S), render, CONTENT_TYPE),
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


class Rendered:
    """A page of a report that ``read`` gives. Each is rendered once, however many ask for it."""

    def __init__(self, read: Callable[[], Report], render: Callable[[Report], bytes], content_type: str) -> None:
        self._read = read
        self._render = render
        self._content_type = content_type
        self._rendering = threading.Lock()
        self._report: Report | None = None
        self._page = Page(200, content_type, b"")

    def __call__(self) -> Page:
        try:
            report = self._read()
        except TimeoutError as error:
            return _sentence(503, str(error))
        with self._rendering:
            if report is not self._report:
                self._report, self._page = report, Page(200, self._content_type, self._render(report))
            return self._page


def _file(name: str, content_type: str) -> Handler:
    page = Page(200, content_type, (_WEB / name).read_bytes())
    return lambda: page


def _json(data: Mapping[str, object]) -> bytes:
    """Only ASCII: names may hold lone surrogates, which UTF-8 does not."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).encode()


def _sentence(status: int, text: str) -> Page:
    return Page(status, "text/plain; charset=utf-8", f"{text}\n".encode())
