"""One generating call: inputs become rows for several LLMs, and their endings become outputs again, in order.

Rows are begun in the caller's thread, and end in the I/O thread of each LLM's link or on its callbacks thread: see
row.Owner.
"""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from ..protocol.content import Failure, unpack_each_outputs, unpack_failure, unpack_outputs
from ..protocol.errors import (
    ConfigurationError,
    DecodeError,
    Expired,
    GenpoolError,
    LLMLost,
    RemoteError,
    RowError,
    known_error,
)
from ..protocol.frames import Payload
from ..protocol.messages import Outcome
from ..protocol.printable import plural
from ..tasks.base import text_of
from ..tasks.output import LLMOutput, empty_output, parsed_output
from .ahead import Ahead
from .draw import Draw
from .item import Item
from .maker import Voice
from .part import BegunPart, Part
from .record import Record, Share, planned_shares
from .row import Ending, Row, RowSpec
from .row_maker import RowMaker
from .run import MOST_ROWS, Run
from .span import call_span

log = logging.getLogger("genpool.client")

# To look it up in its class takes as long as to look at a row.
_DONE: int = Outcome.DONE

# So many inputs become rows before the first of them are sent: a large value leaves the LLMs idle at the beginning of a
# long list, a small one sends small messages.
_BEGIN_AT_ONCE = MOST_ROWS

# Nor more bytes of them: larger rows take long to pack, and in a run they would be kept until the last of it has ended.
_MOST_PART_BYTES = 4 * 1024 * 1024

# Fewer rows than this are not worth a run.
_LEAST_RUN = 8

# So many rows end before it is told which inputs are finished by them, and others begin in their place: a large value
# delays that, a small one takes the lock for few.
_ENDS_AT_ONCE = 256

# How long an LLM may be served by nobody before it is lost. It should be longer than a worker takes that was started
# again and loads a large model, and no longer than a person would watch a call stand still.
LOST_AFTER_S = 600.0

# How many times its LLM's usual time a row must have run before it is hedged. Rows of unlike lengths often take twice
# as long as usual by themselves, where a hedge is in vain; a higher factor leaves more of the wait for a slow worker.
HEDGE_FACTOR = 3.0


@dataclass(frozen=True, slots=True)
class CallSettings:
    """What a call asks for: see CallOptions.

    ``options`` are packed generation options; ``deadline`` is on the monotonic clock; ``hedge`` is as in SubmitRun.
    """

    num_generations: int
    weights: list[float]
    draw_each_row: bool
    seed: int | None
    options: bytes
    deadline: float | None
    fill_errors: bool
    if_lost: str = "wait"
    lost_after_s: float = LOST_AFTER_S
    hedge: float = 0.0


