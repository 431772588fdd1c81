"""The generating calls that a ``ProcessLLM`` and an ``LLMPool`` have in common."""

from __future__ import annotations

import math
import operator
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, Literal, TypedDict, Unpack, cast

from ..protocol.errors import ConfigurationError, RemoteError, generation_error
from ..protocol.limits import MAX_COUNT, MAX_GENERATIONS
from ..tasks.output import LLMOutput
from .call import HEDGE_FACTOR, LOST_AFTER_S, Call, CallSettings, deadline_of
from .future import CallFuture
from .maker import Voice
from .option import packed_options
from .record import Record, Share
from .row import Ending
from .seconds import checked_seconds
from .share import check_weights
from .stream import AsyncRows, Rows, stream

Outputs = list[list[LLMOutput]]
Progress = Callable[..., Any]

# A stream begins at most this many inputs that it has not yielded, or this many times what the LLMs run at once.
_LEAST_WINDOW = 64
_WINDOW_PER_CAPACITY = 4


class CallOptions(TypedDict, total=False):
    """What every generating call takes beside its inputs.

    Attributes:
        on_error: what becomes of rows that fail: "raise" one GenerationError at the end, or "fill" their places with
            outputs of None that say why in ``error``.
        seed: repeats the draw of shares, and seeds the sampling of engines that can.
        draw: which LLMs make one generation more is drawn once a "call", or anew for each "row".
        weights: unequal shares: a number for each LLM.
        timeout: seconds after which rows without an answer fail as Expired.
        if_lost: what becomes of the shares of an LLM that nobody has served for ``lost_after_s``: "wait" on for it;
            "redraw" them over the pool's other LLMs that are served (where none is, they wait); or "fill" their
            places as ``on_error`` does. Each input has all its outputs in any case.
        lost_after_s: an LLM is lost when for so many seconds, with rows of this call waiting, the broker has said
            that no worker takes its rows: none is there, or all load, drain or are unwell. Time without a broker
            does not count. 600 by default; a worker should be able to start again and load within it.
        hedge: a row that has run so many times as long as its LLM's rows usually do, while another worker of the LLM
            could take more, is given to that one too; the first answer counts, and the other run is ended. True is
            3 times. A row that has failed or ended a worker is never hedged, nor are more than one in 20.
        generation_kwargs: sampling options for this call, by the names that the engines know.
    """

    on_error: Literal["raise", "fill"]
    seed: int | None
    draw: Literal["call", "row"]
    weights: Sequence[float] | None
    timeout: float | None
    if_lost: Literal["wait", "redraw", "fill"]
    lost_after_s: float | None
    hedge: bool | float | None
    generation_kwargs: Mapping[str, Any] | None


