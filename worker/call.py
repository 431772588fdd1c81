"""One engine call: rows in, a RowResult each out. Runs in an engine thread and knows no socket.

A batch that raises is split and its rows tried alone, so that one bad row costs its neighbours nothing.
"""

from __future__ import annotations

import builtins
import copy
import logging
import threading
import traceback
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any, cast

from ..protocol.content import WISHES, Failure, pack, pack_each, pack_failure, unpack, unpack_row, unpack_rows
from ..protocol.errors import DecodeError, EngineDead, EngineUnwell, RowError
from ..protocol.frames import Payload
from ..protocol.messages import Outcome, RowKind
from ..tasks.base import TaskLike, known_wishes, lacking_inputs, text_of
from ..tasks.output import LLMOutput, empty_output, tokens_told
from ..tasks.rendered import RenderedPromptTask
from .llm import LLM, RowCall, are_plain
from .machine import RowResult, StartCall
from .secret import redacted
from .span import CallSpans

log = logging.getLogger("genpool.worker")

# To look them up in their classes takes as long as half a RowResult.
_DONE: int = Outcome.DONE
_INPUT, _PROMPT = RowKind

# What becomes of a row: its outputs, or the error that is its own.
Answer = list[LLMOutput] | Exception

# Hears of rows that have ended while their call goes on.
Tell = Callable[[list[RowResult]], None]

# Faults of the request itself: the same row would raise the same again, wherever it runs.
_DETERMINISTIC = (
    RowError,
    DecodeError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    NotImplementedError,
)


@dataclass(slots=True)
class Rows:
    """Rows of a call, opened, by columns. A flag of ``cancelled`` is set when nobody wants its row any more."""

    executions: Sequence[int]
    payloads: Sequence[Payload]
    contents: Sequence[Any]
    seeds: Sequence[int | None]
    cancelled: Sequence[threading.Event]

    def __len__(self) -> int:
        return len(self.executions)

    def one(self, place: int) -> Rows:
        """The row at ``place`` alone."""
        part = slice(place, place + 1)
        return Rows(
            self.executions[part], self.payloads[part], self.contents[part], self.seeds[part], self.cancelled[part]
        )

    def fresh(self) -> Rows:
        """These rows as they came: an LLM may have changed the contents that it was given."""
        return replace(self, contents=[unpack_row(payload)[0] for payload in self.payloads])

    def wanted(self) -> Rows:
        """Those that were not cancelled."""
        are_wanted = [not flag.is_set() for flag in self.cancelled]
        if False not in are_wanted:
            return self
        return Rows(
            list(compress(self.executions, are_wanted)),
            list(compress(self.payloads, are_wanted)),
            list(compress(self.contents, are_wanted)),
            list(compress(self.seeds, are_wanted)),
            list(compress(self.cancelled, are_wanted)),
        )


