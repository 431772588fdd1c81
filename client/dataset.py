"""A dataset through LLMs, in order, into a file that can be gone on with: what ``genpool generate`` does.

::

    Source ─ lines ─▶ stream(ordered=True) ─ rows ─▶ Output ─▶ working file ─▶ the target, in its format
                       ▲                    └ shares ─▶ Journal ─▶ what is done and what is owed, the next time
                       └ Item: what the journal knows of a row's shares

A line that cannot be used goes the same way: it fails at once, in its place.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import random
import shlex
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import chain as joined
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from ..protocol.errors import ConfigurationError, GenpoolError
from ..protocol.logs import say
from ..protocol.printable import plural
from ..protocol.telemetry import exporting
from .call import LOST_AFTER_S
from .claim import Claim, Places, claim, errors_path, is_resumable, require_appendable
from .column import Columns
from .fingerprint import plain, task_settings
from .fleet import Choice, Connected, connected
from .formats.base import STANDARD_STREAM, Format, Line, Source, check_path
from .formats.format import format_of, open_source
from .formats.target import Target, check_errors, check_input, check_target, keep_mode, sync_folder
from .generator import CallOptions
from .interrupt import Interrupt, Interrupted, interruptible
from .meter import LineMeter, Meter, awaited, bar
from .output import LineFile, Output, ResumableOutput
from .passed import after
from .reason import MaxFailures
from .report import now_text, report_of, summary, workers_lost, write_report
from .retry import Retry, old_rows
from .runner import SHOWN_FAILURES, Runner, Work, needed
from .share import check_weights, draw_shares
from .standing import Standing

log = logging.getLogger("genpool.generate")

# How long the broker's report is waited for at the end of a run.
_REPORT_S = 2.0


@dataclass(frozen=True, slots=True)
class GenerateSettings:
    """What ``genpool generate`` is asked for.

    Attributes:
        source, target: paths; ``-`` is standard input or output.
        choice: the LLMs.
        source_format, target_format: in place of those that the paths tell.
        seed, draw, weights, generation_kwargs: as in CallOptions.
        timeout_s: what is not answered so long after the start has failed.
        if_lost, lost_after_s, hedge: as in CallOptions.
        mapping: the task's argument -> the column that it is read from.
        id_column: the column that rows are known by when a run goes on; None has all their contents count.
        errors: the path where rows that have failed go too.
        max_failures: how many rows may fail; None for all.
        only_failed: do the rows again that have failed in the finished target.
        overwrite: begin afresh, whatever the target holds.
        strict: check all rows before any work.
        quiet: no bar, no lines about how far it is, no sentence at a good end.
        draws_bar: whether a bar can be drawn.
    """

    source: str
    target: str
    choice: Choice
    num_generations: int = 1
    source_format: str | None = None
    target_format: str | None = None
    seed: int | None = None
    draw: Literal["call", "row"] = "row"
    weights: Sequence[float] | None = None
    generation_kwargs: Mapping[str, Any] | None = None
    timeout_s: float | None = None
    if_lost: Literal["wait", "redraw", "fill"] = "wait"
    lost_after_s: float = LOST_AFTER_S
    hedge: bool | float | None = None
    mapping: Mapping[str, str] = field(default_factory=dict[str, str])
    id_column: str | None = None
    errors: str | None = None
    max_failures: MaxFailures | None = None
    only_failed: bool = False
    overwrite: bool = False
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
            hedge=self.hedge,
            generation_kwargs=self.generation_kwargs,
        )

    @property
    def format(self) -> Format:
        """The target's format. Raises ConfigurationError."""
        return format_of(self.target, self.target_format)

    @property
    def asked(self) -> dict[str, Any]:
        """What must be the same each time that a run is started, so that its rows are of one kind."""
        return plain(
            {
                "--llm": list(self.choice.llms),
                "--num-generations": self.num_generations,
                "--seed": self.seed,
                "--draw": self.draw,
                "--weights": self.weights,
                "--set": self.generation_kwargs,
                "--map": dict(self.mapping),
                "--id-column": self.id_column,
                "the output's format": self.format.name,
                **task_settings(self.choice.task),
            }
        )


Connect = Callable[[Choice], AbstractContextManager[Connected]]


