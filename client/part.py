"""Inputs that follow each other and are alike: put off until their LLMs need them, then under way in runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..tasks.output import LLMOutput
from .record import Record, Share
from .row import Row
from .run import Run


@dataclass(slots=True)
class Part:
    """Inputs that follow each other, the first at ``start``, and what the rows for each carry."""

    start: int
    inputs: Sequence[Any]
    payloads: Sequence[bytes]


class BegunPart:
    """A part whose rows went in ``runs``, one for each LLM that makes something of its inputs, in the LLMs' order.

    ``left`` counts the rows that have not ended. Where one of them goes its own way its input has a record, and from
    then on those that end get one too: see ``is_whole``. For use under the call's lock.
    """

    def __init__(self, part: Part, runs: Sequence[tuple[int, Run]]) -> None:
        self.runs = runs
        self.inputs = part.inputs
        self.is_whole = True
        self.left = sum(len(run) for _, run in runs)
        self._start = part.start
        # Of several runs, what each has brought for each input, and of how many that is not told yet.
        columns = len(runs) if len(runs) > 1 else 0
        self._outcomes: list[list[list[LLMOutput] | None]] = [[None] * len(part.inputs) for _ in range(columns)]
        self._pending = [columns] * len(part.inputs)

    @property
    def unfinished(self) -> int:
        """How many inputs are not finished, and have no record."""
        return self.left if len(self.runs) == 1 else sum(map(bool, self._pending))

    def end(self, place: int, first: int, outputs: list[list[LLMOutput]]) -> list[tuple[int, list[list[LLMOutput]]]]:
        """The rows of the run at ``place`` from ``first`` on have come to ``outputs``.

        Returns:
            What is finished by that: the index of an input, and its outputs and those of the inputs behind it.
        """
        self.left -= len(outputs)
        if len(self.runs) == 1:
            return [(self._start + first, outputs)]
        self._outcomes[place][first : first + len(outputs)] = outputs
        finished: list[tuple[int, list[list[LLMOutput]]]] = []
        for number in range(first, first + len(outputs)):
            self._pending[number] -= 1
            if self._pending[number]:
                continue
            index, joined = self._start + number, [one for column in self._outcomes for one in column[number] or ()]
            if finished and finished[-1][0] + len(finished[-1][1]) == index:
                finished[-1][1].append(joined)
            else:
                finished.append((index, [joined]))
        return finished

    def record(self, row: Row) -> Record:
        """The input of a row that goes its own way, with what the other LLMs have made of it by now."""
        self.is_whole = False
        number = row.index - self._start
        shares = [Share(at, run.spec.num_generations) for at, run in self.runs]
        for share, column in zip(shares, self._outcomes, strict=False):
            share.outcome = column[number]
            self._pending[number] = 0
        return Record(row.index, self.inputs[number], shares, sum(share.outcome is None for share in shares))
