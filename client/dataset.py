"""A file of rows through the LLMs of a fleet, in order, into another file: what ``genpool generate`` does.

::

    Source ─ lines ─▶ stream(ordered=True) ─ rows ─▶ output_row ─▶ Target
      (a line that cannot be used goes the same way: it fails at once, in its place)
"""

from __future__ import annotations

import logging
import shlex
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import click

from ..protocol.errors import ConfigurationError, GenpoolError, NoBroker, Refused
from ..protocol.messages import LLMInfo
from ..tasks.base import TaskLike
from .column import Columns, encoded, output_row, replaced
from .generator import CallOptions
from .interrupt import Interrupt, Interrupted, interruptible
from .jsonl import STANDARD_STREAM, Line, Source, Target, check_target
from .link import Link, leave, link_to
from .meter import LineMeter, Meter, bar
from .pool import LLMPool
from .process_llm import ProcessLLM
from .stream import Row

log = logging.getLogger("genpool.generate")

# More failures than this are only in the output, and in the count at the end.
_SHOWN_FAILURES = 10
# A wait longer than this says what it waits for.
_QUIET_WAIT_S = 2.0


@dataclass(frozen=True, slots=True)
class GenerateSettings:
    """What ``genpool generate`` is asked for.

    Attributes:
        source, target: paths; ``-`` is standard input or output.
        llms: names; none stands for all LLMs of the fleet that share a task.
        broker: its address.
        task: renders the prompts here; None leaves that to the workers' own tasks.
        seed, draw, weights: as in CallOptions.
        timeout_s: what is not answered so long after the start has failed.
        wait_s: how long the broker, or an LLM that nobody has announced, is waited for.
        strict: check all rows before any work.
        quiet: no bar, no lines about how far it is, no sentence at a good end.
        draws_bar: whether a bar can be drawn.
    """

    source: str
    target: str
    broker: str
    num_generations: int = 1
    llms: Sequence[str] = ()
    task: TaskLike | None = None
    seed: int | None = None
    draw: Literal["call", "row"] = "call"
    weights: Sequence[float] | None = None
    timeout_s: float | None = None
    wait_s: float = 60.0
    strict: bool = False
    quiet: bool = False
    draws_bar: bool = False

    @property
    def call_options(self) -> CallOptions:
        """The options of the one call that a run is."""
        return CallOptions(
            on_error="fill", seed=self.seed, draw=self.draw, weights=self.weights, timeout=self.timeout_s
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
        if settings.strict:
            _check(source, list(settings.task.input_args_names) if settings.task else [])
        with _fleet(settings) as (llm, columns):
            if settings.strict and settings.task is None:
                if not columns.are_known:
                    log.warning("the columns are not checked before the start: the LLMs are still loading")
                _check(source, columns.needed())
            total = source.count() if settings.draws_bar else None
            generations = None if total is None else total * settings.num_generations
            with Target(settings.target) as target, _meter(settings, generations) as meter:
                _Runner(settings, source, llm, columns, meter, tally).write_to(target, interrupt)
        if not tally.rows:
            log.warning("%s holds no rows", source.name)


def _meter(settings: GenerateSettings, generations: int | None) -> AbstractContextManager[Meter]:
    if settings.quiet:
        return nullcontext(Meter())
    return bar(generations) if settings.draws_bar else nullcontext(LineMeter())


def _check(source: Source, needed: Sequence[str]) -> None:
    """Refuse a source with lines that cannot be used. Raises ConfigurationError."""
    problems = (line.problem for line in source.lines(lambda: needed) if line.problem)
    shown = list(islice(problems, _SHOWN_FAILURES))
    if shown:
        more = sum(1 for _ in problems)
        shown += [f"and {more} more"] if more else []
        raise ConfigurationError("\n  ".join(["with --strict nothing is sent before all rows are right:", *shown]))
    source.rewind()


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
        self._llm = llm
        self._columns = columns
        self._meter = meter
        self._tally = tally
        self._begun: deque[Line] = deque()
        self._replaced: set[str] = set()

    def write_to(self, target: Target, interrupt: Interrupt) -> None:
        rows = self._llm.stream(
            self._inputs(),
            self._settings.num_generations,
            self._meter.advance,
            ordered=True,
            **self._settings.call_options,
        )
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


@contextmanager
def _fleet(settings: GenerateSettings) -> Generator[tuple[LLMPool | ProcessLLM, Columns]]:
    """The LLMs that are asked for, once the broker knows them all, and the columns of their tasks.

    Raises:
        ConfigurationError: when nobody has announced one of them, or they do not go together.
        NoBroker, Refused: as ``Link.wait_for``.
    """
    link = link_to(settings.broker)
    try:
        llm = _connected(link, settings)
        try:
            names = [voice.llm_name for voice in (llm.llms if isinstance(llm, LLMPool) else [llm])]
            log.info("generating with %s at %s", ", ".join(names), settings.broker)
            yield llm, Columns(settings.task, link, names)
        finally:
            llm.teardown()
    finally:
        leave(link)


def _connected(link: Link, settings: GenerateSettings) -> LLMPool | ProcessLLM:
    fleet = _wait(link, settings, lambda fleet: fleet if _is_there(fleet, settings.llms) else None)
    names = settings.llms or [name for name, info in fleet.items() if _is_served(info)]
    if len(names) == 1:
        return ProcessLLM.connect(names[0], settings.broker, settings.task, wait_s=settings.wait_s)
    return LLMPool.connect(settings.llms or None, settings.broker, settings.task, wait_s=settings.wait_s)


def _is_there(fleet: dict[str, LLMInfo], llms: Sequence[str]) -> bool:
    """Whether all of ``llms`` are announced; without names, whether some are served and none loads its first worker."""
    if llms:
        return fleet.keys() >= set(llms)
    served = [info for info in fleet.values() if _is_served(info)]
    return bool(served) and all(info.ready or not info.loading for info in served)


def _is_served(info: LLMInfo) -> bool:
    return info.ready + info.loading + info.unwell > 0


def _wait(
    link: Link, settings: GenerateSettings, question: Callable[[dict[str, LLMInfo]], dict[str, LLMInfo] | None]
) -> dict[str, LLMInfo]:
    notice = threading.Timer(_QUIET_WAIT_S, lambda: _tell_wait(link, settings))
    notice.daemon = True
    notice.start()
    try:
        fleet = link.wait_for(question, settings.wait_s)
    finally:
        notice.cancel()
    if fleet is None:
        raise ConfigurationError(f"{_unmet(link, settings)} within {settings.wait_s:g} s")
    return fleet


def _tell_wait(link: Link, settings: GenerateSettings) -> None:
    # Without a broker, the link itself tells.
    if link.fleet is not None:
        log.info("%s yet; waiting up to %g s", _unmet(link, settings), settings.wait_s)


def _unmet(link: Link, settings: GenerateSettings) -> str:
    """The sentence on what is not there, without its end."""
    fleet = link.fleet or {}
    known = ", ".join(sorted(fleet)) or "none"
    if missing := ", ".join(repr(name) for name in settings.llms if name not in fleet):
        return f"no worker has announced an LLM named {missing} at {settings.broker} (known there: {known})"
    return f"no LLM is ready at {settings.broker} (known there: {known})"


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
