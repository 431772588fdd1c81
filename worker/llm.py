"""The LLM: what every engine derives from.

    inputs ── lacks an argument ──────────────────────────────▶ empty outputs ─┐
      └────── valid ── no threads ─▶ _generate(all)             ───────────────┼─▶ one list per input, in order
                   └── threads ────▶ _generate([one]), a future for each ──────┘   (a joint future where threads run)

It rebuilds ``LLM`` of distilabel 0.6 (``distilabel/llm/base.py``, Apache-2.0) by its documented behaviour.
"""

from __future__ import annotations

import logging
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, cast

from ..protocol.errors import Closed, ConfigurationError, RowError
from ..protocol.shape import are_lists
from ..tasks.base import TaskLike, known_wishes, lacking_inputs, missing_arguments, require_task
from ..tasks.output import LLMOutput, empty_output
from ..tasks.prompt import Prompt, SupportedFormats, as_prompt, check_format, from_wire
from .joint import JointFuture, Progress
from .parameters import parameters_of

log = logging.getLogger("genpool.worker")

Generations = list[list[LLMOutput]]


@dataclass(frozen=True, slots=True, eq=False)
class RowCall:
    """One row for an engine that takes rows with their options, one by one or in batches.

    Attributes:
        content: the task's arguments (``input``), or a rendered prompt in wire form (``prompt``).
        kind: which of the two.
        num_generations: how many outputs are asked for.
        options: sampling options of this call by name, only such as the LLM's ``option_names`` lists.
        seed: seeds the sampling, where the engine can.
        cancelled: set when nobody wants the row any more. When the call has returned it is another row's.
    """

    content: dict[str, Any] | str | list[dict[str, Any]]
    kind: Literal["input", "prompt"] = "input"
    num_generations: int = 1
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    seed: int | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)


