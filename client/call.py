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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from ..protocol.content import Failure, pack_row, unpack_failure, unpack_outputs
from ..protocol.errors import DecodeError, Expired, GenpoolError, RemoteError, RowError, known_error
from ..protocol.limits import ROW_ID_BYTES
from ..protocol.messages import LLMInfo, Outcome, RowKind
from ..tasks.base import missing_arguments
from ..tasks.output import LLMOutput, empty_output, parsed_output
from ..tasks.prompt import to_wire
from .row import Ending, Row, RowSpec
from .share import draw_shares

log = logging.getLogger("genpool.client")


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
    """What a call asks for. ``options`` are packed generation options; ``deadline`` is on the monotonic clock."""

    num_generations: int
    weights: list[float]
    draw_each_row: bool
    seed: int | None
    options: bytes
    deadline: float | None
    fill_errors: bool


@dataclass(slots=True)
class Record:
    """One input on its way: ``parts`` holds what each LLM's share came to, None while it is under way."""

    index: int
    input: Any
    shares: list[int]
    parts: list[list[LLMOutput] | RemoteError | None]
    pending: int
    failure: RemoteError | None = None
    rows: list[Row] = field(default_factory=list[Row])

    @property
    def outputs(self) -> list[LLMOutput]:
        """All that is finished, in the order of the LLMs."""
        return [output for part in self.parts if isinstance(part, list) for output in part]

    def note_failure(self) -> None:
        """Set ``failure`` to the first one among the parts, with the others attached."""
        errors = [part for part in self.parts if isinstance(part, RemoteError)]
        if errors:
            errors[0].others = errors[1:]
            self.failure = errors[0]


