"""What the engines have in common that ask a server.

engine threads ── generate_row ──▶ LoopThread ── _answer, at most ``concurrency`` at once ──▶ server
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any

from ...protocol.errors import ConfigurationError
from ...tasks.output import LLMOutput
from ..llm import RowCall
from .answer import Answer
from .fanout import FanOut
from .loop import LoopThread
from .row import RowEngine, check_json

# Formats that are right inside a chat message. The others write a model's turn markers, which the server adds itself.
_CHAT_FORMATS = (None, "default", "openai")

# For the estimate by which a request waits for its tokens; how many it was is known afterwards.
_BYTES_PER_TOKEN = 4


class ServerEngine(RowEngine):
    """A RowEngine whose rows are requests to a server: ``_request`` says what to ask for, ``_answer`` asks.

    Whoever derives from it sets ``_settings`` and calls ``_open`` when it is made.
    """

    # The sampling of calls that say nothing else, by name.
    _settings: dict[str, Any]

    def _open(
        self,
        name: str,
        at_end: Callable[[], Awaitable[None]],
        concurrency: int,
        seed: int | None,
        takes_n: bool = True,
    ) -> None:
        """Begin to take rows: ``name`` is the event loop's, in which ``at_end`` is awaited when all has ended."""
        self._rows_at_once = concurrency
        self._seed = seed
        self._permits = asyncio.Semaphore(concurrency)
        self._fan_out = FanOut[Answer](lambda answer: len(answer.choices), one_by_one=not takes_n)
        self._loop = LoopThread(name, at_end)

    def close(self) -> None:
        """Ends the requests that run and the connections."""
        super().close()
        self._loop.close()

    def generate_row(self, call: RowCall) -> list[LLMOutput]:
        """The outputs of one row. Their usage adds up to the server's count: the first of a request's outputs has it.

        Raises:
            RowError: the server refuses the row (400, 413, 422), or it cannot be sent.
            EngineUnwell: the server cannot be reached, is overloaded, or refuses the key, the model or the quota.
            TimeoutError, RuntimeError: this row's request failed, while the server answers others.
            concurrent.futures.CancelledError: ``call.cancelled`` was set; the request was closed.
            Closed: after ``close()``.
        """
        if self._is_closed:
            raise self._closed()
        prompt, fields = self._request(call)
        check_json({"prompt": prompt, **fields})
        seed = self._seed if call.seed is None else call.seed
        ask = partial(self._ask, call, prompt, fields)
        answers = self._loop.run(self._fan_out.answers(call.num_generations, seed, ask), call.cancelled)
        outputs = [output for answer in answers for output in self._outputs(call, prompt, answer)]
        return outputs[: call.num_generations]

    @abstractmethod
    def _request(self, call: RowCall) -> tuple[Any, dict[str, Any]]:
        """The prompt of a row, and the other fields of its requests; ``n`` and ``seed`` are added to them."""

    @abstractmethod
    async def _answer(self, prompt: Any, fields: Mapping[str, Any], tokens: int) -> Answer:
        """The answer to one request, which will use about ``tokens``. Raises what ``generate_row`` does."""

    async def _ask(self, call: RowCall, prompt: Any, fields: dict[str, Any], count: int, seed: int | None) -> Answer:
        own = {"n": count if count > 1 else None, "seed": seed}
        fields = fields | {name: value for name, value in own.items() if value is not None}
        async with self._permits:
            if call.cancelled.is_set():
                raise asyncio.CancelledError("nobody wants the row any more")
            return await self._answer(prompt, fields, _tokens_of(prompt, call.options, self._settings, count))

    def _outputs(self, call: RowCall, prompt: Any, answer: Answer) -> Iterable[LLMOutput]:
        usage: Mapping[str, float] | None = answer.usage
        if answer.cost is not None:
            usage = {**(usage or {}), "cost": answer.cost}
        for choice in answer.choices:
            yield self._output(call, prompt, choice.text, choice.finish_reason, usage)
            usage = None


def check_chat_format(prompt_format: str | None, hint: str = "") -> None:
    """Raises ConfigurationError for a format that is wrong inside a chat message; ``hint`` ends its sentence."""
    if prompt_format not in _CHAT_FORMATS:
        raise ConfigurationError(
            f"prompt_format={prompt_format!r} writes a model's turn markers, and the server adds its own: "
            f"use 'openai' or leave it out{hint}"
        )


def check_retries(max_retries: int) -> None:
    """Raises ConfigurationError for a number below 0."""
    if max_retries < 0:
        raise ConfigurationError(f"max_retries must not be below 0, got {max_retries}")


def _tokens_of(prompt: Any, options: Mapping[str, Any], settings: Mapping[str, Any], count: int) -> int:
    """About how many tokens a request will use at most, before anything is known of it."""
    most: object = {**settings, **options}["max_new_tokens"]
    return len(str(prompt).encode()) // _BYTES_PER_TOKEN + count * (most if isinstance(most, int) else 0)
