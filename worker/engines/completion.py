"""What is asked of a language model and what it answers, in tokens: a prompt, sampling, a completion."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen, and when a completion ends.

    Attributes:
        max_new_tokens: the most tokens of a completion.
        temperature: 0 takes the likeliest token always.
        top_p: draws from the likeliest tokens whose probabilities add up to this; 1 from all.
        top_k: draws from so many of the likeliest tokens; 0 from all.
        repetition_penalty: above 1, tokens that are there already become less likely.
        stop: texts that end a completion; it ends before them.
    """

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    stop: tuple[str, ...]

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0

    @staticmethod
    def read(values: Mapping[str, Any]) -> Sampling:
        """The sampling that ``values`` (one for each attribute, ``stop`` a text, a list or None) stand for.

        Raises:
            ValueError: names the value that cannot be used.
        """
        stop: Any = values["stop"] or ()
        return Sampling(
            max_new_tokens=int(_number(values, "max_new_tokens", at_least=1, whole=True)),
            temperature=_number(values, "temperature", at_least=0),
            top_p=_number(values, "top_p", above=0, at_most=1),
            top_k=int(_number(values, "top_k", at_least=0, whole=True)),
            repetition_penalty=_number(values, "repetition_penalty", above=0),
            stop=_texts("stop", (stop,) if isinstance(stop, str) else stop),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One completion that is asked for: the prompt's tokens, a seed, and whether anybody still wants it."""

    prompt: list[int]
    seed: int | None
    is_unwanted: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Completion:
    """One completion: its text, how many tokens were made for it, and whether it ended by ``stop`` or ``length``."""

    text: str
    num_tokens: int
    finish_reason: str


class Runner(Protocol):
    """Runs a model on requests. Called from several threads at once.

    Attributes:
        context: the most tokens of prompt and completion together; None where there is no limit.
    """

    context: int | None

    def run(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion | None]:
        """A completion for each of ``requests``, in their order; None where nobody wanted it any more.

        Raises:
            MemoryError: there is no room for so many at once.
            EngineDead: the device does nothing more.
        """
        ...

    def close(self) -> None:
        """Stops what runs: it comes back as not wanted."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Vocabulary:
    """What is needed to read a model's tokens.

    Attributes:
        decode: the text of tokens, without special tokens.
        ends: the tokens that end a completion.
        padding: the token that fills up the rows of a batch; may be one of ``ends``.
    """

    decode: Callable[[list[int]], str]
    ends: Collection[int]
    padding: int

    def completion(self, tokens: list[int], stop: Sequence[str]) -> Completion:
        """Reads generated ``tokens``, up to the first that ends a completion."""
        end = next((place for place, token in enumerate(tokens, 1) if token in self.ends), None)
        tokens, is_ended = tokens[:end], end is not None
        text = self.decode(tokens)
        cut = stop_position(text, stop)
        return Completion(text[:cut], len(tokens), "stop" if is_ended or cut is not None else "length")

    def without_padding(self, tokens: list[int]) -> list[int]:
        """A row of a batch without what fills it up; an end, which may be the same token, is left to ``completion``.

        Only for rows that were filled up: a model may make the token, too.
        """
        length = len(tokens)
        while length and tokens[length - 1] == self.padding and self.padding not in self.ends:
            length -= 1
        return tokens[:length]


def stop_position(text: str, stop: Sequence[str]) -> int | None:
    """Where the first of the ``stop`` texts begins in ``text``; None where there is none."""
    return min((place for place in map(text.find, stop) if place >= 0), default=None)


def stop_window(stop: Sequence[str]) -> int:
    """How many of the last tokens hold any ``stop`` text that the last token completes: one for each byte, and one."""
    return max((len(one.encode(errors="surrogatepass")) for one in stop), default=0) + 1


def _number(
    values: Mapping[str, Any],
    name: str,
    *,
    at_least: float = -math.inf,
    above: float = -math.inf,
    at_most: float = math.inf,
    whole: bool = False,
) -> float:
    value = values[name]
    is_number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if is_number and math.isfinite(value) and at_least <= value <= at_most and value > above:
        return value
    kind = "a whole number" if whole else "a number"
    limits = [("of at least", at_least), ("above", above), ("up to", at_most)]
    wanted = " and ".join(f"{words} {limit:g}" for words, limit in limits if math.isfinite(limit))
    raise ValueError(f"{name} must be {kind} {wanted}, got {value!r}")


def _texts(name: str, values: Any) -> tuple[str, ...]:
    is_list = isinstance(values, list | tuple)
    if not is_list or not all(isinstance(one, str) and one for one in cast(Sequence[Any], values)):
        raise ValueError(f"{name} must be a list of texts that are not empty, got {values!r}")
    return tuple(cast(Sequence[str], values))