class LLM(ABC):
    """A model with the task that it performs. Derive from it and give it ``model_name`` and ``_generate``.

    An engine that can stop a completion, or take options for a single call, overrides ``generate_row`` or, where it
    works best on several rows at once, ``generate_batch`` as well: a worker then prefers it. ``copy.copy`` makes a twin
    that shares engine and threads and may have another ``task``.

    Args:
        task: turns an input into a prompt and a completion into a parsed output.
        num_threads: how many inputs to generate for at once, in threads; ``generate`` then returns a Future. With
            None it blocks, and gives ``_generate`` all inputs in one call.
        prompt_format: the format of the prompts; None leaves it to the engine.
        prompt_formatting_fn: makes the final prompt from the task's, in place of ``prompt_format``.

    Raises:
        ConfigurationError: no such prompt format, or less than one thread.
        TypeError: the task lacks a method.
    """

    option_names: frozenset[str] = frozenset()

    # Whose models these are, in traces; "" is told as the class's name.
    provider_name: str = ""

    def __init__(
        self,
        task: TaskLike,
        num_threads: int | None = None,
        prompt_format: SupportedFormats | None = None,
        prompt_formatting_fn: Callable[..., Any] | None = None,
    ) -> None:
        require_task(task)
        if num_threads is not None:
            _require_positive("num_threads", num_threads)
        if prompt_format is not None:
            _require_format(prompt_format)
        self.task = task
        self.prompt_format: SupportedFormats | None = prompt_format
        self.prompt_formatting_fn = prompt_formatting_fn
        self._num_threads = num_threads
        self._in_thread = threading.local()
        self._is_closed = False
        self.thread_pool_executor = None if num_threads is None else self._start_threads(num_threads)

    def __del__(self) -> None:
        """Lets go of the threads: they end once no twin of this LLM shares them."""
        self.thread_pool_executor = None

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(task={type(self.task).__name__}, num_threads={self.num_threads}, "
            f"prompt_format={self.prompt_format!r}, model={self.model_name!r})"
        )

    def __rich_repr__(self) -> Generator[Any, None, None]:
        yield "task", self.task
        yield "num_threads", self.num_threads
        yield "prompt_format", self.prompt_format
        if self.prompt_formatting_fn is not None:
            yield "prompt_formatting_fn", _signature(self.prompt_formatting_fn)
        yield "model", self.model_name

    @property
    @abstractmethod
    def model_name(self) -> str:
        """The model's name, as it stands in every output."""

    @property
    def num_threads(self) -> int | None:
        return self._num_threads

    @property
    def wishes(self) -> dict[str, Any]:
        """The sampling options that the task would like, of those that this LLM knows."""
        return known_wishes(getattr(self.task, "generation_kwargs", None), self.option_names)

    @property
    def return_futures(self) -> bool:
        """Whether ``generate`` returns a Future."""
        return self._num_threads is not None

    @property
    def concurrency(self) -> int:
        """How many calls at once suit this LLM."""
        return self._num_threads or 1

    @abstractmethod
    def _generate(self, inputs: list[dict[str, Any]], num_generations: int = 1) -> Generations:
        """Generates for ``inputs``, which all have the task's arguments.

        Returns:
            One inner list per input, ``num_generations`` long.
        """

    def generate_row(self, call: RowCall) -> list[LLMOutput]:
        """Generates the ``call.num_generations`` outputs of one row; optional.

        Raises:
            RowError: the row itself is at fault.
            EngineUnwell: the server, the key or the quota is at fault.
            EngineDead: the engine cannot go on.
        """
        raise NotImplementedError(f"{type(self).__name__} does not answer row by row: call `generate`.")

    def generate_batch(self, calls: Sequence[RowCall]) -> list[list[LLMOutput] | Exception]:
        """Generates for several rows in one go; optional. They share ``kind``, ``num_generations`` and ``options``.

        Returns:
            For each of ``calls`` its outputs, or the error that is its own and no other row's: a RowError, or
            ``concurrent.futures.CancelledError`` where ``call.cancelled`` was set.

        Raises:
            EngineUnwell: the server, the key or the quota is at fault.
            EngineDead: the engine cannot go on.
            Exception: anything else (a MemoryError, say): the rows are tried again, each alone.
        """
        raise NotImplementedError(f"{type(self).__name__} takes no batches of calls: call `generate`.")

    def generate(
        self,
        inputs: list[dict[str, Any]],
        num_generations: int = 1,
        progress_callback_func: Callable[..., Any] | None = None,
    ) -> Generations | Future[Generations]:
        """Generates ``num_generations`` outputs for each of ``inputs``.

        An input that lacks an argument of the task is not generated for: its outputs have None in place of prompt
        and text. With threads, the first input that fails fails the Future, and those not begun are dropped;
        cancelling the Future drops those not begun, too.

        Args:
            inputs: the task's arguments by name, a dict for each input.
            num_generations: how many outputs each input gets.
            progress_callback_func: called as ``progress_callback_func(advance=k)``, by one thread at a time, when
                ``k`` more outputs are there.

        Returns:
            A list per input, in their order, of ``num_generations`` outputs; with threads, a Future of that.

        Raises:
            ConfigurationError: ``num_generations`` is below 1, or ``inputs`` are no list.
            Closed: after ``close()``.
            RowError: ``_generate`` returned fewer or more outputs than it was asked for.
        """
        _require_positive("num_generations", num_generations)
        _require_list(inputs)
        if self._is_closed:
            raise self._closed()
        invalid = self._find_invalid(inputs)
        valid = [one for index, one in enumerate(inputs) if index not in invalid] if invalid else list(inputs)
        progress = Progress(progress_callback_func)
        progress.advance(num_generations * len(invalid))
        if self.thread_pool_executor is not None:
            parts = self._submit(self.thread_pool_executor, valid, num_generations, progress)
            fill = partial(self._fill, len(inputs), invalid, num_generations)
            return JointFuture(parts, lambda rows: fill([row[0] for row in rows]))
        generated = self._generate_checked(valid, num_generations) if valid else []
        progress.advance(num_generations * len(valid))
        return self._fill(len(inputs), invalid, num_generations, generated)

    def validate_prompts(
        self, inputs: list[dict[str, Any]], default_format: SupportedFormats | None = None
    ) -> list[Any]:
        """The prompts that ``inputs`` would be sent as, to be looked at. Arguments as in ``_generate_prompts``."""
        return self._generate_prompts(inputs, default_format=default_format)

    def _generate_prompts(
        self, inputs: list[dict[str, Any]], default_format: SupportedFormats | None = None
    ) -> list[Any]:
        """The prompts for ``inputs``, each as the engine shall send it.

        A ``Prompt`` goes through ``prompt_formatting_fn`` where there is one; else it is formatted as
        ``prompt_format``, as ``default_format``, or at last as ``default`` with a UserWarning. What a task has
        formatted itself is left as it is; a ``prompt_formatting_fn`` is applied to it with a UserWarning.
        """
        prompts = [as_prompt(self.task.generate_prompt(**one)) for one in inputs]
        if self.prompt_formatting_fn is not None:
            if not all(isinstance(prompt, Prompt) for prompt in prompts):
                warnings.warn(
                    f"{type(self.task).__name__}.generate_prompt returns prompts that are formatted already, and "
                    "`prompt_formatting_fn` formats them again.",
                    UserWarning,
                    stacklevel=2,
                )
        elif (self.prompt_format or default_format) is None and any(isinstance(one, Prompt) for one in prompts):
            warnings.warn(
                "Neither `prompt_format` nor a default format is set: prompts are sent as their system prompt, a "
                "line break and the input.",
                UserWarning,
                stacklevel=2,
            )
            default_format = "default"
        return [self._formatted(prompt, default_format) for prompt in prompts]

    def prompt_of(self, call: RowCall) -> Any:
        """The prompt of one row: formatted where this LLM has a format or a function for it, else as the task made it.

        A task's ``Prompt`` that nothing formats stays a ``Prompt``; ``chat_messages`` turns it into messages.

        Raises:
            RowError: the row lacks an argument of the task.
        """
        if call.kind == "prompt":
            return self._formatted(from_wire(cast("str | list[dict[str, Any]]", call.content)))
        missing = missing_arguments(self.task, call.content)
        if missing:
            raise RowError(f"The input lacks {', '.join(map(repr, missing))}, which {type(self.task).__name__} needs.")
        content = cast(dict[str, Any], call.content)
        arguments = {name: content[name] for name in self.task.input_args_names}
        return self._formatted(self.task.generate_prompt(**arguments))

    def close(self) -> None:
        """Ends the threads: calls that run are waited for, those not begun are cancelled. May be called twice.

        An engine that overrides it calls this first, then stops what it has started.
        """
        self._is_closed = True
        if self.thread_pool_executor is not None:
            # A future's callback runs in a thread of the pool, and a thread cannot wait for its own end.
            is_own_thread = getattr(self._in_thread, "is_ours", False)
            self.thread_pool_executor.shutdown(wait=not is_own_thread, cancel_futures=True)

    def _start_threads(self, num_threads: int) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(
            max_workers=num_threads,
            thread_name_prefix=f"genpool-{type(self).__name__}",
            initializer=setattr,
            initargs=(self._in_thread, "is_ours", True),
        )

    def _submit(
        self, executor: ThreadPoolExecutor, inputs: list[dict[str, Any]], num_generations: int, progress: Progress
    ) -> list[Future[Generations]]:
        try:
            parts = [executor.submit(self._generate_checked, [one], num_generations) for one in inputs]
        except RuntimeError as error:
            raise self._closed() from error
        for part in parts:
            part.add_done_callback(lambda part: progress.advance_for(part, num_generations))
        return parts

    def _generate_checked(self, inputs: list[dict[str, Any]], num_generations: int) -> Generations:
        generations = self._generate(inputs, num_generations)
        if not are_plain(generations, len(inputs), num_generations):
            _require_shape(f"{type(self).__name__}._generate", generations, len(inputs), num_generations)
        return generations

    def _find_invalid(self, inputs: list[dict[str, Any]]) -> set[int]:
        missing = lacking_inputs(self.task, inputs)
        for index, names in missing.items():
            lacking = ", ".join(map(repr, names))
            log.warning(
                "input %d lacks %s, which %s needs: its outputs stay empty", index, lacking, type(self.task).__name__
            )
        return set(missing)

    def _fill(self, num_inputs: int, invalid: set[int], num_generations: int, generated: Generations) -> Generations:
        """``generated`` with empty outputs in the places of the invalid inputs."""
        if not invalid:
            return list(generated)
        name = self.model_name
        remaining = iter(generated)
        return [
            [empty_output(name) for _ in range(num_generations)] if index in invalid else next(remaining)
            for index in range(num_inputs)
        ]

    def _formatted(self, prompt: Any, default_format: SupportedFormats | None = None) -> Any:
        prompt = as_prompt(prompt)
        if self.prompt_formatting_fn is not None:
            return self.prompt_formatting_fn(prompt)
        chosen = self.prompt_format or default_format
        return prompt.format_as(chosen) if isinstance(prompt, Prompt) and chosen is not None else prompt

    def _closed(self) -> Closed:
        return Closed(f"{type(self).__name__} is closed and generates nothing more: make a new one.")


