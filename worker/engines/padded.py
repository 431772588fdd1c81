"""A batch of prompts as one tensor, padded on the left, and ``transformers``' ``generate`` on it.

Each completion has a random generator of its own, so that its seed decides its draws whatever else is in the batch: a
logits processor adds Gumbel noise, and the likeliest token is then a draw from the model's distribution.
"""

# The package is in an extra, and has no complete types; without it, its name is that of the file beside this one.
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportUntypedBaseClass=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation.logits_process import (
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList

from ...protocol.errors import EngineDead
from .completion import Completion, Request, Sampling, Vocabulary, stop_position, stop_window

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
_DEAD = ("CUDA error", "HIP error", "device-side assert")


class PaddedBatch:
    """Runs ``model`` on all requests of a call at once: the call ends with its longest completion."""

    def __init__(self, model: Any, vocabulary: Vocabulary, context: int | None) -> None:
        self._model = model
        self._vocabulary = vocabulary
        self.context = context
        self._is_closed = False

    def run(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion | None]:
        """As ``Runner.run``; every prompt leaves room for a token."""
        completions: list[Completion | None] = [None] * len(requests)
        for room, indices in self._by_room(requests, sampling.max_new_tokens).items():
            made = self._run([requests[index] for index in indices], sampling, room)
            for index, completion in zip(indices, made, strict=True):
                completions[index] = completion
        return completions

    def close(self) -> None:
        self._is_closed = True

    def _by_room(self, requests: Sequence[Request], max_new_tokens: int) -> dict[int, list[int]]:
        """The requests' indices by how many tokens they may get.

        Only those with the same number share a tensor: in it a row goes on, at positions after its own end, until the
        last one ends, and some models fail at positions outside their context.
        """
        rooms: dict[int, list[int]] = {}
        for index, request in enumerate(requests):
            left = max_new_tokens if self.context is None else self.context - len(request.prompt)
            rooms.setdefault(min(left, max_new_tokens), []).append(index)
        return rooms

    def _run(self, requests: list[Request], sampling: Sampling, room: int) -> list[Completion | None]:
        flags = [self._flag(request) for request in requests]
        if all(flag() for flag in flags):
            return [None] * len(requests)
        rows = self._generate(
            [request.prompt for request in requests], [one.seed for one in requests], flags, sampling, room
        )
        return [
            None if flag() else self._vocabulary.completion(self._vocabulary.without_padding(row), sampling.stop)
            for row, flag in zip(rows, flags, strict=True)
        ]

    def _flag(self, request: Request) -> Callable[[], bool]:
        return lambda: self._is_closed or request.is_unwanted()

    def _generate(
        self,
        prompts: list[list[int]],
        seeds: list[int | None],
        flags: list[Callable[[], bool]],
        sampling: Sampling,
        room: int,
    ) -> list[list[int]]:
        """The generated tokens of each prompt, with padding behind those that ended early."""
        fault: Exception
        try:
            with torch.inference_mode():
                ids, mask = left_padded(prompts, self._vocabulary.padding, self._model.device)
                width = ids.shape[1]
                generated = self._model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    generation_config=self._config(room),
                    logits_processor=LogitsProcessorList([Draw(sampling, mask, _generators(seeds, ids.device))]),
                    stopping_criteria=StoppingCriteriaList([Ending(flags, width, sampling.stop, self._vocabulary)]),
                )
                return generated[:, width:].tolist()
        except RuntimeError as error:
            fault = translated(error)
        # Outside of the handler: what was raised holds the frames, and these the memory of the batch.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        raise fault

    def _config(self, room: int) -> GenerationConfig:
        # Greedy, for the draws are made in the logits processor.
        return GenerationConfig(
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            max_new_tokens=room,
            eos_token_id=sorted(self._vocabulary.ends) or None,
            pad_token_id=self._vocabulary.padding,
        )


def left_padded(prompts: Sequence[list[int]], padding: int, device: Any) -> tuple[Any, Any]:
    """``prompts`` as a tensor of tokens, filled up on the left, and its mask: 1 for a prompt's token, 0 for padding."""
    width = max(map(len, prompts))
    ids = [[padding] * (width - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def translated(error: RuntimeError) -> Exception:
    """What an error of torch means here: MemoryError, EngineDead, or ``error`` itself."""
    text = str(error)
    sentence = text.strip().partition("\n")[0]
    if isinstance(error, torch.OutOfMemoryError) or any(words in text for words in _OUT_OF_MEMORY):
        return MemoryError(sentence)
    if any(words in text for words in _DEAD):
        return EngineDead(sentence)
    return error


class Draw(LogitsProcessor):
    """Sampling as ``transformers`` does it, with a random generator for each sequence."""

    def __init__(self, sampling: Sampling, mask: Any, generators: Sequence[Any]) -> None:
        self._is_padding = mask == 0
        self._penalty = _penalty(sampling.repetition_penalty)
        self._warpers = [] if sampling.is_greedy else list(_warpers(sampling))
        self._generators = [] if sampling.is_greedy else generators

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        if self._penalty is not None:
            scores = self._penalty(self._without_padding(input_ids), scores)
        for warper in self._warpers:
            scores = warper(input_ids, scores)
        if not self._generators:
            return scores
        noise = torch.empty_like(scores)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)
        return scores - noise.log_()

    def _without_padding(self, input_ids: Any) -> Any:
        """``input_ids`` with a token of the prompt where there was padding, which would be penalised like a token."""
        width = self._is_padding.shape[1]
        prompt = torch.where(self._is_padding, input_ids[:, width - 1 : width], input_ids[:, :width])
        return torch.cat([prompt, input_ids[:, width:]], dim=1)


def _penalty(penalty: float) -> RepetitionPenaltyLogitsProcessor | None:
    return None if penalty == 1 else RepetitionPenaltyLogitsProcessor(float(penalty))


def _warpers(sampling: Sampling) -> Iterable[LogitsProcessor]:
    if sampling.temperature != 1:
        yield TemperatureLogitsWarper(float(sampling.temperature))
    if sampling.top_k > 0:
        yield TopKLogitsWarper(sampling.top_k)
    if sampling.top_p < 1:
        yield TopPLogitsWarper(float(sampling.top_p))


def _generators(seeds: Sequence[int | None], device: Any) -> list[Any]:
    """A random generator for each seed; None, which is torch's common one, where there is no seed."""
    return [None if seed is None else torch.Generator(device).manual_seed(seed) for seed in seeds]


class Ending(StoppingCriteria):
    """Ends each sequence when it holds a stop text, or when nobody wants it any more."""

    def __init__(
        self, flags: Sequence[Callable[[], bool]], width: int, stop: Sequence[str], vocabulary: Vocabulary
    ) -> None:
        self._flags = flags
        self._width = width
        self._stop = stop
        self._window = stop_window(stop)
        self._decode = vocabulary.decode

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        ended = [flag() for flag in self._flags]
        if self._stop:
            first = max(self._width, input_ids.shape[1] - self._window)
            for index, tokens in enumerate(input_ids[:, first:].tolist()):
                ended[index] = ended[index] or stop_position(self._decode(tokens), self._stop) is not None
        return torch.tensor(ended, device=input_ids.device)
