"""What all rivals have in common: each runs in a process of its own, and is measured there when the benchmark says so.

The first argument is an :class:`Order` as JSON. Lines of JSON follow: on standard output what runs, or an error; on
standard input ``[what, seconds]``, each answered by a number; the end of standard input is the end of the rival.

Only the standard library is imported: distilabel 0.6 has an environment of its own, in which genpool is not.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

# One call: texts, nearly always a single one.
Texts = list[str]

_OUTPUT_BYTES = int(os.environ.get("NOOP_OUTPUT_BYTES", "600"))

# Long enough that what is loaded late is loaded, and that the number of calls a second is known.
_WARM_S = 0.5

_ROUNDS = 5

# What waits between polls is slow with few.
_CALLS = 256

# Of one at a time, however slow it is.
_FEWEST = 5

# An error is better than a benchmark that hangs.
PATIENCE_S = 60


@dataclass(frozen=True)
class Order:
    """What the benchmark asks for.

    Attributes:
        workers: worker processes.
        input_characters: the length of each text.
        pack: texts in a call.
        arguments: words that only this rival understands.
    """

    workers: int
    input_characters: int
    pack: int
    arguments: Sequence[str]


@dataclass(frozen=True)
class Rival:
    """A system that runs.

    Attributes:
        version: the system's.
        workers: what does the work, in words.
        call: has one call answered.
        map: has all these calls answered, as many of them outstanding at once as the system takes. In any order.
    """

    version: str
    workers: str
    call: Callable[[Texts], Texts]
    map: Callable[[Sequence[Texts]], Sequence[Texts]]


def answer(texts: Texts) -> Texts:
    """The work. Each text is a new one, because pickle would send the same one once."""
    return ["o" * _OUTPUT_BYTES for _ in texts]


class _Meter:
    """Measures a rival. How many calls it gets follows from how fast it was before."""

    def __init__(self, rival: Rival, order: Order) -> None:
        self._rival = rival
        self._order = order
        self._calls_per_s = 0.0
        # Until every worker has come and works.
        for _ in range(_ROUNDS):
            self._map(order.workers)
        calls = _CALLS
        while self._map(calls)[1] < _WARM_S:
            calls *= 4

    def many(self, seconds: float) -> float:
        """Answered texts a second, with many calls outstanding for about so long."""
        texts, taken_s = self._map(max(1, round(self._calls_per_s * seconds)))
        return texts / taken_s

    def one(self, seconds: float) -> float:
        """The median of the seconds that a call of one text takes, one after the other for so long."""
        times: list[float] = []
        text = [self._text(0)]
        while sum(times) < seconds or len(times) < _FEWEST:
            begun_at = time.perf_counter()
            self._rival.call(text)
            times.append(time.perf_counter() - begun_at)
        return statistics.median(times)

    def _map(self, count: int) -> tuple[int, float]:
        """How many texts were answered in so many calls, and the seconds that this took."""
        pack = self._order.pack
        calls = [[self._text(number * pack + offset) for offset in range(pack)] for number in range(count)]
        begun_at = time.perf_counter()
        answers = self._rival.map(calls)
        taken_s = time.perf_counter() - begun_at
        if len(answers) != count or any(len(text) != _OUTPUT_BYTES for texts in answers for text in texts):
            raise RuntimeError(f"{count} calls were not answered as they should be")
        self._calls_per_s = count / taken_s
        return sum(len(texts) for texts in answers), taken_s

    def _text(self, number: int) -> str:
        return f"{number:09d} " + "i" * (self._order.input_characters - 10)


def serve(running: Callable[[Order], AbstractContextManager[Rival]]) -> None:
    """Run a rival as this process, until the benchmark ends it."""
    order = Order(**json.loads(sys.argv[1]))
    # The system's processes inherit neither stream, and what it prints is not taken for a reply.
    commands, replies = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)

    def reply(value: Any) -> None:
        replies.write(json.dumps(value) + "\n")
        replies.flush()

    try:
        with running(order) as rival:
            meter = _Meter(rival, order)
            reply({"version": rival.version, "workers": rival.workers})
            for line in commands:
                what, seconds = json.loads(line)
                reply({"many": meter.many, "one": meter.one}[what](seconds))
    except Exception as error:
        reply({"error": f"{type(error).__name__}: {error}"})
        raise