@dataclass(slots=True)
class Progress:
    """How far a run is: ``output`` from when rows are written, and how to go on when it is cut off.

    ``rows`` is how many the input has, where that is known.
    """

    settings: GenerateSettings
    output: Output | None = None
    claim: Claim | None = None
    rows: int | None = None

    @property
    def standing(self) -> Standing:
        """What is written by now."""
        if self.output is not None:
            return self.output.standing
        return self.claim.standing if self.claim is not None else Standing()

    @property
    def summary(self) -> Standing:
        """``standing``, with all that is counted."""
        return self.output.summary() if self.output else Standing()

    @property
    def how_to_go_on(self) -> str:
        """What is there, and what to do about the rest."""
        done = self.standing
        text = "no row was written"
        if done.rows:
            text = f"{_rows_are(done.rows)} written whole, up to line {done.line} of the input{_failed(done)}"
        # Shares of rows that are not written are kept too, from when there is an output.
        if self.claim is not None and (done.rows or self.output is not None):
            but = " without --overwrite" if self.settings.overwrite else ""
            return f"{text}; to go on, run the same command again{but}"
        if not done.rows:
            return text
        source, target = self.settings.source, self.settings.target
        if STANDARD_STREAM in (source, target):
            return f"{text}; to go on, give line {done.line + 1} and what follows"
        rest = f"tail -n +{done.line + 1} {shlex.quote(source)}"
        return f"{text}; to go on: {rest} | genpool generate -i - -o - (your other options) >> {shlex.quote(target)}"


def run(settings: GenerateSettings) -> int:
    """Generate for every row of the source, and return the exit code.

    Stopped by a signal, the target holds whole rows in the order of the source, and stderr says how to go on. Killed,
    it does too, and the same settings go on from there.

    Raises:
        ConfigurationError: for what the user has to mend, before anything is sent or written.
        NoBroker, Refused: as for any other call; when it happens in mid-run, stderr says how to go on.
        GenpoolError: when too many rows have failed, or they cannot be written.
    """
    progress = Progress(settings)
    try:
        with exporting("genpool-generate"), interruptible() as interrupt:
            standing, lines = _run(settings, progress, interrupt)
    except Interrupted as stop:
        _say(f"stopped by {signal.Signals(stop.number).name}; {progress.how_to_go_on}")
        return 128 + stop.number
    except BrokenPipeError:
        _say(f"nobody reads the output any more; {progress.how_to_go_on}")
        return 128 + signal.SIGPIPE
    except GenpoolError:
        # Before that, it is the user who has to do something else.
        if progress.output is not None and progress.standing.rows:
            _say(f"stopped by an error; {progress.how_to_go_on}")
        raise
    if standing.failed or not settings.quiet:
        for line in lines:
            _say(line)
    return 1 if standing.failed else 0


def _run(settings: GenerateSettings, progress: Progress, interrupt: Interrupt) -> tuple[Standing, list[str]]:
    if not (settings.source and settings.target):  # which `Path` takes for the folder that the command was started in
        raise ConfigurationError("the name of the input or the output is empty: name a file")
    check_path(settings.source)
    check_path(settings.target)
    with open_source(
        settings.source,
        settings.source_format,
        num_generations=settings.num_generations,
        is_read_twice=settings.strict or settings.only_failed,
    ) as source:
        check_target(settings.target, source, settings.format)
        return generate(settings, source, connected, progress, interrupt)


def generate(
    settings: GenerateSettings, source: Source, connect: Connect, progress: Progress, interrupt: Interrupt
) -> tuple[Standing, list[str]]:
    """Do all rows of ``source``, and return what is written and what to say of it. Raises as ``run``."""
    places = None
    if is_resumable(settings.target):
        places = Places.of(settings.target, settings.format, is_beside=settings.only_failed)
        check_input(source, places.all)
    if settings.errors is not None:
        check_errors(settings.errors, source, [] if places is None else places.all)
    if places is not None:
        with claim(places, settings.asked, overwrite=settings.overwrite, is_retry=settings.only_failed) as held:
            progress.claim = held
            return _Run(settings, source, connect, progress, interrupt).resumable(held)
    if settings.only_failed:
        raise ConfigurationError("--only-failed does rows of a file again: name it with --output")
    return _Run(settings, source, connect, progress, interrupt).through()