class Call:
    """Splits each input over ``voices`` and joins the shares.

    ``finished(record)`` is called once for each input, when its last share has ended: on a callbacks thread, or in
    ``begin`` for an input that needs no LLM.
    """

    def __init__(
        self,
        voices: Sequence[Voice],
        settings: CallSettings,
        finished: Callable[[Record], None],
        progress: Callable[..., Any] | None = None,
    ) -> None:
        self._voices = voices
        self._settings = settings
        self._finished = finished
        self._progress = progress
        self._lock = threading.Lock()
        self._records: dict[int, Record] = {}
        self._source = random.Random(settings.seed)
        self._drawn: list[int] | None = None
        self._over = False
        # Rows of the same spec share one object, by which the client's machine groups them.
        self._specs: dict[tuple[int, int], RowSpec] = {}

    @property
    def fills_errors(self) -> bool:
        """Whether failed shares get outputs of None in their places."""
        return self._settings.fill_errors

    def begin(self, inputs: Iterable[tuple[int, Any]]) -> None:
        """Send the rows of these inputs, each with its index."""
        outgoing: dict[int, list[Row]] = defaultdict(list)
        done: list[Record] = []
        for index, given in inputs:
            record = self._record(index, given)
            for at, rows in self._rows(record):
                outgoing[at] += rows
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
        with self._lock:
            self._over = True
            rows = [row for record in self._records.values() for row in record.rows]
            self._records.clear()
        for at, voice in enumerate(self._voices):
            own = [row for row in rows if row.place[1] == at]
            if own:
                voice.withdraw_rows(own)

    def _record(self, index: int, given: Any) -> Record:
        if self._drawn is None or self._settings.draw_each_row:
            self._drawn = draw_shares(self._settings.num_generations, self._settings.weights, self._source)
        shares = self._drawn
        record = Record(index, given, shares, [None if share else [] for share in shares], 0)
        record.pending = sum(share > 0 for share in shares)
        with self._lock:
            if not self._over:
                self._records[index] = record
        return record

    def _rows(self, record: Record) -> Iterable[tuple[int, list[Row]]]:
        """The rows of one input. What cannot become a row ends here and now."""
        seed = self._seed_of(record.index)
        for at, (voice, share) in enumerate(zip(self._voices, record.shares, strict=True)):
            if not share:
                continue
            try:
                payload = self._payload(voice, record, seed)
            except RowError as error:
                self._end(record, at, self._local_error(voice, error))
                continue
            if payload is None:
                self._end(record, at, self._empty_outputs(at, share))
                continue
            row = Row(os.urandom(ROW_ID_BYTES), self._spec(at, share), payload, self, (record.index, at))
            record.rows.append(row)
            yield at, [row]

    def _spec(self, at: int, share: int) -> RowSpec:
        spec = self._specs.get((at, share))
        if spec is None:
            voice, settings = self._voices[at], self._settings
            kind = RowKind.INPUT if voice.rendering_task is None else RowKind.PROMPT
            spec = RowSpec(voice.llm_name, kind, share, settings.options, settings.deadline, voice.wait_s)
            self._specs[at, share] = spec
        return spec

    def _payload(self, voice: Voice, record: Record, seed: int | None) -> bytes | None:
        """The row's bytes; None when the input lacks an argument of the task.

        Raises:
            RowError: when the input cannot be carried, or the task cannot make a prompt of it.
        """
        given, arguments = cast(Mapping[str, Any], record.input), voice.arguments
        if not isinstance(record.input, Mapping):
            kind = type(record.input).__name__
            raise RowError(f"input {record.index} is a {kind} and not a dict of the task's arguments")
        missing = missing_arguments(arguments, given) if arguments is not None else []
        if missing and (voice.rendering_task is not None or voice.known_model_name is not None):
            log.warning("input %d lacks %s; its outputs are None", record.index, ", ".join(map(repr, missing)))
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
                f"the task made no prompt of input {record.index}: {type(error).__name__}: {error}"
            ) from error
        return pack_row(prompt, seed)

    def _seed_of(self, index: int) -> int | None:
        seed = self._settings.seed
        # A text seeds the same in every release of Python, and inputs that are alike still differ.
        return None if seed is None else random.Random(f"{seed}/{index}").getrandbits(31)

    # On a callbacks thread.

    def ended(self, row: Row, ending: Ending | GenpoolError) -> None:
        """One row has ended: see Owner."""
        index, at = row.place
        with self._lock:
            record = self._records.get(index)
        if record is None:
            return  # cancelled meanwhile
        try:
            part = self._part(record, at, ending)
        # A task is user code, and reads completions here: whatever it raises, the row has ended.
        except BaseException as error:
            part = RemoteError(type(error).__name__, str(error), llm=self._voices[at].llm_name)
        try:
            self._end(record, at, part)
        finally:
            if not record.pending:
                self._report(record)

    def _end(self, record: Record, at: int, part: list[LLMOutput] | RemoteError) -> None:
        with self._lock:
            record.parts[at] = part
            record.pending -= 1
        if self._progress is not None:
            self._tell_progress(record.shares[at])

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
        record.rows.clear()
        record.note_failure()
        if self._settings.fill_errors:
            self._fill(record)
        self._finished(record)

    def _fill(self, record: Record) -> None:
        for at, part in enumerate(record.parts):
            if isinstance(part, RemoteError):
                outputs = record.parts[at] = self._empty_outputs(at, record.shares[at])
                for output in outputs:
                    output["error"] = str(part)

    def _empty_outputs(self, at: int, count: int) -> list[LLMOutput]:
        name = self._voices[at].known_model_name or self._voices[at].llm_name
        return [empty_output(name) for _ in range(count)]

    def _part(self, record: Record, at: int, ending: Ending | GenpoolError) -> list[LLMOutput] | RemoteError:
        voice = self._voices[at]
        if isinstance(ending, GenpoolError):
            return self._local_error(voice, ending)
        try:
            if ending.outcome != Outcome.DONE:
                return _remote_error(voice.llm_name, unpack_failure(ending.payload), ending)
            outputs: list[Any] = unpack_outputs(ending.payload)
        except DecodeError as error:
            return self._local_error(voice, error)
        if len(outputs) != record.shares[at]:
            text = f"the worker answered with {len(outputs)} outputs of {record.shares[at]}"
            return self._local_error(voice, DecodeError(text))
        if voice.rendering_task is not None:
            for output in outputs:
                output["parsed_output"] = parsed_output(voice.rendering_task, output.get("raw_output"))
        return outputs

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