class Call:
    """Splits each input over ``voices`` and joins the shares.

    ``finished(records)`` is called with each input once, when its last share has ended: where rows end, or in ``begin``
    for inputs that need no LLM. Where it is given, ``finished_alike(start, outputs)`` is called in its place with the
    outputs of inputs that follow each other, as long as no more is to be told of them. ``shared(record, share,
    ending)`` is called before, on a callbacks thread, for each share that a worker has answered with outputs: its
    payload may be an Item's in a later call. ``begun`` counts the inputs that are finished or will be: where ``begin``
    raises, those are left out whose rows were about to be sent. ``begun_bytes`` is the sum of the sizes of those
    that have records. ``makes_prompts`` says whether a task, which is user code, runs in ``begin``.
    """

    def __init__(
        self,
        voices: Sequence[Voice],
        settings: CallSettings,
        finished: Callable[[list[Record]], None],
        progress: Callable[..., Any] | None = None,
        shared: Callable[[Record, Share, Ending], None] | None = None,
        finished_alike: Callable[[int, list[list[LLMOutput]]], None] | None = None,
    ) -> None:
        self._voices = voices
        self._settings = settings
        self._finished = finished
        self._progress = progress
        self._shared = shared
        self._finished_alike = finished_alike
        # Reentrant, for where something is allocated under it, the garbage collector may close a stream that nobody has
        # any more, which cancels this call in the midst of that step.
        self._lock = threading.RLock()
        self._records: dict[int, Record] = {}
        self._parts: dict[int, BegunPart] = {}  # by the index of the first input
        self._draw = Draw(voices, settings)
        self._tasks = [voice.rendering_task for voice in voices]
        self.makes_prompts = any(task is not None for task in self._tasks)
        # User code may raise anything and take long, and nothing that is finished shall wait for it. A task that makes
        # prompts reads the completions, too.
        self.ends_at_once = 1 if self.makes_prompts or progress is not None else _ENDS_AT_ONCE
        self._span = call_span([voice.llm_name for voice in voices], settings.num_generations)
        trace = "" if self._span is None else self._span.trace
        self._row_maker = RowMaker(voices, self._tasks, settings, trace)
        # What ends a span may write it to a file, or over the network.
        self.runs_user_code = self.makes_prompts or bool(progress or shared or self._span)
        # The LLMs whose process cannot be had, which another row would have started once more.
        self._failed: dict[Voice, RemoteError] = {}
        self._over = False
        self.begun = self.begun_bytes = 0
        self._ahead = Ahead(voices)

    def begin(self, start: int, inputs: Sequence[Any]) -> int:
        """Send the rows of inputs, which follow each other from the index ``start`` on. One may be an Item.

        Returns:
            Of how many, from the first on: so many as may begin together.
        """
        given = inputs[:_BEGIN_AT_ONCE]
        payloads = self._payloads(given)
        if payloads is not None:
            given = given[: len(payloads)]
        self._begin(start, given, payloads)
        return len(given)

    def begin_list(self, inputs: Sequence[Any]) -> None:
        """``begin`` for a whole list. What its LLMs do not need yet is only packed, and begins when they do."""
        self._row_maker.since = time.monotonic()
        start = 0
        while start < len(inputs) and not self._over:
            # Up to where a part begins that may go in runs, which are known by that.
            given = inputs[start : start - start % _BEGIN_AT_ONCE + _BEGIN_AT_ONCE]
            payloads = self._payloads(given)
            if payloads is None:
                self._begin(start, given)
            else:
                given = given[: len(payloads)]
                part = Part(start, given, payloads)
                if self._ahead.is_empty and self._ahead.needs_rows():
                    self._begin_part(part)
                else:
                    self._ahead.put_off(part)
                    self._begin_more()  # rows may have ended before it was put off
            start += len(given)

    def _payloads(self, inputs: Sequence[Any]) -> Sequence[bytes] | None:
        """What the rows of the first of these inputs carry, for each LLM; None where each must be looked at."""
        is_one_by_one = len(inputs) == 1 or self._draw.lost
        return None if is_one_by_one else self._row_maker.payloads(inputs, _MOST_PART_BYTES)

    def _begin(self, start: int, inputs: Sequence[Any], payloads: Sequence[bytes] | None = None) -> None:
        records = self._recorded(start, inputs)
        try:
            made = self._rows(records, payloads)
            self.begun_bytes += sum([record.note_size() for record in records])  # before any of them can arrive
            for at, rows in made:
                self._voices[at].submit_rows(rows)
        except BaseException:
            self._forget(records)
            raise

    def _begin_part(self, part: Part) -> None:
        begun = self._begun_part(part)
        if begun is None:
            self._begin(part.start, part.inputs, part.payloads)
            return
        for at, run in begun.runs:
            self._voices[at].submit_rows(run)

    def _begin_more(self) -> None:
        """Begin what was put off, as far as it is needed. Where something is raised for it, its rows have ended."""
        while not self._over and (part := self._ahead.next_part()) is not None:
            records: Sequence[Record] = ()
            made: Sequence[tuple[int, list[Row] | Run]]
            try:
                begun = self._begun_part(part)
                if begun is None:
                    records = self._recorded(part.start, part.inputs)
                    made = self._rows(records, part.payloads)
                else:
                    made = begun.runs
            except Exception as error:
                for record in records or self._recorded(part.start, part.inputs):
                    for share in [share for share in record.shares if share.outcome is None]:
                        self._end([record], [share], [self._raised(share, error)])
                    self._report([record])
                continue
            for at, rows in made:
                self._submit_or_end(self._voices[at], rows)

    def _submit_or_end(self, voice: Voice, rows: list[Row] | Run) -> None:
        error: Exception | None = self._failed.get(voice)
        if error is None:
            try:
                voice.submit_rows(rows)
                return
            except Exception as raised:  # it may be torn down
                error = raised
        told = error if isinstance(error, GenpoolError) else RemoteError(type(error).__name__, text_of(error))
        failed = rows.split() if isinstance(rows, Run) else rows
        for row in failed:
            row.ending = told
        self._take_in(failed)

    def _begun_part(self, part: Part) -> BegunPart | None:
        """The part in runs, known as begun; None where each of its rows must be one by itself."""
        if self._finished_alike is None or self._progress or self._shared:
            return None
        if len(part.inputs) < _LEAST_RUN or part.start % MOST_ROWS:
            return None
        if sum(map(len, part.payloads)) >= _MOST_PART_BYTES:  # and others may begin at an odd place behind it
            return None
        with self._lock:
            self._draw.note_returns()
            if not self._draw.is_one_for_all:
                return None
            counts = self._draw.counts(part.start)
        try:
            specs = [self._row_maker.spec(at, count) for at, count in counts]
        except ConfigurationError:
            return None
        runs = [Run(spec, self, part.start, part.payloads, place) for place, spec in enumerate(specs)]
        begun = BegunPart(part, [(at, run) for (at, _), run in zip(counts, runs, strict=True)])
        with self._lock:
            for at, run in begun.runs:
                run.over = self._over
                self._ahead.under_way[at] += len(run)
            if not self._over:
                self._parts[part.start] = begun
                self.begun += len(part.inputs)
        return begun

    def _rows(
        self, records: Sequence[Record], payloads: Sequence[bytes] | None = None
    ) -> Sequence[tuple[int, list[Row]]]:
        """The rows to send for these inputs, by LLM; ``payloads`` are what they carry, where that is known."""
        alike = None if payloads is None else self._made_alike(records, payloads)
        made = self._made(records, payloads) if alike is None else alike
        return [] if self._over else [(at, rows) for at, rows in made.items() if rows]

    def _made(self, records: Sequence[Record], payloads: Sequence[bytes] | None) -> Mapping[int, list[Row]]:
        """The rows of these inputs, by LLM; what cannot become a row has ended then."""
        outgoing: dict[int, list[Row]] = {}
        done: list[Record] = []
        for number, record in enumerate(records):
            payload = None if payloads is None else payloads[number]
            for place, share in enumerate(record.shares):
                row = self._make(record, place, share, payload)
                if row is not None:
                    outgoing.setdefault(share.at, []).append(row)
            if not record.pending:
                done.append(record)
        if done:
            self._report(done)
        return outgoing

    def _made_alike(self, records: Sequence[Record], payloads: Sequence[bytes]) -> Mapping[int, list[Row]] | None:
        """``_made`` where no input asks for more than its arguments and all LLMs' rows carry the same, as mostly.

        None when one of them must be looked at.
        """
        maker = self._row_maker
        if self._draw.lost:
            return None
        made: dict[int, list[Row]] = {}
        spec: RowSpec | None = None
        at = count = -1  # of the last share: mostly, neighbours are as many generations by the same LLM
        rows: list[Row] = []
        for record, payload in zip(records, payloads, strict=True):
            for place, share in enumerate(record.shares):
                if spec is None or share.at != at or share.count != count:
                    at, count = share.at, share.count
                    try:
                        spec = maker.spec(at, count)
                    except ConfigurationError:
                        return None
                    rows = made.setdefault(at, [])
                row = share.row = Row(maker.new_id(), spec, payload, self, record.index, place)
                rows.append(row)
        return made

    def cancel(self, error: BaseException | None = None) -> None:
        """Withdraw every row that has not ended; ``finished`` is not called any more. ``error`` is why, if one is."""
        with self._lock:
            self._over = True
            records, parts = list(self._records.values()), list(self._parts.values())
            inputs, put_off = self.begun, len(self._ahead)
            whole = sum(part.unfinished for part in parts)
            self._parts.clear()
            self.begun -= whole
        self._ahead.clear()
        self._forget(records)
        for part in parts:
            for at, run in part.runs:
                self._voices[at].withdraw_rows(run)
        self._end_span(inputs + put_off, len(records) + whole + put_off, error)

    def end(self) -> None:
        """All inputs were begun, and have finished: nothing follows."""
        self._end_span(self.begun, 0, None)

    def _end_span(self, inputs: int, unfinished: int, error: BaseException | None) -> None:
        with self._lock:
            span, self._span = self._span, None
        if span is not None:
            span.end(inputs, unfinished, error)

    def _forget(self, records: Sequence[Record]) -> None:
        """Withdraw the rows of these inputs, and tell nobody of those that are not finished."""
        rows: dict[int, list[Row]] = defaultdict(list)
        with self._lock:
            for record in records:
                if self._records.pop(record.index, None) is None:
                    continue
                self.begun -= 1
                for share in record.shares:
                    if share.row is not None:
                        rows[share.at].append(share.row)
        for at, own in rows.items():
            self._voices[at].withdraw_rows(own)

    def _recorded(self, start: int, inputs: Sequence[Any]) -> list[Record]:
        """Inputs with their shares, as they are kept from now on."""
        with self._lock:
            self._draw.note_returns()
            if self._draw.is_one_for_all and Item not in {*map(type, inputs)}:
                records = self._records_alike(start, inputs)
            else:
                records = [self._record(index, given) for index, given in enumerate(inputs, start)]
            if not self._over:
                self.begun += len(records)
                self._records.update(zip(range(start, start + len(records)), records, strict=True))
        return records

    def _record(self, index: int, given: Any) -> Record:
        """An input with its shares. Under the lock."""
        if isinstance(given, Item):
            shares = planned_shares(given.plan) or self._draw.shares(given.number)
            draws = max([share.draw for share in shares])
            record = Record(index, given.input, shares, len(shares), given, draws)
        else:
            shares = self._draw.shares(index)
            record = Record(index, given, shares, len(shares))
        for share in shares:
            self._ahead.under_way[share.at] += 1
        return record

    def _records_alike(self, start: int, inputs: Sequence[Any]) -> list[Record]:
        """``_record`` for inputs that all have the same shares, as they have with one draw for a call."""
        counts = self._draw.counts(start)
        records = [Record(index, given, [], len(counts)) for index, given in enumerate(inputs, start)]
        for at, count in counts:
            for record in records:
                record.shares.append(Share(at, count))
            self._ahead.under_way[at] += len(records)
        return records

    def _make(self, record: Record, place: int, share: Share, payload: bytes | None = None) -> Row | None:
        """Make the row for the share at ``place``. None for what cannot become a row: it has ended here and now.

        ``payload`` is what it carries, where that is known.
        """
        if share.answer is not None:
            answer, share.answer = share.answer, None
            outcome = self._outcome(share, record.input, Ending(Outcome.DONE, 1, answer))
        elif self._draw.lost and not self._draw.moves and (lost := self._draw.lost.get(share.at)) is not None:
            outcome = self._local_error(self._voices[share.at], lost)
        else:
            try:
                row = self._row_maker.row(record, place, self, payload)
                if row is not None:
                    return row
                outcome = self._empty_outputs(share)
            except (RowError, ConfigurationError) as error:
                outcome = self._local_error(self._voices[share.at], error)
        self._end([record], [share], [outcome])
        return None

    # Where rows end.

    def ended(self, rows: list[Row]) -> None:
        """Rows have ended: see Owner."""
        try:
            self._take_in(rows)
        finally:
            if not self._ahead.is_empty:
                # What no worker has answered ended for a cause that the others have, too, and shall not wait for.
                self._ahead.is_hurried |= any(isinstance(row.ending, GenpoolError) for row in rows)
                self._begin_more()

    def run_ended(self, run: Run, first: int, payloads: Sequence[Payload]) -> None:
        """Rows of a run have ended with outputs: see Owner."""
        try:
            outputs = cast("list[list[LLMOutput]] | None", unpack_each_outputs(payloads, run.spec.num_generations))
            if outputs is None or not self._take_in_alike(run, first, outputs):
                self._take_in(run.ended(first, payloads))
        finally:
            self._begin_more()

    def _take_in_alike(self, run: Run, first: int, outputs: list[list[LLMOutput]]) -> bool:
        """Whether that could be done; else each row must be looked at."""
        assert self._finished_alike is not None
        with self._lock:
            part = self._parts.get(run.start)
            if part is None:
                return True  # cancelled meanwhile
            if not part.is_whole:
                return False
            at, _ = part.runs[run.place]
            self._ahead.under_way[at] -= len(outputs)
            finished = part.end(run.place, first, outputs)
            if not part.left:
                self._parts.pop(run.start, None)
        for start, own in finished:
            self._finished_alike(start, own)
        return True

    def _record_split(self, rows: Sequence[Row]) -> None:
        """Rows that were of a run until now have ended: their inputs have records from now on."""
        with self._lock:
            for row in rows:
                start = row.index - row.index % MOST_ROWS
                part = self._parts.get(start)
                if part is None or row.place >= len(part.runs):
                    continue  # it was never of a run
                record = self._records.get(row.index)
                if record is None:
                    record = self._records[row.index] = part.record(row)
                record.shares[row.place].row = row
                part.left -= 1
                if not part.left:
                    self._parts.pop(start, None)

    def _take_in(self, rows: list[Row]) -> None:
        if self._parts:
            self._record_split(rows)
        opened = self._opened(rows) if len(rows) > 1 else None
        if opened is not None and self._progress is None and self._shared is None:
            self._finish(rows, opened)
            return
        with self._lock:
            records = [self._records.get(row.index) for row in rows]
        reached: list[Record] = []
        shares: list[Share] = []
        outcomes: list[list[LLMOutput] | RemoteError] = []
        for at, record in enumerate(records):
            ending = rows[at].ending
            if record is None or ending is None:
                continue  # cancelled meanwhile
            share = record.shares[rows[at].place]
            if isinstance(ending, RemoteError):
                self._failed[self._voices[share.at]] = ending
            if isinstance(ending, LLMLost):
                self._note_loss(share.at, ending)
                if self._draw.moves:
                    self._redraw(record, rows[at].place)
                    continue
            outcome = self._outcome(share, record.input, ending) if opened is None else opened[at]
            if self._shared is not None and isinstance(outcome, list) and isinstance(ending, Ending):
                self._tell_shared(record, share, ending)
            reached.append(record)
            shares.append(share)
            outcomes.append(outcome)
        try:
            self._end(reached, shares, outcomes)
        finally:
            self._report([record for record in records if record is not None and not record.pending])

    def _finish(self, rows: Sequence[Row], opened: Sequence[list[LLMOutput]]) -> None:
        """``_end`` and ``_report`` for rows that all have their outputs, where nobody hears of each."""
        under_way = self._ahead.under_way
        finished: list[Record] = []
        with self._lock:
            for row, outputs in zip(rows, opened, strict=True):
                record = self._records.get(row.index)
                if record is None:
                    continue  # cancelled meanwhile
                share = record.shares[row.place]
                share.outcome = outputs
                under_way[share.at] -= 1
                record.pending -= 1
                if not record.pending:
                    self._records.pop(row.index, None)
                    finished.append(record)
        self._tell_finished(finished)

    def _opened(self, rows: list[Row]) -> list[list[LLMOutput]] | None:
        """``_outcome`` of all these rows, where each has its outputs and nothing is read in them, as nearly always."""
        count = rows[0].spec.num_generations
        if self.makes_prompts or [True for row in rows if row.spec.num_generations != count]:
            return None
        endings = [row.ending for row in rows]
        payloads = [end.payload for end in endings if isinstance(end, Ending) and end.outcome == _DONE]
        if len(payloads) < len(rows):
            return None
        return cast("list[list[LLMOutput]] | None", unpack_each_outputs(payloads, count))

    def _end(
        self, records: Sequence[Record], shares: Sequence[Share], outcomes: Sequence[list[LLMOutput] | RemoteError]
    ) -> None:
        """These shares of these records have come to something."""
        under_way = self._ahead.under_way
        with self._lock:
            for record, share, outcome in zip(records, shares, outcomes, strict=True):
                under_way[share.at] -= 1
                share.outcome = outcome
                record.pending -= 1
                if isinstance(outcome, RemoteError):
                    record.failure = outcome
        if self._progress is not None:
            for share in shares:
                self._tell_progress(share.count)

    def _tell_shared(self, record: Record, share: Share, ending: Ending) -> None:
        assert self._shared is not None
        try:
            self._shared(record, share, ending)
        # Whatever becomes of the note, the share has ended, and so have those that ended with it.
        except BaseException:
            log.exception("a callback raised")

    def _tell_progress(self, advance: int) -> None:
        assert self._progress is not None
        try:
            self._progress(advance=advance)
        # User code: a broken progress bar must not cost the outputs.
        except Exception:
            log.exception("progress_callback_func raised")

    def _report(self, records: Sequence[Record]) -> None:
        """Tell of records that have no pending shares, but for those that were told of or cancelled meanwhile."""
        with self._lock:
            finished = [record for record in records if self._records.pop(record.index, None) is not None]
        self._tell_finished(finished)

    def _tell_finished(self, finished: list[Record]) -> None:
        with self._lock:
            if self._span is not None:
                self._span.note_failures(finished)
        for record in finished:
            if record.failure is not None:
                record.note_failure()
                record.fill(self._filled)
        if finished:
            self._finished(finished)

    def _filled(self, share: Share, error: RemoteError) -> list[LLMOutput] | RemoteError:
        """The outputs that stand in the place of a failed share, if some shall."""
        settings = self._settings
        if not settings.fill_errors and not (settings.if_lost == "fill" and error.kind is LLMLost):
            return error
        outputs = self._empty_outputs(share)
        for output in outputs:
            output["error"] = str(error)
        return outputs

    def _empty_outputs(self, share: Share) -> list[LLMOutput]:
        voice = self._voices[share.at]
        return [empty_output(voice.known_model_name or voice.llm_name) for _ in range(share.count)]

    def _outcome(self, share: Share, given: Any, ending: Ending | GenpoolError) -> list[LLMOutput] | RemoteError:
        try:
            if isinstance(ending, GenpoolError):
                return self._local_error(self._voices[share.at], ending)
            if ending.outcome != Outcome.DONE:
                return _remote_error(self._voices[share.at].llm_name, unpack_failure(ending.payload), ending)
            outputs: list[Any] = unpack_outputs(ending.payload)
            if len(outputs) != share.count:
                raise DecodeError(f"the worker answered with {plural(len(outputs), 'output')} of {share.count}")
            task = self._tasks[share.at]
            if task is not None:
                for output in outputs:
                    output["parsed_output"] = parsed_output(task, output.get("raw_output"), given)
            return outputs
        # A task is user code, and reads completions here: whatever it raises, the row has ended.
        except BaseException as error:
            return self._raised(share, error)

    def _raised(self, share: Share, error: BaseException) -> RemoteError:
        if isinstance(error, GenpoolError):
            return self._local_error(self._voices[share.at], error)
        return RemoteError(type(error).__name__, text_of(error), llm=self._voices[share.at].llm_name)

    # What becomes of the shares of LLMs that nobody serves.

    def _note_loss(self, at: int, error: LLMLost) -> None:
        with self._lock:
            is_new = self._draw.note_loss(at, error)
        if is_new:
            self._draw.log_loss(error)

    def _redraw(self, record: Record, place: int) -> None:
        """Have other LLMs make what a lost one owes; itself, should it come back, where no other is served."""
        share = record.shares[place]
        with self._lock:
            counts = self._draw.in_place_of(share)
            if counts[share.at] == share.count:
                made = [(place, share)]
            else:
                self._ahead.under_way[share.at] -= 1
                made = record.replace(share, counts)
            for _, placed in made:
                self._ahead.under_way[placed.at] += 1
        for placed in made:
            self._send(record, placed)

    def _send(self, record: Record, placed: tuple[int, Share]) -> None:
        place, share = placed
        try:
            row = self._make(record, place, share)
            if row is not None and not self._over:  # else nobody would withdraw it
                self._voices[share.at].submit_rows([row])
        # The LLM may be torn down, and a task is user code: whatever is raised, the share has ended.
        except BaseException as error:
            self._end([record], [share], [self._raised(share, error)])

    def _local_error(self, voice: Voice, error: GenpoolError) -> RemoteError:
        """A failure in this process, in the same form as those from elsewhere."""
        if isinstance(error, RemoteError):
            return copy.copy(error)  # one error may end many rows, and each has others of its own
        kind = ValueError if isinstance(error, RowError) else type(error)
        return RemoteError(type(error).__name__, str(error), kind=kind, llm=voice.llm_name)


def _remote_error(llm: str, failure: Failure, ending: Ending) -> RemoteError:
    kind = Expired if ending.outcome == Outcome.EXPIRED else known_error(failure.builtin)
    return RemoteError(
        failure.type,
        failure.message,
        kind=kind,
        traceback=failure.traceback,
        llm=llm,
        worker=failure.worker,
        host=failure.host,
        attempts=ending.attempts,
    )


def deadline_of(timeout_s: float | None) -> float | None:
    """The point on the monotonic clock when ``timeout_s`` has passed from now."""
    return None if timeout_s is None else time.monotonic() + timeout_s
