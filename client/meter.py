"""How far a run is: a bar on a terminal, a line in the log now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

log = logging.getLogger("genpool.generate")

_LINE_EVERY_S = 30.0


class Meter:
    """Says nothing: for ``--quiet``."""

    def advance(self, advance: int) -> None:
        """``advance`` more generations are there. Any thread may call this."""

    def wrote(self, rows: int, failed: int) -> None:
        """So many rows are written by now, and so many of them have failed."""


class LineMeter(Meter):
    """Logs a line now and then."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._next = self._began + _LINE_EVERY_S

    def wrote(self, rows: int, failed: int) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _LINE_EVERY_S
            log.info("%d rows are written, %d of them failed; %.1f rows/s", rows, failed, rows / (now - self._began))


class BarMeter(Meter):
    """Draws a bar of generations on the terminal that ``progress`` has."""

    def __init__(self, progress: Progress, total: int | None) -> None:
        self._progress = progress
        self._bar = progress.add_task("generations", total=total)

    def advance(self, advance: int) -> None:
        self._progress.advance(self._bar, advance)

    def wrote(self, rows: int, failed: int) -> None:
        self._progress.update(self._bar, description=f"generations ({rows} rows written, {failed} failed)")


@contextmanager
def bar(total: int | None) -> Generator[Meter]:
    """A bar on stderr, of ``total`` generations if that is known. Lines of the log stay above it."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    terminal = sys.stderr
    with Progress(*columns, *times, console=Console(stderr=True)) as progress:
        # `Progress` has put itself in the place of sys.stderr; the log's handlers still hold the terminal.
        moved = [one for one in _stream_handlers() if one.stream is terminal]
        for handler in moved:
            handler.setStream(sys.stderr)
        try:
            yield BarMeter(progress, total)
        finally:
            for handler in moved:
                handler.setStream(terminal)


def _stream_handlers() -> list[logging.StreamHandler[Any]]:
    handlers = logging.getLogger().handlers
    return [cast("logging.StreamHandler[Any]", one) for one in handlers if isinstance(one, logging.StreamHandler)]
