"""What the engines that come with genpool have in common."""

from __future__ import annotations

import json
import threading
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ...protocol.errors import ConfigurationError, RowError
from ...tasks.base import TaskLike
from ...tasks.output import LLMOutput, parsed_output
from ...tasks.prompt import chat_messages
from ...tasks.rendered import RenderedPromptTask
from ..llm import LLM, RowCall

# Servers take seeds of 32 or 64 bits, and llama.cpp reads 2**32 - 1 as "random": below 2**31 all agree.
_SEEDS = 2**31

_COUNTS = ("prompt_tokens", "completion_tokens", "cost")


class Engine(LLM):
    """An LLM that is given its rows as ``RowCall``s, one by one or in batches."""

    def _output(
        self, call: RowCall, prompt_used: Any, raw: str, finish_reason: str | None, usage: Mapping[str, float] | None
    ) -> LLMOutput:
        # A rendered prompt is of the client's task, which the client parses by.
        task: TaskLike = self.task if call.kind == "input" else RenderedPromptTask()
        output = LLMOutput(
            model_name=self.model_name,
            prompt_used=prompt_used,
            raw_output=raw,
            parsed_output=parsed_output(task, raw, call.content),
        )
        if finish_reason is not None:
            output["finish_reason"] = finish_reason
        counts = {name: usage[name] for name in _COUNTS if name in usage} if usage else {}
        if counts:
            output["usage"] = counts
        return output


class RowEngine(Engine):
    """An LLM whose engine takes many rows at a time, each on its own: ``generate_row`` is all it has to do."""

    # How many calls suit the engine at once, where ``num_threads`` does not say.
    _rows_at_once: int

    @property
    def concurrency(self) -> int:
        return self.num_threads or self._rows_at_once

    @abstractmethod
    def generate_row(self, call: RowCall) -> list[LLMOutput]:
        """The outputs of one row. Called from up to ``concurrency`` threads at once.

        Raises:
            RowError: the row itself is at fault.
            EngineUnwell: the engine's server, key or quota is at fault.
            concurrent.futures.CancelledError: ``call.cancelled`` was set; what was generated is dropped.
        """

    def _generate(self, inputs: list[dict[str, Any]], num_generations: int = 1) -> list[list[LLMOutput]]:
        stop = threading.Event()
        calls = [RowCall(one, "input", num_generations, self.wishes, cancelled=stop) for one in inputs]
        if len(calls) < 2:
            return [self.generate_row(call) for call in calls]
        with ThreadPoolExecutor(min(self.concurrency, len(calls)), thread_name_prefix="genpool-row") as executor:
            futures = [executor.submit(self.generate_row, call) for call in calls]
            try:
                return [future.result() for future in futures]
            finally:
                # Nobody wants the rest when one has raised; without this, leaving the executor would wait for it.
                stop.set()
                executor.shutdown(wait=False, cancel_futures=True)


def sampling(wire_names: Mapping[str, str], settings: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling fields of a request: a call's ``options`` over the engine's ``settings``, by their wire names.

    None leaves a field to the server.
    """
    chosen = {**settings, **options}
    return {wire: chosen[name] for name, wire in wire_names.items() if chosen.get(name) is not None}


def sent_prompt(prompt: Any, takes_text: bool, takes_chat: bool) -> str | list[dict[str, Any]]:
    """What an engine sends for a prompt that ``prompt_of`` has made: text, or messages for the chat template.

    ``takes_text`` says that text goes in as it is; where not ``takes_chat``, messages become their contents in lines.

    Raises:
        RowError: there is nothing to send.
        TypeError: ``prompt`` is neither text nor messages.
    """
    sent: str | list[dict[str, Any]]
    if takes_text and isinstance(prompt, str):
        sent = prompt
    else:
        sent = chat_messages(prompt)
        if not takes_chat:
            sent = "\n".join(str(one.get("content") or "") for one in sent)
    if not sent:
        raise RowError("the prompt is empty")
    return sent


def seed_at(seed: int | None, position: int) -> int | None:
    """The seed of a row's generation at ``position``, so that the generations of one seeded row differ."""
    return None if seed is None else (seed + position) % _SEEDS


def check_json(body: Mapping[str, Any]) -> None:
    """Finds what no server could read before anything is sent.

    Raises:
        RowError: ``body`` holds a lone surrogate, NaN, or what JSON has no form for.
    """
    try:
        json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        where = error.object[max(0, error.start - 20) : error.start]
        raise RowError(f"the prompt holds a lone surrogate, which no tokenizer can read, after {where!r}") from error
    except (TypeError, ValueError) as error:
        raise RowError(f"the prompt or an option cannot be sent as JSON: {error}") from error


def check_positive(settings: Mapping[str, float | None], names: Iterable[str]) -> None:
    """Raises ConfigurationError for a setting of ``names`` that is given and not above 0."""
    for name in names:
        value = settings[name]
        if value is not None and value <= 0:
            raise ConfigurationError(f"{name} must be above 0, got {value}")
