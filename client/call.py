"""One generating call: inputs become rows for several LLMs, and their endings become outputs again, in order.

Rows are begun in the caller's thread and end on the callbacks thread of each LLM's link.
"""

from __future__ import annotations

import copy
import logging
import os
import random
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, Protocol, cast

from ..protocol.content import (
    Failure,
    pack_each,
    pack_row,
    unpack,
    unpack_each_outputs,
    unpack_failure,
    unpack_outputs,
)
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
from ..protocol.limits import ROW_ID_BYTES
from ..protocol.messages import LLMInfo, Outcome, RowKind
from ..tasks.base import missing_arguments
from ..tasks.output import LLMOutput, empty_output, parsed_output
from ..tasks.prompt import to_wire
from .item import Item
from .option import packed_options, with_wishes
from .record import Record, Share, planned_shares, shares_of
from .row import Ending, Row, RowEnd, RowSpec
from .share import draw_shares, move_shares
from .span import call_span

log = logging.getLogger("genpool.client")

# A share of an input, with what it has come to.
_Reached = tuple[Record, Share, list[LLMOutput] | RemoteError]

# To look it up in its class takes as long as to look at a row.
_DONE: int = Outcome.DONE

# More sets of options than this, one for each row, say, are not worth remembering.
_MOST_SPECS = 1024

# So many ids of rows are drawn ahead in a long call.
_MOST_IDS_AT_ONCE = 256

# So many inputs become rows before the first of them are sent: a large value leaves the LLMs idle at the beginning of a
# long list, a small one sends small messages.
_BEGIN_AT_ONCE = 256

# So many rows end before it is told which inputs are finished by them: a large value delays that, a small one takes the
# lock for few.
_ENDS_AT_ONCE = 256

# How long an LLM may be served by nobody before it is lost. It should be longer than a worker takes that was started
# again and loads a large model, and no longer than a person would watch a call stand still.
LOST_AFTER_S = 600.0

# How many times its LLM's usual time a row must have run before it is hedged. Rows of unlike lengths often take twice
# as long as usual by themselves, where a hedge is in vain; a higher factor leaves more of the wait for a slow worker.
HEDGE_FACTOR = 3.0


class Voice(Protocol):
    """One LLM as a call needs it."""

    @property
    def llm_name(self) -> str: ...
    @property
    def known_model_name(self) -> str | None: ...
    @property
    def rendering_task(self) -> Any | None: ...
    @property
    def wait_s(self) -> float: ...
    @property
    def arguments(self) -> list[str] | None: ...
    @property
    def info(self) -> LLMInfo | None: ...
    def submit_rows(self, rows: list[Row]) -> None: ...
    def withdraw_rows(self, rows: list[Row]) -> None: ...


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


class _Maker:
    """Makes what one LLM's rows carry, for as long as what the broker says of it, ``info``, stays the same."""

    def __init__(self, voice: Voice, task: Any | None, info: LLMInfo | None) -> None:
        self.voice = voice
        self.info = info
        self._task = task
        self._arguments = voice.arguments

    def packs_as(self, other: _Maker) -> bool:
        """Whether the LLM's rows carry what those of another do, which packs them alike: LLMs of a pool mostly do."""
        return self._task is None and other._task is None and self._arguments == other._arguments

    def payload(self, record: Record, seed: int | None) -> bytes | None:
        """The row's bytes; None when the input lacks an argument of the task.

        Raises:
            RowError: when the input cannot be carried, or the task cannot make a prompt of it.
        """
        given: Mapping[str, Any] = record.input
        arguments = self._arguments
        # A dict is told apart at once, and what else is a mapping only by asking.
        if not isinstance(record.input, (dict, Mapping)):
            kind = type(record.input).__name__
            raise RowError(f"input {record.number} is a {kind} and not a dict of the task's arguments")
        if arguments is None:
            content = dict(given)
        else:
            content = {name: given[name] for name in arguments if name in given}
            if len(content) < len(arguments) and self._leaves_empty(record, arguments, given):
                return None
        return pack_row(content if self._task is None else self._prompt(record, content), seed)

    def payloads(self, inputs: Sequence[Any]) -> list[bytes] | None:
        """``payload`` for all of ``inputs`` without a seed; None when one of them must be looked at."""
        if self._task is not None or [*map(type, inputs)] != [dict] * len(inputs):
            return None
        names = self._arguments
        try:
            return pack_each(
                [
                    [given if names is None or [*given] == names else {name: given[name] for name in names}, None]
                    for given in inputs
                ]
            )
        except KeyError:
            return None  # one lacks an argument

    def _leaves_empty(self, record: Record, arguments: list[str], given: Mapping[str, Any]) -> bool:
        """Whether the outputs of an input that lacks an argument are made here, and not by the worker."""
        missing = missing_arguments(arguments, given)
        # Where the model's name is not known here yet, the worker makes the empty outputs, which carry it.
        if not missing or (self._task is None and self.voice.known_model_name is None):
            return False
        log.warning("input %d lacks %s; its outputs are None", record.number, ", ".join(map(repr, missing)))
        return True

    def _prompt(self, record: Record, content: dict[str, Any]) -> Any:
        assert self._task is not None
        try:
            return to_wire(self._task.generate_prompt(**content))
        # A task is user code: what it raises is this row's failure, and no other's.
        except Exception as error:
            raise RowError(
                f"the task made no prompt of input {record.number}: {type(error).__name__}: {error}"
            ) from error