class Caller:
    """Makes engine calls on one loaded LLM and turns whatever happens into results.

    ``unwell`` is told when the LLM's server, key or quota is at fault. A failure has its traceback only where
    ``expose_tracebacks``: it tells of this host's paths and of the engine's code. ``spans`` makes those of the calls.
    """

    def __init__(
        self,
        llm: LLM,
        worker: str,
        host: str,
        unwell: Callable[[str], None],
        *,
        expose_tracebacks: bool = False,
        spans: CallSpans | None = None,
    ) -> None:
        self._llm = llm
        self._worker, self._host = worker, host
        self._unwell = unwell
        self._expose_tracebacks = expose_tracebacks
        self._spans = spans
        # A plain LLM takes a rendered prompt through a task that passes it on in place of its own.
        self._rendered = copy.copy(llm)
        self._rendered.task = RenderedPromptTask()
        self._by_batch = type(llm).generate_batch is not LLM.generate_batch
        self.by_row = not self._by_batch and type(llm).generate_row is not LLM.generate_row

    def run(self, call: StartCall, cancelled: Sequence[threading.Event], tell: Tell) -> list[RowResult]:
        """Make ``call``. Returns the results that its end brings; ``tell`` has heard those that were known before.

        Raises:
            EngineDead: the engine cannot go on, and its process must end.
        """
        try:
            options = _options(call.options, self._llm.option_names)
            if call.kind == _INPUT:
                options = self._llm.wishes | options
        except (DecodeError, RowError) as error:
            return [self._failed(execution, error) for execution in call.executions]
        opened = unpack_rows(call.payloads)
        if opened is None:
            rows, unreadable = self._readable(call, cancelled)
            if not rows:
                return unreadable
            if unreadable:
                tell(unreadable)
        else:
            rows = Rows(call.executions, call.payloads, *opened, cancelled)
        if self.by_row:
            return self._one_by_one(call, rows, options, tell)
        return self._attempt(call, rows, options, tell)

    def _readable(self, call: StartCall, cancelled: Sequence[threading.Event]) -> tuple[Rows, list[RowResult]]:
        """The rows of a call that can be read, and the results of those that cannot."""
        read: list[tuple[int, Payload, Any, int | None, threading.Event]] = []
        unreadable: list[RowResult] = []
        for execution, payload, flag in zip(call.executions, call.payloads, cancelled, strict=True):
            try:
                read.append((execution, payload, *unpack_row(payload), flag))
            except DecodeError as error:
                unreadable.append(self._failed(execution, error))
        return Rows(*zip(*read, strict=True)) if read else Rows([], [], [], [], []), unreadable

    def _one_by_one(self, call: StartCall, rows: Rows, options: dict[str, Any], tell: Tell) -> list[RowResult]:
        last = len(rows) - 1
        for place in range(last):
            if results := self._attempt(call, rows.one(place), options, tell):
                tell(results)
        return self._attempt(call, rows.one(last), options, tell)

    def _attempt(self, call: StartCall, rows: Rows, options: dict[str, Any], tell: Tell) -> list[RowResult]:
        rows = rows.wanted()
        if not rows:
            return []
        try:
            if self._spans is None:
                answers = self._generate(call, rows, options)
            else:
                answers = self._spans.run(call, rows.contents, options, lambda: self._generate(call, rows, options))
        except EngineDead:
            raise
        except EngineUnwell as error:
            self._unwell(message_of(error))
            return [RowResult(execution, Outcome.RETURNED, b"") for execution in rows.executions]
        except Exception as error:
            if isinstance(error, CancelledError) and not rows.wanted():
                return [RowResult(execution, Outcome.RETURNED, b"") for execution in rows.executions]
            make_room(error)
            if len(rows) == 1:
                return [self._failed(rows.executions[0], error)]
            log.warning("a batch of %d rows raised %s; trying its rows alone", len(rows), sentence_of(error))
        else:
            return self._all_settled(rows, answers, tell)
        return self._one_by_one(call, rows.fresh(), options, tell)

    def _generate(self, call: StartCall, rows: Rows, options: dict[str, Any]) -> list[Answer]:
        if self._by_batch or self.by_row:
            return self._generate_calls(call, rows, options)
        if call.kind == _PROMPT:
            llm, inputs = self._rendered, [{"prompt": content} for content in rows.contents]
        else:
            llm, inputs = self._llm, _arguments(rows.contents, self._llm.task)
        result: Any = llm.generate(inputs, call.num_generations)
        return _checked(result.result() if isinstance(result, Future) else result, len(rows), call.num_generations)

    def _generate_calls(self, call: StartCall, rows: Rows, options: dict[str, Any]) -> list[Answer]:
        """Row by row or in a batch: the engine sees no row that lacks an argument, whose outputs are empty."""
        kind = "prompt" if call.kind == _PROMPT else "input"
        lacking = lacking_inputs(self._llm.task, rows.contents) if kind == "input" else {}
        requests = [
            RowCall(content, kind, call.num_generations, options, seed, flag)
            for place, (content, seed, flag) in enumerate(zip(rows.contents, rows.seeds, rows.cancelled, strict=True))
            if place not in lacking
        ]
        made: list[Answer] = []
        if requests:
            made = self._llm.generate_batch(requests) if self._by_batch else [self._llm.generate_row(requests[0])]
        answers = iter(_checked(made, len(requests), call.num_generations))
        return [
            [empty_output(self._llm.model_name) for _ in range(call.num_generations)]
            if place in lacking
            else next(answers)
            for place in range(len(rows))
        ]

    def _all_settled(self, rows: Rows, answers: list[Answer], tell: Tell) -> list[RowResult]:
        payloads = pack_each(answers)
        if payloads is not None:
            tokens = _tokens_of(cast("list[list[LLMOutput]]", answers))
            return [
                RowResult(execution, _DONE, payload, count)
                for execution, payload, count in zip(rows.executions, payloads, tokens, strict=True)
            ]
        results: list[RowResult] = []
        try:
            for execution, flag, answer in zip(rows.executions, rows.cancelled, answers, strict=True):
                results.append(self._settled(execution, flag, answer))
        except BaseException:
            tell(results)  # the process ends now, and hands over what it has
            raise
        return results

    def _settled(self, execution: int, cancelled: threading.Event, answer: Answer) -> RowResult:
        if isinstance(answer, Exception):
            is_returned = isinstance(answer, CancelledError) and cancelled.is_set()
            return RowResult(execution, Outcome.RETURNED, b"") if is_returned else self._failed(execution, answer)
        try:
            payload = _packed(answer)
        except RowError as error:
            return self._failed(execution, error)
        return RowResult(execution, _DONE, payload, *_tokens_of([answer]))

    def _failed(self, execution: int, error: Exception) -> RowResult:
        if isinstance(error, CancelledError):
            # An engine's own. Handed back as if it were the client's, the row would come again for ever.
            error = RuntimeError(f"the LLM gave up a row that nobody has cancelled: {sentence_of(error)}")
        outcome = Outcome.FAILED if isinstance(error, _DETERMINISTIC) else Outcome.RAISED
        log.warning("a row failed: %s", sentence_of(error))
        log.debug("where that was", exc_info=error)
        return RowResult(execution, outcome, pack_failure(self._failure(error)))

    def _failure(self, error: Exception) -> Failure:
        trace = traceback_of(error) if self._expose_tracebacks else ""
        message = message_of(error)
        return Failure(type(error).__name__, message, builtin_name(error), trace, self._worker, self._host)