class Generator(ABC):
    """Generates with the LLMs of ``_voices``."""

    @abstractmethod
    def _voices(self) -> Sequence[Voice]:
        """The LLMs, in order. Raises Closed after ``teardown``."""

    @property
    def _must_find_voices(self) -> bool:
        """Whether ``_voices`` may have to wait for the broker."""
        return False

    def submit(
        self,
        inputs: Iterable[Mapping[str, Any]],
        num_generations: int = 1,
        progress_callback_func: Progress | None = None,
        **options: Unpack[CallOptions],
    ) -> CallFuture[Outputs]:
        """Start generating and return at once.

        Only where an input holds what cannot be carried, and no broker has told yet whether the task reads it, is that
        waited for, as long as ``connect`` and ``timeout`` say.

        Args:
            inputs: a dict of the task's arguments for each.
            num_generations: outputs for each input.
            progress_callback_func: called as ``f(advance=k)`` when ``k`` more outputs are there (or will never be),
                on the callbacks thread (here, for inputs that no LLM is asked about); the ``k`` add up to
                ``num_generations * len(inputs)``. Like a future's done-callbacks, which run there too, it must not
                wait for another call's result.
            options: see CallOptions.

        Returns:
            A future of one list for each input, in their order, ``num_generations`` long, the LLMs' shares in the
            LLMs' order. Its ``cancel()`` reaches the engines. Failed rows make it raise one GenerationError that
            carries every failure and every finished output.

        Raises:
            ConfigurationError: for arguments that cannot be used (it is a ValueError).
            Closed: after ``teardown()``.
        """
        _require_callable(progress_callback_func)
        given = list(_as_iterable(inputs))
        voices = self._voices()
        settings = _settings(voices, num_generations, options)
        return _Gathering(voices, given, settings, progress_callback_func).start()

    async def agenerate(
        self,
        inputs: Iterable[Mapping[str, Any]],
        num_generations: int = 1,
        progress_callback_func: Progress | None = None,
        **options: Unpack[CallOptions],
    ) -> Outputs:
        """``submit`` for asyncio. Cancelling the task cancels the call."""
        import asyncio  # who has not imported it yet does without: see astream.py

        if self._must_find_voices:
            await asyncio.to_thread(self._voices)
        return await asyncio.wrap_future(self.submit(inputs, num_generations, progress_callback_func, **options))

    def stream(
        self,
        inputs: Iterable[Mapping[str, Any]],
        num_generations: int = 1,
        progress_callback_func: Progress | None = None,
        *,
        ordered: bool = False,
        **options: Unpack[CallOptions],
    ) -> Rows:
        """Yield a Row for each input as it finishes, or in the inputs' order.

        ``inputs`` may be endless: it is read no further ahead than a window that follows what the LLMs run at once, nor
        than 64 MiB of rows for each of them.
        A failed row is yielded with its ``error``; nothing is raised for it. Leaving the iteration cancels the rest.
        Arguments and errors as for ``submit``.
        """
        return self.stream_items(inputs, num_generations, progress_callback_func, ordered=ordered, **options)

    def stream_items(
        self,
        inputs: Iterable[Any],
        num_generations: int = 1,
        progress_callback_func: Progress | None = None,
        *,
        ordered: bool = False,
        shared: Callable[[Record, Share, Ending], None] | None = None,
        **options: Unpack[CallOptions],
    ) -> Rows:
        """``stream`` for a run of a dataset: inputs may be Items, and ``shared`` is as in Call."""
        make_call = self._call_maker(num_generations, progress_callback_func, options, shared)
        return stream(make_call, _as_iterable(inputs), self._window, ordered=ordered)

    def astream(
        self,
        inputs: Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]],
        num_generations: int = 1,
        progress_callback_func: Progress | None = None,
        *,
        ordered: bool = False,
        **options: Unpack[CallOptions],
    ) -> AsyncRows:
        """``stream`` for asyncio; ``inputs`` may be an async iterable."""
        from .astream import astream

        def find_and_make(finished: Callable[[list[Record]], None]) -> Call:
            return self._call_maker(num_generations, progress_callback_func, options)(finished)

        waits = self._must_find_voices  # and then what needs them is checked later
        make_call = find_and_make if waits else self._call_maker(num_generations, progress_callback_func, options)
        given = inputs if isinstance(inputs, AsyncIterable) else _as_iterable(inputs)
        return astream(make_call, given, self._window, ordered=ordered, waits=waits)

    def _call_maker(
        self,
        num_generations: int,
        progress: Progress | None,
        options: CallOptions,
        shared: Callable[[Record, Share, Ending], None] | None = None,
    ) -> Callable[[Callable[[list[Record]], None]], Call]:
        """Check the arguments now, and make the Call when the iteration starts (and its timeout with it)."""
        _require_callable(progress)
        voices = self._voices()
        _settings(voices, num_generations, options)
        return lambda finished: Call(voices, _settings(voices, num_generations, options), finished, progress, shared)

    def _window(self) -> int:
        capacity = 0
        for voice in self._voices():
            capacity += voice.info.capacity if voice.info else 0
        return max(_LEAST_WINDOW, _WINDOW_PER_CAPACITY * capacity)


class _Gathering:
    """A call whose outputs are gathered into one list, for ``submit``."""

    def __init__(
        self, voices: Sequence[Voice], inputs: list[Any], settings: CallSettings, progress: Progress | None
    ) -> None:
        self._inputs = inputs
        self._outputs: Outputs = [[]] * len(inputs)
        self._failures: dict[int, RemoteError] = {}
        self._left = len(inputs)
        self._lock = threading.Lock()
        self._call = Call(voices, settings, self._finished, progress, finished_alike=self._finished_alike)
        self._future: CallFuture[Outputs] = CallFuture(self._call.cancel)

    def start(self) -> CallFuture[Outputs]:
        if not self._inputs:
            self._call.end()
            self._future.resolve([])
        try:
            self._call.begin_list(self._inputs)
        except BaseException as error:
            self._call.cancel(error)
            raise
        return self._future

    def _finished(self, records: list[Record]) -> None:
        for record in records:
            self._outputs[record.index] = record.outputs
            if record.failure is not None and not record.is_whole:
                self._failures[record.index] = record.failure
        self._note_end(len(records))

    def _finished_alike(self, start: int, outputs: Outputs) -> None:
        self._outputs[start : start + len(outputs)] = outputs
        self._note_end(len(outputs))

    def _note_end(self, count: int) -> None:
        with self._lock:
            self._left -= count
            if self._left:
                return
        self._call.end()
        if self._failures:
            self._future.reject(generation_error(dict(sorted(self._failures.items())), self._outputs))
        else:
            self._future.resolve(self._outputs)