def are_plain(rows: list[Any], count: int, num_generations: int) -> bool:
    """Whether there are ``count`` plain lists of so many plain dicts, as nearly always: no more need be looked at."""
    if type(rows) is not list or len(rows) != count or not are_lists(rows, num_generations):
        return False
    for outputs in rows:
        for output in outputs:
            if type(output) is not dict:
                return False
    return True


def _require_positive(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigurationError(f"`{name}` must be a whole number of at least 1, not {value!r}.")


def _require_list(inputs: object) -> None:
    if isinstance(inputs, (str, bytes, Mapping)) or not isinstance(inputs, Sized) or not isinstance(inputs, Iterable):
        raise ConfigurationError(
            f"`inputs` must be a list of dicts, one for each row, and is a {type(cast(object, inputs)).__name__}: "
            "write [{'input': …}] for a single one"
        )


def _require_format(name: str) -> None:
    try:
        check_format(name)
    except ValueError as error:
        raise ConfigurationError(str(error)) from None


def _require_shape(who: str, generations: Any, num_inputs: int, num_generations: int) -> None:
    if not isinstance(generations, list) or len(cast(list[Any], generations)) != num_inputs:
        raise RowError(f"{who} was given {num_inputs} inputs and must return a list of outputs for each of them.")
    for outputs in cast(list[Any], generations):
        if not isinstance(outputs, list) or len(cast(list[Any], outputs)) != num_generations:
            raise RowError(f"{who} was asked for {num_generations} generations and must return a list of so many.")


def _signature(function: Callable[..., Any]) -> str:
    name = getattr(function, "__name__", type(function).__name__)
    try:
        return f"{name}({', '.join(parameters_of(function))})"
    except ValueError:
        return f"{name}(...)"