class Call:
    """Splits each input over ``voices`` and joins the shares.

    ``finished(records)`` is called with each input once, when its last share has ended: on a callbacks thread, or in
    ``begin`` for inputs that need no LLM. ``shared(record, share, ending)`` is called before, on a callbacks
    thread, for each share that a worker has answered with outputs: its payload may be an Item's in a later call.
    ``begun`` counts the inputs that are finished or will be: where ``begin`` raises, those are left out whose rows were
    about to be sent. ``makes_prompts`` says whether a task, which is user code, runs in ``begin``.
    """

    def __init__(
        self,
        voices: Sequence[Voice],
        settings: CallSettings,
        finished: Callable[[list[Record]], None],
        progress: Callable[..., Any] | None = None,
        shared: Callable[[Record, Share, Ending], None] | None = None,
    ) -> None:
        self._voices = voices
        self._settings = settings
        self._finished = finished
        self._progress = progress
        self._shared = shared
        self._lock = threading.Lock()
        self._records: dict[int, Record] = {}
        # What was drawn last: how many generations each LLM makes, and that for those that make some.
        self._drawn: list[int] | None = None
        self._counts: list[tuple[int, int]] = []
        self._tasks = [voice.rendering_task for voice in voices]
        self.makes_prompts = any(task is not None for task in self._tasks)
        # User code may raise anything and take long, and nothing that is finished shall wait for it. A task that makes
        # prompts reads the completions, too.
        self.ends_at_once = 1 if self.makes_prompts or progress is not None else _ENDS_AT_ONCE
        # The LLMs that are lost by now, by their positions, until they are served again.
        self._lost: dict[int, LLMLost] = {}
        self._over = False
        self.begun = 0
        self._span = call_span([voice.llm_name for voice in voices], settings.num_generations)
        self._trace = "" if self._span is None else self._span.trace
        self._makers: dict[int, _Maker] = {}
        self._ids: list[bytes] = []
        self._ids_at_once = 1
        # Rows of the same spec share one object, by which the client's machine groups them.
        self._specs: dict[tuple[int, int, bytes], RowSpec] = {}

    # Made when they are needed: to seed one takes longer than to send a row.

    @cached_property
    def _source(self) -> random.Random:
        return random.Random(self._settings.seed)

    @cached_property
    def _redraw_source(self) -> random.Random:
        """Another source, so that the draw can be repeated whatever is lost meanwhile; for use under the lock."""
        seed = self._settings.seed
        return random.Random(None if seed is None else f"{seed}/redraw")

    def begin(self, inputs: Iterable[tuple[int, Any]]) -> None:
        """Send the rows of these inputs, each with its index. An input may be an Item."""
        inputs = iter(inputs)
        while not self._over and (part := list(islice(inputs, _BEGIN_AT_ONCE))):
            self._begin(part)

    def _begin(self, inputs: Sequence[tuple[int, Any]]) -> None:
        records = self._recorded(inputs)
        try:
            self._send_all(records)
        except BaseException:
            self._forget(records)
            raise

    def _send_all(self, records: Sequence[Record]) -> None:
        alike = self._made_alike(records) if len(records) > 1 else None
        for maker, rows in self._made(records) if alike is None else alike:
            if rows and not self._over:
                maker.voice.submit_rows(rows)

    def _made(self, records: Sequence[Record]) -> Iterable[tuple[_Maker, list[Row]]]:
        """The rows of these inputs, by LLM; what cannot become a row has ended then."""
        outgoing: dict[int, tuple[_Maker, list[Row]]] = {}
        done: list[Record] = []
        for record in records:
            for place, share in enumerate(record.shares):
                own = outgoing.get(share.at)
                if own is None:
                    own = outgoing[share.at] = self._maker(share.at), []
                maker, rows = own
                row = self._make(record, place, share, maker)
                if row is not None:
                    rows.append(row)
            if not record.pending:
                done.append(record)
        if done:
            self._report(done)
        return outgoing.values()

    def _made_alike(self, records: Sequence[Record]) -> Iterable[tuple[_Maker, list[Row]]] | None:
        """``_made`` where no input asks for more than its arguments and all LLMs' rows carry the same, as mostly.

        None when one of them must be looked at.
        """
        makers = [self._maker(at) for at in range(len(self._voices))]
        is_plain = self._settings.seed is None and not self._lost and all(map(makers[0].packs_as, makers))
        if not is_plain or [True for record in records if record.item is not None]:
            return None
        payloads = makers[0].payloads([record.input for record in records])
        if payloads is None:
            return None
        made: dict[int, tuple[_Maker, list[Row]]] = {}
        for record, payload in zip(records, payloads, strict=True):
            for place, share in enumerate(record.shares):
                own = made.get(share.at)
                if own is None:
                    own = made[share.at] = makers[share.at], []
                try:
                    spec = self._spec(share, self._settings.options)
                except ConfigurationError:
                    return None
                row = share.row = Row(self._new_id(), spec, payload, self, (record.index, place))
                own[1].append(row)
        return made.values()

    def cancel(self, error: BaseException | None = None) -> None:
        """Withdraw every row that has not ended; ``finished`` is not called any more. ``error`` is why, if one is."""
        with self._lock:
            self._over = True
            records = list(self._records.values())
            inputs = self.begun
        self._forget(records)
        self._end_span(inputs, len(records), error)

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

    def _recorded(self, inputs: Sequence[tuple[int, Any]]) -> list[Record]:
        """Inputs with their shares, as they are kept from now on."""
        records: list[Record] = []
        with self._lock:
            self._note_returns()
            for index, given in inputs:
                if isinstance(given, Item):
                    shares = planned_shares(given.plan) or self._draw(given.number)
                    draws = max([share.draw for share in shares])
                    records.append(Record(index, given.input, shares, len(shares), given, draws))
                else:
                    shares = self._draw(index)
                    records.append(Record(index, given, shares, len(shares)))
            if not self._over:
                self.begun += len(records)
                self._records.update([(record.index, record) for record in records])
        return records

    def _draw(self, number: int) -> list[Share]:
        """New shares for one input. With a seed, they are the same wherever a call begins. Under the lock."""
        if self._drawn is None or self._settings.draw_each_row:
            self._drawn = self._shares_drawn(number)
            self._counts = [(at, count) for at, count in enumerate(self._drawn) if count]
        if self._lost and self._is_redrawn:
            return shares_of(self._move(self._drawn))
        return [Share(at, count) for at, count in self._counts]

    def _shares_drawn(self, number: int) -> list[int]:
        settings = self._settings
        if len(self._voices) == 1:
            return [settings.num_generations]  # and no source is made
        is_seeded = settings.draw_each_row and settings.seed is not None
        source = random.Random(f"{settings.seed}/{number}/draw") if is_seeded else self._source
        return draw_shares(settings.num_generations, settings.weights, source)

    def _make(self, record: Record, place: int, share: Share, maker: _Maker) -> Row | None:
        """Make the row for the share at ``place``. None for what cannot become a row: it has ended here and now."""
        if share.answer is not None:
            answer, share.answer = share.answer, None
            outcome = self._outcome(share, record.input, Ending(Outcome.DONE, 1, answer))
        elif self._lost and not self._is_redrawn and (lost := self._lost.get(share.at)) is not None:
            outcome = self._local_error(maker.voice, lost)
        else:
            try:
                is_plain = record.item is None
                payload = self._payload_before(record, place, maker) if place else None
                if payload is None:
                    seed = None if is_plain and self._settings.seed is None else self._seed_of(record, share.draw)
                    payload = maker.payload(record, seed)
                if payload is not None:
                    spec = self._spec(share, self._settings.options if is_plain else self._options(maker.voice, record))
                    row = share.row = Row(self._new_id(), spec, payload, self, (record.index, place))
                    return row
                outcome = self._empty_outputs(share)
            except (RowError, ConfigurationError) as error:
                outcome = self._local_error(maker.voice, error)
        self._end([(record, share, outcome)])
        return None

    def _payload_before(self, record: Record, place: int, maker: _Maker) -> bytes | None:
        """The bytes of the input's row before the one at ``place``, where that carries the same."""
        share, before = record.shares[place], record.shares[place - 1]
        if before.row is None or before.draw != share.draw or not maker.packs_as(self._makers[before.at]):
            return None
        return before.row.payload

    def _maker(self, at: int) -> _Maker:
        """The maker for the LLM at this position, as it is now."""
        maker, info = self._makers.get(at), self._voices[at].info
        if maker is None or maker.info is not info:
            maker = self._makers[at] = _Maker(self._voices[at], self._tasks[at], info)
        return maker

    def _new_id(self) -> bytes:
        """A row's id. Many are drawn at once, which costs little more than one; ever more of them, up to a point."""
        try:
            return self._ids.pop()
        except IndexError:  # rather than a look before: another thread may take the last one
            count = self._ids_at_once
            self._ids_at_once = min(2 * count, _MOST_IDS_AT_ONCE)
            new_id, *others = struct.unpack(f"{ROW_ID_BYTES}s" * count, os.urandom(ROW_ID_BYTES * count))
            self._ids += others
            return new_id

    def _options(self, voice: Voice, record: Record) -> bytes:
        """The options that the input's rows are sent with. Raises ConfigurationError as ``packed_options``."""
        packed = self._settings.options
        if record.item is None or not record.item.options:
            return packed
        return packed_options([voice], {**(unpack(packed) if packed else {}), **record.item.options})

    def _spec(self, share: Share, options: bytes) -> RowSpec:
        """What the rows of such shares have in common. Raises ConfigurationError as ``with_wishes``."""
        spec = self._specs.get((share.at, share.count, options))
        if spec is None:
            if len(self._specs) >= _MOST_SPECS:
                self._specs.clear()
            voice, settings = self._voices[share.at], self._settings
            task = self._tasks[share.at]
            kind = RowKind.INPUT if task is None else RowKind.PROMPT
            lost_after_s = None if settings.if_lost == "wait" else settings.lost_after_s
            packed = with_wishes(options, task)
            spec = RowSpec(
                voice.llm_name,
                kind,
                share.count,
                packed,
                settings.deadline,
                voice.wait_s,
                lost_after_s,
                frozenset(unpack(options)) if options else frozenset(),
                settings.hedge,
                self._trace,
            )
            self._specs[share.at, share.count, options] = spec
        return spec

    def _seed_of(self, record: Record, draw: int) -> int | None:
        seed = self._settings.seed
        if record.item is not None and record.item.seed is not None:
            seed = record.item.seed
            if not draw:
                return seed
        if seed is None:
            return None
        # An LLM that makes a lost one's share beside its own must not say the same again.
        again = f"/{draw}" if draw else ""
        # A text seeds the same in every release of Python, and inputs that are alike still differ.
        return random.Random(f"{seed}/{record.number}{again}").getrandbits(31)

    # On a callbacks thread.

    def ended(self, ends: list[RowEnd]) -> None:
        """Rows have ended: see Owner."""
        with self._lock:
            records = [self._records.get(row.place[0]) for row, _ in ends]
        opened = self._opened(ends) if len(ends) > 1 else None
        reached: list[_Reached] = []
        for at, ((row, ending), record) in enumerate(zip(ends, records, strict=True)):
            if record is None:
                continue  # cancelled meanwhile
            share = record.shares[row.place[1]]
            if isinstance(ending, LLMLost):
                self._note_loss(share.at, ending)
                if self._is_redrawn:
                    self._redraw(record, share)
                    continue
            outcome = self._outcome(share, record.input, ending) if opened is None else opened[at]
            if self._shared is not None and isinstance(outcome, list) and isinstance(ending, Ending):
                self._tell_shared(record, share, ending)
            reached.append((record, share, outcome))
        try:
            self._end(reached)
        finally:
            self._report([record for record in records if record is not None and not record.pending])

    def _opened(self, ends: list[RowEnd]) -> list[list[LLMOutput]] | None:
        """``_outcome`` of all these ends, where each has its outputs and nothing is read in them, as nearly always."""
        count = ends[0][0].spec.num_generations
        if self.makes_prompts or [True for row, _ in ends if row.spec.num_generations != count]:
            return None
        payloads = [end.payload for _, end in ends if isinstance(end, Ending) and end.outcome == _DONE]
        if len(payloads) < len(ends):
            return None
        return cast("list[list[LLMOutput]] | None", unpack_each_outputs(payloads, count))

    def _end(self, reached: Sequence[_Reached]) -> None:
        """These shares have come to something."""
        with self._lock:
            for record, share, outcome in reached:
                share.outcome = outcome
                record.pending -= 1
                if isinstance(outcome, RemoteError):
                    record.failure = outcome
        if self._progress is not None:
            for _, share, _ in reached:
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
                raise DecodeError(f"the worker answered with {len(outputs)} outputs of {share.count}")
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
        return RemoteError(type(error).__name__, str(error), llm=self._voices[share.at].llm_name)

    # What becomes of the shares of LLMs that nobody serves.

    @property
    def _is_redrawn(self) -> bool:
        return self._settings.if_lost == "redraw"

    def _note_loss(self, at: int, error: LLMLost) -> None:
        with self._lock:
            is_new = at not in self._lost
            self._lost[at] = error
        if not is_new:
            return
        others = [voice.llm_name for voice in self._voices if _is_served(voice)]
        if not self._is_redrawn:
            log.warning("%s; the outputs that it owes are None, until it is served again", error)
        elif others:
            log.warning("%s; its shares are drawn anew over %s, until it is served again", error, ", ".join(others))
        else:
            log.warning("%s; no other LLM is served that could take its shares, so they wait", error)

    def _redraw(self, record: Record, share: Share) -> None:
        """Have other LLMs make what a lost one owes; itself, should it come back, where no other is served."""
        with self._lock:
            self._note_returns()
            drawn = [share.count if at == share.at else 0 for at in range(len(self._voices))]
            made = record.replace(share, self._move(drawn, share.at))
        for placed in made:
            self._send(record, placed)

    def _send(self, record: Record, placed: tuple[int, Share]) -> None:
        place, share = placed
        try:
            row = self._make(record, place, share, self._maker(share.at))
            if row is not None and not self._over:  # else nobody would withdraw it
                self._voices[share.at].submit_rows([row])
        # The LLM may be torn down, and a task is user code: whatever is raised, the share has ended.
        except BaseException as error:
            self._end([(record, share, self._raised(share, error))])

    def _move(self, shares: list[int], *lost: int) -> list[int]:
        """``shares`` with those of the lost LLMs drawn anew over the LLMs that are served. Under the lock."""
        gone = self._lost.keys() | set(lost)
        if not gone:
            return shares
        weights = self._settings.weights
        able = [weight if _is_served(voice) else 0.0 for weight, voice in zip(weights, self._voices, strict=True)]
        return move_shares(shares, gone, able, self._redraw_source)

    def _note_returns(self) -> None:
        """Forget the loss of LLMs that are served again. Under the lock."""
        if not self._lost:
            return
        for at in [at for at in self._lost if _is_served(self._voices[at])]:
            del self._lost[at]

    def _local_error(self, voice: Voice, error: GenpoolError) -> RemoteError:
        """A failure in this process, in the same form as those from elsewhere."""
        if isinstance(error, RemoteError):
            return copy.copy(error)  # one error may end many rows, and each has others of its own
        kind = ValueError if isinstance(error, RowError) else type(error)
        return RemoteError(type(error).__name__, str(error), kind=kind, llm=voice.llm_name)


def _is_served(voice: Voice) -> bool:
    return voice.info is not None and voice.info.ready > 0


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
