"""``transformers``' continuous batching: a request takes a place in the batch as soon as another one has ended.

run, in many threads ── add_request ──▶ the manager's thread: one step for all that run, again and again
 ▲                                                  │
 └── a future for each ◀── the collector's thread ◀─┘  which also withdraws what nobody wants any more
"""

# The package is in an extra, and has no complete types; without it, its name is that of the file beside this one.
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportAttributeAccessIssue=false, reportUnknownParameterType=false

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from ...protocol.errors import EngineDead
from .completion import Completion, Request, Sampling, Vocabulary, stop_position, stop_window

# How often it is looked whether rows are still wanted.
_LOOK_S = 0.05

# What transformers shares out of its cache: the least that a request takes.
_PAGE_TOKENS = 256


@dataclass(slots=True, eq=False)
class _Pending:
    request: Request
    stop: tuple[str, ...]
    completion: Future[Completion | None] = field(default_factory=Future[Completion | None])


class ContinuousBatch:
    """Runs ``model`` on requests that come and go.

    The cache holds ``cache_tokens`` tokens of all that run, None takes most of the memory that is free; ``context``
    is the most that one request may have of them. Seeds and repetition penalties are not heeded.
    """

    def __init__(self, model: Any, vocabulary: Vocabulary, context: int | None, cache_tokens: int | None) -> None:
        self._vocabulary = vocabulary
        self._ends = sorted(vocabulary.ends) or -1
        self._num_tokens = model.config.get_text_config().vocab_size
        self._manager = model.init_continuous_batching(_generation_config(vocabulary), _config(cache_tokens))
        self._ids = map(str, count())
        # Guards what follows: a result may come before its request's own thread has gone on.
        self._lock = threading.Lock()
        self._pending: dict[str, _Pending] = {}
        self._fault: EngineDead | None = None
        self._is_closed = False
        started: Future[None] = Future()
        # A daemon, and so is what it starts: otherwise an LLM that nobody closed would keep the process.
        self._collector = threading.Thread(
            target=self._collect, args=(started,), name="genpool-continuous", daemon=True
        )
        self._collector.start()
        started.result()
        room = self._manager.batch_processor.cache.num_blocks * _PAGE_TOKENS
        self.context = room if context is None else min(context, room)

    def run(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion | None]:
        """As ``Runner.run``; every prompt leaves room for a token."""
        pending = [self._submit(request, sampling) for request in requests]
        return [one.completion.result() for one in pending]

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
        self._collector.join()
        self._manager.stop(hard_stop=True)
        for name in list(self._pending):
            self._settle(name, None)

    def _submit(self, request: Request, sampling: Sampling) -> _Pending:
        pending = _Pending(request, sampling.stop)
        room = min(sampling.max_new_tokens, self.context - len(request.prompt))
        with self._lock:
            if self._fault is not None:
                raise self._fault
            if self._is_closed or request.is_unwanted():
                pending.completion.set_result(None)
                return pending
            name = next(self._ids)
            self._pending[name] = pending
        self._manager.add_request(
            request.prompt,
            request_id=name,
            max_new_tokens=room,
            eos_token_id=self._ends,
            streaming=bool(sampling.stop),
            **self._chances(sampling),
        )
        return pending

    def _chances(self, sampling: Sampling) -> dict[str, Any]:
        if sampling.is_greedy:
            return {"temperature": 1.0, "top_k": 1, "top_p": 1.0}
        top_k = sampling.top_k or self._num_tokens
        return {"temperature": float(sampling.temperature), "top_k": top_k, "top_p": float(sampling.top_p)}

    # The collector's thread.

    def _collect(self, started: Future[None]) -> None:
        try:
            with torch.inference_mode():
                self._manager.warmup()
                self._manager.start()
        except Exception as error:
            started.set_exception(error)
            return
        started.set_result(None)
        try:
            self._collect_until_closed()
        except Exception as error:
            # Whoever waits for a completion would wait for ever.
            self._die(error)

    def _collect_until_closed(self) -> None:
        next_look = time.monotonic()
        while not self._is_closed and self._fault is None:
            output = self._manager.get_result(timeout=_LOOK_S)
            if output is not None:
                self._take(output)
            if time.monotonic() >= next_look:
                next_look = time.monotonic() + _LOOK_S
                self._look()

    def _take(self, output: Any) -> None:
        pending = self._pending.get(output.request_id)
        if pending is None:
            return
        if output.error is not None:
            # What dies says so for each request before it says why it died; then all are told by _look.
            if self._manager.background_thread_status.can_accept_new_requests() is None:
                self._settle(output.request_id, RuntimeError(output.error))
        elif output.is_finished():
            self._settle(output.request_id, self._vocabulary.completion(output.generated_tokens, pending.stop))
        else:
            self._stop_at(output.request_id, output.generated_tokens, pending.stop)

    def _stop_at(self, name: str, tokens: list[int], stop: Sequence[str]) -> None:
        text = self._vocabulary.decode(tokens[-stop_window(stop) :])
        if stop_position(text, stop) is not None:
            self._manager.cancel_request(name)
            self._settle(name, self._vocabulary.completion(tokens, stop))

    def _look(self) -> None:
        """Withdraws what nobody wants any more, and sees whether the manager's thread has died."""
        for name, pending in list(self._pending.items()):
            if pending.request.is_unwanted():
                self._manager.cancel_request(name)
                self._settle(name, None)
        error = self._manager.background_thread_status.fatal_error
        if error is not None:
            self._die(error)

    def _die(self, error: object) -> None:
        with self._lock:
            self._fault = EngineDead(f"continuous batching has ended: {error}")
        for name in list(self._pending):
            self._settle(name, self._fault)

    def _settle(self, name: str, result: Completion | Exception | None) -> None:
        with self._lock:
            pending = self._pending.pop(name, None)
        if pending is None:
            return
        if isinstance(result, Exception):
            pending.completion.set_exception(result)
        else:
            pending.completion.set_result(result)


def _generation_config(vocabulary: Vocabulary) -> GenerationConfig:
    # Each request brings its own sampling, but only where the manager's is not what does nothing (1, 0 and 1).
    return GenerationConfig(
        do_sample=True,
        temperature=0.5,
        top_k=1,
        top_p=0.5,
        repetition_penalty=1.0,
        eos_token_id=sorted(vocabulary.ends) or -1,
        pad_token_id=vocabulary.padding,
    )


def _config(cache_tokens: int | None) -> ContinuousBatchingConfig:
    num_blocks = None if cache_tokens is None else -(-cache_tokens // _PAGE_TOKENS)
    return ContinuousBatchingConfig(page_size=_PAGE_TOKENS, num_blocks=num_blocks, per_request_processors=True)
