"""How far a run is: a bar on a terminal, a line in the log now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from ..protocol.messages import LLMInfo
from ..protocol.printable import plural, printable
from .standing import Standing

log = logging.getLogger("genpool.generate")

_LINE_EVERY_S = 30.0

# A wait shorter than this is the usual time that a generation takes, and not worth a word.
_QUIET_S = 5.0


class Meter:
    """Says nothing: for ``--quiet``."""

    def advance(self, advance: int) -> None:
        """``advance`` more generations are there. Any thread may call this."""

    def wrote(self, standing: Standing) -> None:
        """One row more is written."""


class _Pace:
    """How fast it goes, in this run alone, and when it will be over."""

    def __init__(self, start: Standing, rows: int | None) -> None:
        self._start, self._total = start, rows
        self._began = time.monotonic()

    def text(self, now: Standing) -> str:
        """So many rows, failures and tokens."""
        seconds = max(time.monotonic() - self._began, 1e-3)
        rows_per_s = (now.rows - self._start.rows) / seconds
        said = [f"{plural(now.rows, 'row')} written, {now.failed} failed", f"{rows_per_s:.1f} rows/s"]
        if tokens := _tokens(now) - _tokens(self._start):
            said.append(f"{tokens / seconds:.0f} tokens/s")
        if self._total is not None and rows_per_s > 0:
            said.append(f"{_clock((self._total - now.rows) / rows_per_s)} left")
        return ", ".join(said)


def _tokens(standing: Standing) -> int:
    return sum(made.completion_tokens for made in standing.made.values())


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


class LineMeter(Meter):
    """Logs a line now and then.

    Args:
        start: what was written before.
        rows: how many there will be, if that is known.
    """

    def __init__(self, start: Standing, rows: int | None) -> None:
        self._pace = _Pace(start, rows)
        self._next = time.monotonic() + _LINE_EVERY_S

    def wrote(self, standing: Standing) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _LINE_EVERY_S
            log.info("%s", self._pace.text(standing))


class BarMeter(Meter):
    """Draws a bar of generations on the terminal that ``progress`` has, and below it what is waited for."""

    def __init__(self, progress: Progress, start: Standing, rows: int | None, num_generations: int) -> None:
        self._progress = progress
        done = start.rows * num_generations
        total = None if rows is None else rows * num_generations
        self._bar = progress.add_task("", total=total, completed=done, standing=start, quiet_since=time.monotonic())

    def advance(self, advance: int) -> None:
        self._progress.update(self._bar, advance=advance, quiet_since=time.monotonic())

    def wrote(self, standing: Standing) -> None:
        self._progress.update(self._bar, standing=standing)


class _Written(TextColumn):
    """What is written, and how fast: the pace falls while nothing comes."""

    def __init__(self, pace: _Pace) -> None:
        super().__init__("")
        self._pace = pace

    def render(self, task: Task) -> Text:
        return Text(f"generations ({self._pace.text(task.fields['standing'])})")


class _Waits(TextColumn):
    """What is waited for, when nothing has come for a while."""

    def __init__(self, waits: Callable[[], str]) -> None:
        super().__init__("")
        self._waits = waits

    def render(self, task: Task) -> Text:
        is_quiet = time.monotonic() - task.fields["quiet_since"] > _QUIET_S
        return Text(self._waits() if is_quiet else "")


def awaited(fleet: Mapping[str, LLMInfo] | None, llms: Sequence[str]) -> str:
    """What a run of ``llms`` waits for when nothing comes."""
    if fleet is None:
        return "waits for the broker"
    away = [name for name in llms if name not in fleet or not fleet[name].ready]
    if not away:
        return "the LLMs are at work"
    reasons = [fleet[name].reason for name in away if name in fleet and fleet[name].reason]
    return printable(f"waits for {', '.join(away)}" + (f" ({reasons[0]})" if reasons else ""))


@contextmanager
def bar(start: Standing, rows: int | None, num_generations: int, waits: Callable[[], str]) -> Generator[Meter]:
    """A bar on stderr. Lines of the log stay above it.

    Args:
        start: what was written before.
        rows: how many there will be, if that is known.
        num_generations: for each row.
        waits: says what is waited for.
    """
    written = _Written(_Pace(start, rows))
    columns = (written, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), _Waits(waits))
    terminal = sys.stderr
    with Progress(*columns, console=Console(stderr=True)) as progress:
        # `Progress` has put itself in the place of sys.stderr; the log's handlers still hold the terminal.
        moved = [one for one in _stream_handlers() if one.stream is terminal]
        for handler in moved:
            handler.setStream(sys.stderr)
        try:
            yield BarMeter(progress, start, rows, num_generations)
        finally:
            for handler in moved:
                handler.setStream(terminal)


def _stream_handlers() -> list[logging.StreamHandler[Any]]:
    handlers = logging.getLogger().handlers
    return [cast("logging.StreamHandler[Any]", one) for one in handlers if isinstance(one, logging.StreamHandler)]
