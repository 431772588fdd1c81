"""A file of rows through the LLMs of a fleet, in order, into another file: what ``genpool generate`` does.

::

    Source ─ lines ─▶ stream(ordered=True) ─ rows ─▶ output_row ─▶ Target
      (a line that cannot be used goes the same way: it fails at once, in its place)
"""

from __future__ import annotations

import logging
import shlex
import signal
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import click

from ..protocol.errors import ConfigurationError, GenpoolError, NoBroker, Refused
from .call import LOST_AFTER_S
from .column import Columns, encoded, output_row, replaced
from .fleet import Choice, connected
from .generator import CallOptions
from .interrupt import Interrupt, Interrupted, interruptible
from .jsonl import STANDARD_STREAM, Line, Source, Target, check_target
from .meter import LineMeter, Meter, bar
from .pool import LLMPool
from .process_llm import ProcessLLM
from .stream import Row

log = logging.getLogger("genpool.generate")

# More failures than this are only in the output, and in the count at the end.
_SHOWN_FAILURES = 10


@dataclass(frozen=True, slots=True)
class GenerateSettings:
    """What ``genpool generate`` is asked for.

    Attributes:
        source, target: paths; ``-`` is standard input or output.
        choice: the LLMs.
        seed, draw, weights: as in CallOptions.
        timeout_s: what is not answered so long after the start has failed.
        if_lost, lost_after_s: as in CallOptions.
        strict: check all rows before any work.
        quiet: no bar, no lines about how far it is, no sentence at a good end.
        draws_bar: whether a bar can be drawn.
    """

    source: str
    target: str
    choice: Choice
    num_generations: int = 1
    seed: int | None = None
    draw: Literal["call", "row"] = "row"
    weights: Sequence[float] | None = None
    timeout_s: float | None = None
    if_lost: Literal["wait", "redraw", "fill"] = "wait"
    lost_after_s: float = LOST_AFTER_S
    strict: bool = False
    quiet: bool = False
    draws_bar: bool = False

    @property
    def call_options(self) -> CallOptions:
        """The options of the one call that a run is."""
        return CallOptions(
            on_error="fill",
            seed=self.seed,
            draw=self.draw,
            weights=self.weights,
            timeout=self.timeout_s,
            if_lost=self.if_lost,
            lost_after_s=self.lost_after_s,
        )


@dataclass(slots=True)
class Tally:
    """What is written by now: ``line`` is the last line of the input that is."""

    rows: int = 0
    failed: int = 0
    line: int = 0


def run(settings: GenerateSettings) -> int:
    """Generate for every row of the source, and return the exit code.

    Stopped by a signal, the target holds whole rows in the order of the source, and stderr says how to go on.

    Raises:
        ConfigurationError: for what the user has to mend, before anything is sent or written.
        NoBroker, Refused: as for any other call; when it happens in mid-run, stderr says how to go on.
        GenpoolError: when the target cannot be written.
    """
    tally = Tally()
    began = time.monotonic()
    try:
        with interruptible() as interrupt:
            _run(settings, tally, interrupt)
    except Interrupted as stop:
        _say(f"stopped by {signal.Signals(stop.number).name}; {_how_to_go_on(settings, tally)}")
        return 128 + stop.number
    except BrokenPipeError:
        _say(f"nobody reads the output any more; {_how_to_go_on(settings, tally)}")
        return 128 + signal.SIGPIPE
    except GenpoolError:
        if tally.rows:
            _say(f"stopped by an error; {_how_to_go_on(settings, tally)}")
        raise
    if tally.failed or not settings.quiet:
        failed = f", {tally.failed} of them failed" if tally.failed else ""
        _say(f"{tally.rows} rows are written{failed}; it took {time.monotonic() - began:.1f} s")
    return 1 if tally.failed else 0


def _run(settings: GenerateSettings, tally: Tally, interrupt: Interrupt) -> None:
    with Source(settings.source, is_read_twice=settings.strict) as source:
        check_target(settings.target, source)
        task = settings.choice.task
        if settings.strict:
            _check(source, list(task.input_args_names) if task else [])
        with connected(settings.choice) as (llm, columns):
            if settings.strict and task is None:
                _check_again(source, columns)
            with _meter(settings, source) as meter:
                _Runner(settings, source, llm, columns, meter, tally).run(interrupt)
        if not tally.rows:
            log.warning("%s holds no rows", source.name)


def _meter(settings: GenerateSettings, source: Source) -> AbstractContextManager[Meter]:
    if settings.quiet:
        return nullcontext(Meter())
    if not settings.draws_bar:
        return nullcontext(LineMeter())
    rows = source.count()
    return bar(None if rows is None else rows * settings.num_generations)


