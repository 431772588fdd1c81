"""Target: what is inside of rows, answers and options, as the worker and the client read it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from genpool.protocol.content import Failure, pack, pack_failure, unpack, unpack_failure, unpack_outputs, unpack_row
from genpool.protocol.errors import DecodeError, RowError, known_error
from genpool.protocol.messages import RowKind
from genpool.tasks.output import LLMOutput
from genpool.tasks.text_generation import TextGenerationTask
from genpool.worker.call import Caller
from genpool.worker.llm import LLM
from genpool.worker.machine import RowResult, StartCall

from .choices import Choices


class _Echo(LLM):
    """Answers with what it was given."""

    option_names = frozenset({"seed", "temperature"})

    def __init__(self) -> None:
        super().__init__(TextGenerationTask())

    @property
    def model_name(self) -> str:
        return "echo"

    def _generate(self, inputs: list[dict[str, Any]], num_generations: int = 1) -> list[list[LLMOutput]]:
        made = [LLMOutput(model_name="echo", prompt_used=None, raw_output=one, parsed_output=one) for one in inputs]
        return [[one] * num_generations for one in made]


def check(data: bytes) -> None:
    choices = Choices(data)
    way = choices.below(5)
    if way == 4:
        _serve(choices)
        return
    payload = choices.rest()
    readers: tuple[Callable[[bytes], Any], ...] = (unpack, unpack_row, unpack_outputs, unpack_failure)
    try:
        value = readers[way](payload)
    except DecodeError:
        return
    if isinstance(value, Failure):
        assert unpack_failure(pack_failure(value)) == value
        assert issubclass(known_error(value.builtin), Exception)
    else:
        _pack_again(value)


def _pack_again(value: Any) -> None:
    """What came in goes on as it is, or is refused."""
    try:
        packed = pack(value)
    except RowError:
        return
    assert pack(unpack(packed)) == packed


def _serve(choices: Choices) -> None:
    """A worker runs what it was given, whatever that is: each row has one result."""
    kind = choices.one_of(tuple(RowKind))
    payloads, options = [choices.blob() for _ in range(choices.below(4))], choices.rest()
    rows = list(range(len(payloads)))
    told: list[RowResult] = []
    caller = Caller(_Echo(), "1", "host", lambda reason: None)
    call = StartCall(0, kind, 1, options, rows, payloads)
    logging.disable()  # each failed row is logged, which takes most of the time
    try:
        told += caller.run(call, [threading.Event() for _ in rows], told.extend)
    finally:
        logging.disable(logging.NOTSET)
    assert sorted(result.execution for result in told) == rows