@dataclass(frozen=True, slots=True)
class _Run:
    """One run of the settings, from wherever it begins to its end."""

    settings: GenerateSettings
    source: Source
    connect: Connect
    progress: Progress
    interrupt: Interrupt

    def through(self) -> tuple[Standing, list[str]]:
        """A run that cannot go on later: into a pipe, say."""
        settings = self.settings
        self._check_early()
        with self.connect(settings.choice) as there:
            self._check_late(there)
            with self._meter(Standing(), there) as meter:
                runner = self._runner(there, meter, self.source.read(), _drawn(settings, there))
                path = self._errors_path(None)
                with Output(Target(settings.target), LineFile(path) if path else None) as output:
                    self._work(runner, output)
                    done = output.summary()
        return done, [_written(done)]

    def resumable(self, held: Claim) -> tuple[Standing, list[str]]:
        """A run into a file: begun, or gone on with."""
        settings = self.settings
        self._check_early()
        if settings.only_failed and not held.is_retry:
            if not held.standing.failed:
                return held.standing, [f"no row of {held.places.target} has failed"]
            held = held.for_retry()
        lines = self._lines(held)
        if held.is_finished:
            more = next(lines, None)
            if more is None:
                return held.standing, [_all_done(held)]
            require_appendable(held)
            lines = joined([more], lines)
        choice = settings.choice
        if not choice.llms and held.header:
            choice = dataclasses.replace(choice, llms=held.header["pool"])
        with self.connect(choice) as there:
            if self._check_late(there):
                lines = self._lines(held)
            done = self._resumed(held, there, lines)
        report = report_of(held.header, done, is_finished=True)
        _finish(held, settings.format, report)
        return done, [_written(done), *summary(report)]

    def _resumed(self, held: Claim, there: Connected, lines: Iterator[Line]) -> Standing:
        """Write what is left, and return what is written then."""
        settings, places = self.settings, held.places
        header = {**held.header, **self._errors} if held.is_going_on else self._header(held, there)
        retry = None
        if held.is_retry:
            reading, writing = (old_rows(places.target, settings.format) for _ in range(2))
            retry = Retry(reading, writing, held.standing.rows)
        with self._meter(held.standing, there) as meter:
            runner = self._runner(there, meter, lines, header["drawn"], retry)
            path = self._errors_path(held)
            held.begin(header)
            try:
                with ResumableOutput(places.working, path, held.journal, held.standing) as output:
                    if not settings.format.is_folder:
                        keep_mode(places.target, places.working)
                    try:
                        self._work(runner, output)
                    finally:
                        output.note_lost(workers_lost(_fleet_report(there), there.names, output.seconds))
                    return output.summary()
            except BaseException:
                self._report_stop(held)
                raise

    def _errors_path(self, held: Claim | None) -> Path | None:
        settings = self.settings
        return errors_path(settings.errors, held, overwrite=settings.overwrite) if settings.errors else None

    def _report_stop(self, held: Claim) -> None:
        """The report of a run that was cut off."""
        try:
            write_report(held.places.report, report_of(held.header, self.progress.summary, is_finished=False))
        except GenpoolError as error:
            log.warning("%s", error)

    def _work(self, runner: Runner, output: Output) -> None:
        self.progress.output = output
        runner.run(output, self.interrupt)
        if not output.standing.rows:
            log.warning("%s holds no rows", self.source.name)

    def _header(self, held: Claim, there: Connected) -> dict[str, Any]:
        """What a run is begun with; one that goes on from a finished one keeps what that was begun with."""
        return {
            "errors": None,
            "started": now_text(),
            "pool": list(there.names),
            "drawn": _drawn(self.settings, there),
            **held.header,
            "run": os.urandom(8).hex(),
            "settings": self.settings.asked,
            **self._errors,
        }

    @property
    def _errors(self) -> dict[str, Any]:
        """What a header says of the file of errors that is asked for, if one is."""
        errors = self.settings.errors
        return {"errors": str(Path(errors).resolve())} if errors else {}

    def _runner(
        self,
        there: Connected,
        meter: Meter,
        lines: Iterator[Line],
        drawn: Sequence[int] | None,
        retry: Retry | None = None,
    ) -> Runner:
        settings = self.settings
        work = Work(
            num_generations=settings.num_generations,
            options=settings.call_options,
            mapping=settings.mapping,
            id_column=settings.id_column,
            max_failures=settings.max_failures,
            encode_row=settings.format.encode_row,
            has_nan=settings.format.has_nan,
            drawn=drawn,
        )
        return Runner(work, self.source, lines, there, meter, retry)

    def _meter(self, standing: Standing, there: Connected) -> AbstractContextManager[Meter]:
        settings = self.settings
        if settings.quiet:
            return nullcontext(Meter())
        if not settings.draws_bar:
            return nullcontext(LineMeter(standing, self.progress.rows))
        return bar(
            standing,
            self.progress.rows,
            settings.num_generations,
            lambda: awaited(there.link.fleet, there.names),
        )

    # The input.

    def _lines(self, held: Claim) -> Iterator[Line]:
        """The rows that are not written yet. Raises ConfigurationError where those that are have changed."""
        id_column, finished = self.settings.id_column, held.finished
        if finished is not None:
            for _ in after(self.source, finished, id_column, held.places):
                raise ConfigurationError(
                    f"{self.source.name} has more rows than {held.places.target}: run without --only-failed first"
                )
            self.source.rewind()
            return islice(self.source.read(), held.standing.rows, None)
        lines = after(self.source, held.standing, id_column, held.places)
        return lines if held.standing.rows else self._with_ids(lines)

    def _with_ids(self, lines: Iterator[Line]) -> Iterator[Line]:
        """``lines``, after a look whether the first has what rows are known by. Raises ConfigurationError."""
        name = self.settings.id_column
        if name is None or (first := next(lines, None)) is None:
            return lines
        if not first.problem and (lacking := self.source.lacking(first.number, first.row, [name])):
            raise ConfigurationError(f"rows are to be known by their column {name!r}: {lacking}")
        return joined([first], lines)

    def _check_early(self) -> None:
        """What can be checked before the LLMs are asked. Raises ConfigurationError."""
        settings = self.settings
        if settings.draws_bar and not settings.quiet:
            self.progress.rows = self.source.count()
        if settings.strict:
            task = settings.choice.task
            names = [settings.mapping.get(name, name) for name in task.input_args_names] if task else []
            self._check(names)

    def _check_late(self, there: Connected) -> bool:
        """Now that the LLMs have told of their tasks: whether all was read again. Raises ConfigurationError."""
        self._check_mapping(there.columns)
        if not self.settings.strict or self.settings.choice.task is not None:
            return False
        if not there.columns.are_known:
            log.warning(
                "the columns are not checked before the start: LLMs are loading, and their task is not known yet"
            )
        self.source.rewind()
        self._check(needed(there.columns, self.settings.mapping))
        return True

    def _check_mapping(self, columns: Columns) -> None:
        """Refuse an argument that the task has not: misspelt, it would do nothing. Raises ConfigurationError."""
        if not columns.are_known or hasattr(self.settings.choice.task, "parse_output_of"):
            return  # that may read whatever the row has
        arguments = columns.needed()
        for name, column in self.settings.mapping.items():
            if name not in arguments:
                has = ", ".join(map(repr, arguments)) or "none"
                raise ConfigurationError(
                    f"the task has no argument {name!r} to read from the column {column!r}: it has {has}"
                )

    def _check(self, names: Sequence[str]) -> None:
        """Refuse a source with lines that cannot be used. Raises ConfigurationError."""
        problems = (line.problem for line in self.source.lines(lambda: names) if line.problem)
        shown = list(islice(problems, SHOWN_FAILURES))
        if shown:
            more = sum(1 for _ in problems)
            shown += [f"and {more} more"] if more else []
            raise ConfigurationError("\n  ".join(["with --strict nothing is sent before all rows are right:", *shown]))
        self.source.rewind()