def _check(source: Source, needed: Sequence[str]) -> None:
    """Refuse a source with lines that cannot be used. Raises ConfigurationError."""
    problems = (line.problem for line in source.lines(lambda: needed) if line.problem)
    shown = list(islice(problems, _SHOWN_FAILURES))
    if shown:
        more = sum(1 for _ in problems)
        shown += [f"and {more} more"] if more else []
        raise ConfigurationError("\n  ".join(["with --strict nothing is sent before all rows are right:", *shown]))
    source.rewind()


def _check_again(source: Source, columns: Columns) -> None:
    """Now that the LLMs have told of their tasks: ``_check``."""
    if not columns.are_known:
        log.warning("the columns are not checked before the start: LLMs are loading, and their task is not known yet")
    _check(source, columns.needed())


class _Runner:
    """Feeds the lines to the stream and writes what comes out; ``begun`` are the lines in between, in order."""

    def __init__(
        self,
        settings: GenerateSettings,
        source: Source,
        llm: LLMPool | ProcessLLM,
        columns: Columns,
        meter: Meter,
        tally: Tally,
    ) -> None:
        self._settings = settings
        self._source = source
        self._columns = columns
        self._meter = meter
        self._tally = tally
        self._begun: deque[Line] = deque()
        self._replaced: set[str] = set()
        # Checks the options, before the target is opened and so emptied; nothing is sent before the first `next`.
        self._rows = llm.stream(
            self._inputs(), settings.num_generations, meter.advance, ordered=True, **settings.call_options
        )

    def run(self, interrupt: Interrupt) -> None:
        with Target(self._settings.target) as target, closing(self._rows) as rows:
            for row in rows:
                line = self._begun.popleft()
                made, failure = self._row(line, row)
                with interrupt.held():
                    target.write(made)
                    self._count(line, failure)

    def _inputs(self) -> Iterator[Any]:
        for line in self._source.lines(self._columns.needed):
            self._begun.append(line)
            # What is no dict ends in its place, as a row that has failed, and reaches no LLM.
            yield None if line.problem else line.row

    def _row(self, line: Line, row: Row) -> tuple[bytes, str]:
        """The row to write, and why it has failed if it has."""
        made = self._columns.made()
        self._note_replaced(line, made)
        error = line.problem or _error(row)
        # The task may have been unknown when the line was read: a worker then leaves such a row empty.
        error = error or self._source.lacking(line.number, line.row, self._columns.needed())
        written, problem = encoded(output_row(line.row, row.outputs, made, error))
        return written, error or problem

    def _count(self, line: Line, failure: str) -> None:
        tally = self._tally
        tally.rows += 1
        tally.line = line.number
        if failure:
            tally.failed += 1
            if tally.failed <= _SHOWN_FAILURES:
                log.warning("%s", failure if line.problem else f"line {line.number} failed: {failure}")
            if tally.failed == _SHOWN_FAILURES:
                log.warning("more failures are not shown; the column `error` tells of each")
        self._meter.wrote(tally.rows, tally.failed)

    def _note_replaced(self, line: Line, made: Sequence[str]) -> None:
        new = [name for name in replaced(line.row, made) if name not in self._replaced]
        if new:
            self._replaced.update(new)
            names = ", ".join(map(repr, new))
            log.warning("the input has columns of its own that the output has not, as it makes them anew: %s", names)


def _error(row: Row) -> str:
    """Why the row has failed, if it has. Raises NoBroker and Refused, after which no row would do better."""
    if row.error is None:
        return ""
    for kind in (NoBroker, Refused):
        if issubclass(row.error.kind, kind):
            raise kind(row.error.message)
    return "; ".join(str(one) for one in (row.error, *row.error.others))


def _how_to_go_on(settings: GenerateSettings, tally: Tally) -> str:
    if not tally.rows:
        return "no row was written"
    source, target = settings.source, settings.target
    done = f"{tally.rows} rows are written whole, up to line {tally.line} of the input ({tally.failed} of them failed)"
    if STANDARD_STREAM in (source, target):
        return f"{done}; to go on, give line {tally.line + 1} and what follows"
    rest = f"tail -n +{tally.line + 1} {shlex.quote(source)}"
    return f"{done}; to go on: {rest} | genpool generate -i - -o - (your other options) >> {shlex.quote(target)}"


def _say(text: str) -> None:
    try:
        click.echo(f"genpool: {text}", err=True)
    except OSError:
        pass  # nobody reads stderr any more
