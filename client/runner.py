"""Feeds the rows of a dataset to a stream, and writes what comes out."""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, cast

from ..protocol.errors import GenpoolError, NoBroker, Refused
from ..protocol.printable import plural, printable
from ..tasks.output import LLMOutput, tokens_told
from .column import ERROR, Columns, encoded, output_row, replaced
from .fingerprint import chained, contents, digest
from .fleet import Connected
from .formats.base import Encode, Line, Source
from .generator import CallOptions
from .interrupt import Interrupt
from .item import Item, Planned
from .meter import Meter
from .output import Output
from .reason import MaxFailures, by_number, counted, reason_of
from .record import Record, Share
from .retry import Retry
from .row import Ending
from .standing import Made
from .stream import Row

log = logging.getLogger("genpool.generate")

# More failures than this are only in the output, and in the count at the end.
SHOWN_FAILURES = 10


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be done with each row.

    Attributes:
        num_generations, options: of the call.
        mapping: the task's argument -> the column that it is read from, where that has another name.
        id_column: the column that rows are known by.
        max_failures: how many rows of this run may fail; None for all.
        encode_row, has_nan: as in Format.
        drawn: the shares of every row, where they are drawn once for all and for every time that the run is started.
    """

    num_generations: int
    options: CallOptions
    mapping: Mapping[str, str]
    id_column: str | None
    max_failures: MaxFailures | None
    encode_row: Encode | None
    has_nan: bool
    drawn: Sequence[int] | None


@dataclass(frozen=True, slots=True)
class _Begun:
    """A line on its way: its number among the rows, and what tells it from others."""

    line: Line
    number: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why a row has failed: as its column says it, and what failures of its kind have in common."""

    text: str
    reason: str


class Runner:
    """One run, from the line that ``lines`` gives next; ``begun`` are those under way, in order."""

    def __init__(
        self,
        work: Work,
        source: Source,
        lines: Iterator[Line],
        connected: Connected,
        meter: Meter,
        retry: Retry | None = None,
    ) -> None:
        self._work = work
        self._source = source
        self._lines = lines
        self._names = connected.names
        self._columns = connected.columns
        self._meter = meter
        self._retry = retry
        self._begun: deque[_Begun] = deque()
        self._rows = self._failed = 0
        self._reasons: dict[str, int] = {}
        self._replaced: set[str] = set()
        # Checks the options; nothing is sent before the first `next`.
        self._stream = connected.llm.stream_items(
            self._inputs(),
            work.num_generations,
            meter.advance,
            ordered=True,
            shared=self._note_share,
            **work.options,
        )

    def run(self, output: Output, interrupt: Interrupt) -> None:
        """Write all rows to ``output``, after those that are there.

        Raises:
            NoBroker, Refused: no row would do better.
            GenpoolError: too many rows have failed, or they cannot be written.
        """
        self._output, self._chain = output, output.standing.chain
        with closing(self._stream) as rows:
            for row in rows:
                begun = self._begun.popleft()
                self._copy(begun.number, interrupt)
                line, failure, made = self._made(begun.line, row)
                with interrupt.held():
                    self._write(begun, line, failure, made)
                self._count(begun.line, failure)
        self._copy(None, interrupt)

    # In the thread that reads the inputs.

    def _inputs(self) -> Iterator[Any]:
        number = self._output.standing.rows
        for line in self._lines:
            # As it was read, for so it is read again.
            known, own = digest(line, self._work.id_column), contents(line)
            line = needing(self._source, line, needed(self._columns, self._work.mapping))
            if self._retry is None or self._retry.has_failed():
                self._begun.append(_Begun(line, number, known))
                yield self._item(line, number, own)
            number += 1

    def _item(self, line: Line, number: int, own: bytes) -> Item:
        if line.problem:
            # What is no dict ends in its place, as a row that has failed, and reaches no LLM.
            return Item(None, number)
        arguments = {argument: line.row[column] for argument, column in self._work.mapping.items()}
        options = dict(line.options or {})
        seed = options.pop("seed", None)
        plan = self._output.plan(number, own)
        if not plan and self._work.drawn is not None:
            plan = [Planned(at, count) for at, count in enumerate(self._work.drawn) if count]
        return Item({**line.row, **arguments} if arguments else line.row, number, options or None, seed, plan)

    def _note_share(self, record: Record, share: Share, ending: Ending) -> None:
        self._output.note_share(record, share, ending)

    # In the thread that iterates.

    def _made(self, line: Line, row: Row) -> tuple[bytes, _Failure | None, dict[str, Made]]:
        """The line to write, why the row has failed if it has, and what each LLM made for it."""
        names, are_labels = self._columns.made(), self._columns.are_labels
        self._note_replaced(line, names, are_labels=are_labels)
        # The task may have been unknown when the line was read: a worker then leaves such a row empty.
        line = needing(self._source, line, needed(self._columns, self._work.mapping))
        failure = _failure_of(self._source, line, row)
        error = failure.text if failure else ""
        if self._work.encode_row is not None:
            written, problem = self._work.encode_row(line, row.outputs, error), ""
        else:
            made = output_row(line.row, row.outputs, names, error, are_labels=are_labels)
            written, problem = encoded(made, has_nan=self._work.has_nan)
        if problem and failure is None:
            failure = _Failure(problem, reason_of(problem))
        return written, failure, _made_by(self._names, row)

    def _write(self, begun: _Begun, line: bytes, failure: _Failure | None, made: Mapping[str, Made]) -> None:
        reason, failed = "", b""
        if failure is not None:
            reason, failed = failure.reason, encoded({**begun.line.row, ERROR: failure.text})[0]
        if self._retry is None:
            self._chain = chained(self._chain, begun.digest)
        else:
            self._retry.skip()
        number = begun.number + 1
        self._output.write(line, number, self._chain, begun.line.number, reason=reason, made=made, failed=failed)

    def _copy(self, until: int | None, interrupt: Interrupt) -> None:
        for block, rows in self._retry.copied(until) if self._retry is not None else ():
            with interrupt.held():
                self._output.write(block, rows, self._chain, self._output.standing.line)

    def _count(self, line: Line, failure: _Failure | None) -> None:
        self._rows += 1
        self._meter.wrote(self._output.standing)
        if failure is not None:
            self._failed += 1
            self._reasons = counted(self._reasons, failure.reason)
            self._tell_failure(line, failure)
        limit = self._work.max_failures
        if limit is not None and limit.are_passed(self._failed, self._rows):
            reason, rows = by_number(self._reasons)[0]
            raise GenpoolError(
                f"{self._failed} of {plural(self._rows, 'row')} {'has' if self._failed == 1 else 'have'} failed, "
                f"which is more than --max-failures {limit}; {rows} of them for this: {printable(reason)}"
            )

    def _tell_failure(self, line: Line, failure: _Failure) -> None:
        if self._failed <= SHOWN_FAILURES:
            place = "" if line.problem else f"{self._source.unit} {line.number} failed: "
            log.warning("%s%s", place, printable(failure.text))
        if self._failed == SHOWN_FAILURES:
            log.warning("more failures are not shown; the column `error` tells of each")

    def _note_replaced(self, line: Line, made: Sequence[str], *, are_labels: bool) -> None:
        new = [name for name in replaced(line.row, made, are_labels=are_labels) if name not in self._replaced]
        if new and self._work.encode_row is None:
            self._replaced.update(new)
            names = ", ".join(map(repr, new))
            log.warning("the input has columns of its own that the output has not, as it makes them anew: %s", names)