def _drawn(settings: GenerateSettings, there: Connected) -> list[int] | None:
    """The shares of every row, where they are drawn once; None where they are drawn anew for each."""
    if settings.draw == "row":
        return None
    weights = check_weights(settings.weights, len(there.names))
    return draw_shares(settings.num_generations, weights, random.Random(settings.seed))


def _fleet_report(there: Connected) -> Mapping[str, Any] | None:
    try:
        return there.link.status(_REPORT_S)
    except GenpoolError:
        return None  # the rows are there, whatever has become of the broker


def _finish(held: Claim, format: Format, report: Mapping[str, Any]) -> None:
    """All rows are in the working file: have them in the target, and forget the run.

    Killed anywhere in here, the same command does the rest: see claim.py, which knows this order.
    """
    places = held.places
    write_report(places.report, report)
    if places.working != places.target:
        if format.export is None:
            places.working.replace(places.target)
            sync_folder(places.target.parent)
        else:
            format.export(places.working, places.target)
            places.working.unlink()
    held.journal.remove()


def _written(done: Standing) -> str:
    return f"{_rows_are(done.rows)} written{_failed(done)}; it took {done.seconds:.1f} s"


def _all_done(held: Claim) -> str:
    done, target = held.standing, held.places.target
    rows = "the only row is" if done.rows == 1 else f"all {done.rows} rows are"
    again = f": --only-failed does {'it' if done.failed == 1 else 'those'} again" if done.failed else ""
    return f"{rows} in {target}{_failed(done)}{again}"


def _failed(done: Standing) -> str:
    """How many of the rows that were told have failed, if some have."""
    if done.rows == done.failed == 1:
        return ", and it failed"
    return f", {done.failed} of them failed" if done.failed else ""


def _rows_are(count: int) -> str:
    return f"{plural(count, 'row')} {'is' if count == 1 else 'are'}"


def _say(text: str) -> None:
    try:
        say(text)
    except OSError:
        pass  # nobody reads stderr any more
