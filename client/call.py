"""One generating call: inputs become rows for several LLMs, and their endings become outputs again, in order.

Rows are begun in the caller's thread and end on the callbacks thread of each LLM's link.
"""

from __future__ import annotations

import copy
import logging
import os
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, Protocol, cast

from ..protocol.content import Failure, pack_row, unpack, unpack_failure, unpack_outputs
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
from .row import Ending, Row, RowSpec
from .share import draw_shares, move_shares

log = logging.getLogger("genpool.client")

# More sets of options than this, one for each row, say, are not worth remembering.
_MOST_SPECS = 1024

# So many inputs become rows before the first of them are sent: a large value leaves the LLMs idle at the beginning of a
# long list, a small one sends small messages.
_BEGIN_AT_ONCE = 256

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


class Call:
    """Splits each input over ``voices`` and joins the shares.

    ``finished(record)`` is called once for each input, when its last share has ended: on a callbacks thread, or in
    ``begin`` for an input that needs no LLM. ``shared(record, share, ending)`` is called before, on a callbacks
    thread, for each share that a worker has answered with outputs: its payload may be an Item's in a later call.
    """

    def __init__(
        self,
        voices: Sequence[Voice],
        settings: CallSettings,
        finished: Callable[[Record], None],
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
        self._drawn: list[int] | None = None
        # The LLMs that are lost by now, by their positions, until they are served again.
        self._lost: dict[int, LLMLost] = {}
        self._over = False
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

    def _begin(self, inputs: Iterable[tuple[int, Any]]) -> None:
        outgoing: dict[int, list[Row]] = defaultdict(list)
        done: list[Record] = []
        for index, given in inputs:
            record = self._record(index, given)
            for share, row in self._rows(record, enumerate(record.shares)):
                outgoing[share.at].append(row)
            if not record.pending:
                done.append(record)
        for record in done:
            self._report(record)
        if self._over:
            return
        for at, rows in outgoing.items():
            self._voices[at].submit_rows(rows)

    def cancel(self) -> None:
        """Withdraw every row that has not ended; ``finished`` is not called any more."""
        rows: dict[int, list[Row]] = defaultdict(list)
        with self._lock:
            self._over = True
            for record in self._records.values():
                for share in record.shares:
                    if share.row is not None:
                        rows[share.at].append(share.row)
            self._records.clear()
        for at, own in rows.items():
            self._voices[at].withdraw_rows(own)

    def _record(self, index: int, given: Any) -> Record:
        item = given if isinstance(given, Item) else None
        planned = planned_shares(item.plan) if item is not None else []
        drawn = [] if planned else self._draw(index if item is None else item.number)
        with self._lock:
            self._note_returns()
            shares = planned or shares_of(self._move(drawn) if self._is_redrawn else drawn)
            if item is None:
                record = Record(index, given, shares, len(shares), index)
            else:
                draws = max(share.draw for share in shares)
                record = Record(index, item.input, shares, len(shares), item.number, item.options, item.seed, draws)
            if not self._over:
                self._records[index] = record
        return record

    def _draw(self, number: int) -> list[int]:
        """The shares of one input. With a seed, those of an input are the same wherever a call begins."""
        settings = self._settings
        if self._drawn is None or settings.draw_each_row:
            is_seeded = settings.draw_each_row and settings.seed is not None
            source = random.Random(f"{settings.seed}/{number}/draw") if is_seeded else self._source
            self._drawn = draw_shares(settings.num_generations, settings.weights, source)
        return self._drawn

    def _rows(self, record: Record, shares: Iterable[tuple[int, Share]]) -> Iterator[tuple[Share, Row]]:
        """The rows for shares of one input, given with their places. What cannot become a row ends here and now."""
        for place, share in shares:
            content = self._content(record, share)
            if isinstance(content, tuple):
                payload, spec = content
                share.row = Row(os.urandom(ROW_ID_BYTES), spec, payload, self, (record.index, place))
                yield share, share.row
            else:
                self._end(record, share, content)

    def _content(self, record: Record, share: Share) -> tuple[bytes, RowSpec] | list[LLMOutput] | RemoteError:
        """What a share's row carries and its spec, or what the share has come to without one."""
        voice = self._voices[share.at]
        if share.answer is not None:
            answer, share.answer = share.answer, None
            return self._outcome(share, record.input, Ending(Outcome.DONE, 1, answer))
        lost = self._lost.get(share.at)
        if lost is not None and not self._is_redrawn:
            return self._local_error(voice, lost)
        try:
            payload = self._payload(voice, record, self._seed_of(record, share.draw))
            if payload is None:
                return self._empty_outputs(share)
            return payload, self._spec(share, self._options(voice, record))
        except (RowError, ConfigurationError) as error:
            return self._local_error(voice, error)

    def _options(self, voice: Voice, record: Record) -> bytes:
        """The options that the input's rows are sent with. Raises ConfigurationError as ``packed_options``."""
        packed = self._settings.options
        if not record.options:
            return packed
        return packed_options([voice], {**(unpack(packed) if packed else {}), **record.options})

    def _spec(self, share: Share, options: bytes) -> RowSpec:
        """What the rows of such shares have in common. Raises ConfigurationError as ``with_wishes``."""
        spec = self._specs.get((share.at, share.count, options))
        if spec is None:
            if len(self._specs) >= _MOST_SPECS:
                self._specs.clear()
            voice, settings = self._voices[share.at], self._settings
            kind = RowKind.INPUT if voice.rendering_task is None else RowKind.PROMPT
            lost_after_s = None if settings.if_lost == "wait" else settings.lost_after_s
            packed = with_wishes(options, voice.rendering_task)
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
            )
            self._specs[share.at, share.count, options] = spec
        return spec

    def _payload(self, voice: Voice, record: Record, seed: int | None) -> bytes | None:
        """The row's bytes; None when the input lacks an argument of the task.

        Raises:
            RowError: when the input cannot be carried, or the task cannot make a prompt of it.
        """
        given, arguments = cast(Mapping[str, Any], record.input), voice.arguments
        # A dict is told apart at once, and what else is a mapping only by asking.
        if not isinstance(record.input, (dict, Mapping)):
            kind = type(record.input).__name__
            raise RowError(f"input {record.number} is a {kind} and not a dict of the task's arguments")
        missing = missing_arguments(arguments, given) if arguments is not None else []
        if missing and (voice.rendering_task is not None or voice.known_model_name is not None):
            log.warning("input %d lacks %s; its outputs are None", record.number, ", ".join(map(repr, missing)))
            return None
        # Where the model's name is not known here yet, the worker makes the empty outputs, which carry it.
        content = dict(given) if arguments is None else {name: given[name] for name in arguments if name in given}
        if voice.rendering_task is None:
            return pack_row(content, seed)
        try:
            prompt = to_wire(voice.rendering_task.generate_prompt(**content))
        # A task is user code: what it raises is this row's failure, and no other's.
        except Exception as error:
            raise RowError(
                f"the task made no prompt of input {record.number}: {type(error).__name__}: {error}"
            ) from error
        return pack_row(prompt, seed)

    def _seed_of(self, record: Record, draw: int) -> int | None:
        if record.seed is not None and not draw:
            return record.seed
        seed = self._settings.seed if record.seed is None else record.seed
        if seed is None:
            return None
        # An LLM that makes a lost one's share beside its own must not say the same again.
        again = f"/{draw}" if draw else ""
        # A text seeds the same in every release of Python, and inputs that are alike still differ.
        return random.Random(f"{seed}/{record.number}{again}").getrandbits(31)

    # On a callbacks thread.

    def ended(self, row: Row, ending: Ending | GenpoolError) -> None:
        """One row has ended: see Owner."""
        index, place = row.place
        with self._lock:
            record = self._records.get(index)
        if record is None:
            return  # cancelled meanwhile
        share = record.shares[place]
        if isinstance(ending, LLMLost):
            self._note_loss(share.at, ending)
        try:
            if isinstance(ending, LLMLost) and self._is_redrawn:
                self._redraw(record, share)
            else:
                outcome = self._outcome(share, record.input, ending)
                if self._shared is not None and isinstance(outcome, list) and isinstance(ending, Ending):
                    self._shared(record, share, ending)
                self._end(record, share, outcome)
        finally:
            if not record.pending:
                self._report(record)

    def _end(self, record: Record, share: Share, outcome: list[LLMOutput] | RemoteError) -> None:
        with self._lock:
            share.outcome = outcome
            record.pending -= 1
        if self._progress is not None:
            self._tell_progress(share.count)

    def _tell_progress(self, advance: int) -> None:
        assert self._progress is not None
        try:
            self._progress(advance=advance)
        # User code: a broken progress bar must not cost the outputs.
        except Exception:
            log.exception("progress_callback_func raised")

    def _report(self, record: Record) -> None:
        with self._lock:
            if self._records.pop(record.index, None) is None:
                return
        record.note_failure()
        record.fill(self._filled)
        self._finished(record)

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
            return self._read(share, given, ending)
        # A task is user code, and reads completions here: whatever it raises, the row has ended.
        except BaseException as error:
            return self._raised(share, error)

    def _read(self, share: Share, given: Any, ending: Ending | GenpoolError) -> list[LLMOutput] | RemoteError:
        voice = self._voices[share.at]
        if isinstance(ending, GenpoolError):
            return self._local_error(voice, ending)
        try:
            if ending.outcome != Outcome.DONE:
                return _remote_error(voice.llm_name, unpack_failure(ending.payload), ending)
            outputs: list[Any] = unpack_outputs(ending.payload)
        except DecodeError as error:
            return self._local_error(voice, error)
        if len(outputs) != share.count:
            text = f"the worker answered with {len(outputs)} outputs of {share.count}"
            return self._local_error(voice, DecodeError(text))
        if voice.rendering_task is not None:
            for output in outputs:
                output["parsed_output"] = parsed_output(voice.rendering_task, output.get("raw_output"), given)
        return outputs

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
        _, share = placed
        try:
            for _, row in self._rows(record, [placed]):
                if not self._over:  # else nobody would withdraw it
                    self._voices[share.at].submit_rows([row])
        # The LLM may be torn down, and a task is user code: whatever is raised, the share has ended.
        except BaseException as error:
            self._end(record, share, self._raised(share, error))

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