def needed(columns: Columns, mapping: Mapping[str, str]) -> list[str]:
    """The columns that a row must have, as far as they are known by now."""
    return list(dict.fromkeys([*mapping.values(), *(name for name in columns.needed() if name not in mapping)]))


def needing(source: Source, line: Line, names: Sequence[str]) -> Line:
    """``line``, with a problem when it lacks one of the columns ``names``."""
    if line.problem or not (lacking := source.lacking(line.number, line.row, names)):
        return line
    return Line(line.number, line.row, lacking, line.options)


def _failure_of(source: Source, line: Line, row: Row) -> _Failure | None:
    """Why the row has failed, if it has. Raises NoBroker and Refused, after which no row would do better."""
    if line.problem:
        # Where it is says nothing of why.
        return _Failure(line.problem, reason_of(line.problem.removeprefix(f"{source.at(line.number)}: ")))
    if row.error is None:
        return None
    for kind in (NoBroker, Refused):
        if issubclass(row.error.kind, kind):
            raise kind(row.error.message)
    text = "; ".join(str(one) for one in (row.error, *row.error.others))
    return _Failure(text, reason_of(f"{row.error.type_name}: {row.error.message}"))


def _made_by(names: Sequence[str], row: Row) -> dict[str, Made]:
    made: dict[str, Made] = {}
    for at, output in zip(row.llms, row.outputs, strict=True):
        if output.get("raw_output") is not None:
            made[names[at]] = made.get(names[at], Made()) + _made_of(output)
    return made


def _made_of(output: LLMOutput) -> Made:
    usage = output.get("usage")
    tokens = (tokens_told(usage, "prompt_tokens"), tokens_told(usage, "completion_tokens"))
    return Made(1, *tokens, _cost_told(usage))


def _cost_told(usage: object) -> float:
    """What an output's usage says that it cost; 0 where it says nothing that can be added up."""
    cost: Any = cast(dict[str, Any], usage).get("cost") if isinstance(usage, dict) else None
    return float(cost) if type(cost) in (int, float) and 0 <= cost <= sys.float_info.max else 0.0