def _settings(voices: Sequence[Voice], num_generations: Any, options: CallOptions) -> CallSettings:
    """The settings of one call, checked. Raises ConfigurationError."""
    unknown = options.keys() - CallOptions.__annotations__.keys()
    if unknown:
        raise ConfigurationError(
            f"no such option: {', '.join(sorted(unknown))}; there are {', '.join(sorted(CallOptions.__annotations__))}"
        )
    if isinstance(num_generations, bool) or not isinstance(num_generations, int) or num_generations < 1:
        raise ConfigurationError(f"`num_generations` must be a whole number of at least 1, and is {num_generations!r}")
    if num_generations > MAX_GENERATIONS:
        raise ConfigurationError(f"`num_generations` may be at most {MAX_GENERATIONS}, and is {num_generations}")
    return CallSettings(
        num_generations=num_generations,
        weights=check_weights(options.get("weights"), len(voices)),
        draw_each_row=_choice("draw", options.get("draw"), "call", "row") == "row",
        seed=_seed(options.get("seed")),
        options=packed_options(voices, options.get("generation_kwargs")),
        deadline=deadline_of(_seconds("timeout", options.get("timeout"))),
        fill_errors=_choice("on_error", options.get("on_error"), "raise", "fill") == "fill",
        if_lost=_if_lost(voices, options.get("if_lost")),
        lost_after_s=_seconds("lost_after_s", options.get("lost_after_s")) or LOST_AFTER_S,
        hedge=_hedge(options.get("hedge")),
    )


def _require_callable(progress: object) -> None:
    if progress is not None and not callable(progress):
        raise ConfigurationError(f"`progress_callback_func` must be a function, and is {progress!r}")


def _choice(name: str, value: Any, usual: str, *others: str) -> str:
    if value is None:
        return usual
    if value not in (usual, *others):
        choices = " or ".join(map(repr, (usual, *others)))
        raise ConfigurationError(f"`{name}` must be {choices}, and is {value!r}")
    return value


def _if_lost(voices: Sequence[Voice], value: Any) -> str:
    chosen = _choice("if_lost", value, "wait", "redraw", "fill")
    if chosen == "redraw" and len(voices) == 1:
        raise ConfigurationError(
            f"`if_lost` cannot be 'redraw' for {voices[0].llm_name!r} alone, as there is no other LLM that could take "
            "its shares: use 'wait' or 'fill', or a pool"
        )
    return chosen


def _hedge(value: Any) -> float:
    if value is None or isinstance(value, bool):
        return HEDGE_FACTOR if value else 0.0
    if not isinstance(value, Real) or not 1 <= float(value) < math.inf:
        raise ConfigurationError(f"`hedge` must be True, False or a number of at least 1, and is {value!r}")
    return float(value)


def _seed(seed: Any) -> int | None:
    if seed is None:
        return None
    try:
        checked = operator.index(seed)
    except TypeError:
        raise ConfigurationError(f"`seed` must be a whole number, and is {seed!r}") from None
    if abs(checked) > MAX_COUNT:  # which the journal of a run could not hold
        raise ConfigurationError(f"`seed` must be a whole number from -{MAX_COUNT} to {MAX_COUNT}, and is {checked}")
    return checked


def _seconds(name: str, value: Any) -> float | None:
    return None if value is None else checked_seconds(name, value)


def _as_iterable(inputs: Any) -> Iterable[Any]:
    if isinstance(inputs, (str, bytes, Mapping)) or not isinstance(inputs, Iterable):
        raise ConfigurationError(
            f"`inputs` must be a list of dicts, one for each row, and is a {type(cast(object, inputs)).__name__}: "
            "write [{'input': …}] for a single one"
        )
    return cast(Iterable[Any], inputs)
