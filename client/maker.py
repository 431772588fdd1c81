"""What an LLM is to a call, and what the rows for it carry."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

from ..protocol.content import pack_each, pack_row
from ..protocol.errors import GenpoolError, RowError
from ..protocol.messages import LLMInfo
from ..tasks.base import missing_arguments, text_of
from ..tasks.prompt import to_wire
from .record import Record
from .row import Row
from .run import Run

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
    def learn_arguments(self, deadline: float | None = None) -> list[str] | None: ...
    @property
    def info(self) -> LLMInfo | None: ...
    def submit_rows(self, rows: list[Row] | Run) -> None: ...
    def withdraw_rows(self, rows: list[Row] | Run) -> None: ...


class Maker:
    """Makes what one LLM's rows carry, for as long as what the broker says of it, ``info``, stays the same.

    ``deadline`` is the call's.
    """

    def __init__(self, voice: Voice, task: Any | None, info: LLMInfo | None, deadline: float | None) -> None:
        self.voice = voice
        self._deadline = deadline
        self.info = info
        self._task = task
        self._arguments = voice.arguments
        self._was_asked = False

    def packs_as(self, other: Maker) -> bool:
        """Whether the LLM's rows carry what those of another do, which packs them alike: LLMs of a pool mostly do."""
        return self._task is None and other._task is None and self._arguments == other._arguments

    def payload(self, record: Record, seed: int | None) -> bytes | None:
        """The row's bytes; None when the input lacks an argument of the task.

        Raises:
            RowError: when the input cannot be carried, or the task cannot make a prompt of it.
        """
        given: Mapping[str, Any] = record.input
        # A dict is told apart at once, and what else is a mapping only by asking.
        if not isinstance(record.input, (dict, Mapping)):
            kind = type(record.input).__name__
            raise RowError(f"input {record.number} is a {kind} and not a dict of the task's arguments")
        if self._arguments is None:
            try:
                return pack_row(dict(given), seed)
            except RowError:
                # What the task does not read need not be carried.
                if not self._learns_arguments():
                    raise
        arguments = self._arguments or []
        content = {name: given[name] for name in arguments if name in given}
        if len(content) < len(arguments) and self._leaves_empty(record, arguments, given):
            return None
        return pack_row(content if self._task is None else self._prompt(record, content), seed)

    def _learns_arguments(self) -> bool:
        """Wait until it is known what the task reads, but for many rows once. Whether it is then."""
        if not self._was_asked:
            self._was_asked = True
            with suppress(GenpoolError):  # without a broker, say, the row fails for what it is
                self._arguments = self.voice.learn_arguments(self._deadline)
        return self._arguments is not None

    def payloads(self, inputs: Sequence[Any], most_bytes: int) -> list[bytes] | None:
        """``payload`` for ``inputs`` without a seed, until they have ``most_bytes`` in all, or little more.

        None when one of them must be looked at.
        """
        if self._task is not None or [*map(type, inputs)] != [dict] * len(inputs):
            return None
        payloads: list[bytes] = []
        size = 0
        while len(payloads) < len(inputs) and size < most_bytes:
            # As many again, for nobody knows how large the next ones are.
            part = self._packed(inputs[len(payloads) : 2 * len(payloads) + 1])
            if part is None:
                return None
            payloads += part
            size += sum(map(len, part))
        return payloads

    def _packed(self, inputs: Sequence[Any]) -> list[bytes] | None:
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
                f"the task made no prompt of input {record.number}: {type(error).__name__}: {text_of(error)}"
            ) from error