def _packed(outputs: list[LLMOutput]) -> bytes:
    """The answer's payload. What was read in a text or counted for it is left out where it cannot be carried.

    Raises:
        RowError: what the LLM has made cannot be carried.
    """
    try:
        return pack(outputs)
    except RowError:
        complaints: list[str] = []
        payload = pack([_reduced(output, complaints) for output in outputs])
    for complaint in complaints:
        log.warning("%s; the answer goes without it", complaint)
    return payload


def _reduced(output: LLMOutput, complaints: list[str]) -> dict[str, Any]:
    """``output`` without those of its lesser parts that cannot be carried; ``complaints`` says of each why."""
    reduced: dict[str, Any] = {**output}
    for part in ("parsed_output", "usage"):
        try:
            pack({part: reduced.get(part)})
        except RowError as error:
            complaints.append(str(error))
            if part == "usage":
                del reduced[part]  # which has no None: it is there or it is not
            else:
                reduced[part] = None
    return reduced


def builtin_name(error: BaseException) -> str:
    """The name of the nearest built-in exception that ``error`` is."""
    return next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == builtins.__name__)


def sentence_of(error: BaseException) -> str:
    """What was raised, in a line."""
    return f"{type(error).__name__}: {message_of(error)}".removesuffix(": ")


def make_room(error: BaseException) -> None:
    """When memory ran out, let go of what the frames hold: beside it there is no room, not even to say so.

    SystemError is what CPython raises in place of a MemoryError that some function in C has lost.
    """
    if isinstance(error, MemoryError | SystemError):
        traceback.clear_frames(error.__traceback__)


def message_of(error: BaseException) -> str:
    """What it says, without secrets."""
    return redacted(text_of(error))


def traceback_of(error: BaseException) -> str:
    """Where it was raised and what it came of, without secrets."""
    return redacted("".join(traceback.format_exception(error)))


def _arguments(contents: Sequence[Any], task: TaskLike) -> list[Any]:
    """What the task asks for: a client that does not know the task sends all that its inputs hold."""
    names = list(task.input_args_names)
    return [
        content if type(content) is not dict or [*content] == names else _chosen(content, names) for content in contents
    ]


def _chosen(given: Any, names: list[str]) -> dict[str, Any]:
    return {name: given[name] for name in names if name in given}


def _options(packed: bytes, known: Collection[str]) -> dict[str, Any]:
    """The call's options by name.

    Raises:
        DecodeError: they cannot be read.
        RowError: the LLM does not know one; a client finds that out itself only once it knows the LLM.
    """
    if not packed:
        return {}
    options: Any = unpack(packed)
    if not isinstance(options, dict):
        raise DecodeError("the options are no map of names")
    named = cast(dict[str, Any], options)
    wishes = known_wishes(named.pop(WISHES, None), known)
    unknown = [name for name in named if name not in known]
    if unknown:
        names = ", ".join(map(repr, unknown))
        raise RowError(f"the LLM knows no option {names}; it knows {', '.join(sorted(known)) or 'none'}")
    return wishes | named


def _tokens_of(answers: Sequence[list[LLMOutput]]) -> list[int]:
    """How many tokens were generated for each row, as far as its outputs say so."""
    if not [True for outputs in answers for output in outputs if "usage" in output]:
        return [0] * len(answers)
    return [sum([tokens_told(output.get("usage"), "completion_tokens") for output in outputs]) for outputs in answers]


def _checked(answers: Any, rows: int, num_generations: int) -> list[Answer]:
    """Raises RowError unless there are ``num_generations`` outputs, as dicts, or an error for each of ``rows``."""
    if are_plain(answers, rows, num_generations):
        return answers
    if not isinstance(answers, list) or len(cast(list[Any], answers)) != rows:
        got = f"{len(cast(list[Any], answers))} rows" if isinstance(answers, list) else f"a {type(answers).__name__}"
        raise RowError(f"the LLM was given {rows} rows and returned {got} instead of a list of outputs for each")
    given = cast(list[Any], answers)
    for outputs in given:
        if isinstance(outputs, Exception):
            continue
        if not isinstance(outputs, list) or [one for one in cast(list[Any], outputs) if not isinstance(one, dict)]:
            raise RowError("the LLM returned something else than a list of outputs (dicts) for a row")
        if len(cast(list[Any], outputs)) != num_generations:
            count = len(cast(list[Any], outputs))
            raise RowError(f"the LLM was asked for {num_generations} generations of a row and returned {count}")
    return given
