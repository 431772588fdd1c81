"""One input on its way: the LLMs' shares of it, and what each came to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..protocol.errors import RemoteError
from ..tasks.output import LLMOutput
from .item import Item, Planned
from .row import Row


@dataclass(slots=True)
class Share:
    """``count`` generations of one input by the LLM at position ``at``, and the ``row`` that was sent for them.

    ``draw`` is 0 for the first draw of an input's shares, and another number for each later one. ``outcome`` is None
    while it is under way. A share that was given up for others counts nothing. ``answer`` is what a worker answered to
    it in an earlier run, until it is read.
    """

    at: int
    count: int
    draw: int = 0
    outcome: list[LLMOutput] | RemoteError | None = None
    row: Row | None = None
    answer: bytes | None = None

    def give_up(self) -> None:
        """Others take its place."""
        self.count, self.outcome, self.row = 0, [], None


@dataclass(slots=True)
class Record:
    """One input, and the ``item`` that it came in if it did.

    ``pending`` counts the shares under way, and ``draws`` how often some were drawn anew. ``failure`` is one among the
    shares, and the first one when all of them have ended. ``size`` is how many bytes the rows of its first shares had,
    for each LLM.
    """

    index: int
    input: Any
    shares: list[Share]
    pending: int
    item: Item | None = None
    draws: int = 0
    failure: RemoteError | None = None
    size: int = 0

    @property
    def number(self) -> int:
        """What it is drawn and sampled by: see item.Item."""
        return self.index if self.item is None else self.item.number

    def note_size(self) -> int:
        """Set ``size``, which stays the same whatever becomes of the rows, and return it."""
        if len(self.shares) == 1:  # as most inputs have
            row = self.shares[0].row
            self.size = 0 if row is None else len(row.payload)
        else:
            self.size = max([len(share.row.payload) for share in self.shares if share.row is not None], default=0)
        return self.size

    def replace(self, share: Share, counts: Sequence[int]) -> list[tuple[int, Share]]:
        """Give ``share`` up for new ones, of ``counts[at]`` each, and return those with their places."""
        share.give_up()
        self.draws += 1
        start = len(self.shares)
        self.shares += shares_of(counts, self.draws)
        self.pending += len(self.shares) - start - 1
        return list(enumerate(self.shares))[start:]

    @property
    def outputs(self) -> list[LLMOutput]:
        """All that is finished, in the order of the LLMs."""
        if len(self.shares) == 1:  # as most inputs have: its list needs no copy
            outcome = self.shares[0].outcome
            return outcome if isinstance(outcome, list) else []
        return [output for _, outputs in self._finished() for output in outputs]

    @property
    def makers(self) -> list[int]:
        """For each of ``outputs``, the position of the LLM that made it."""
        if len(self.shares) == 1:
            return [self.shares[0].at] * len(self.outputs)
        return [at for at, outputs in self._finished() for _ in outputs]

    def _finished(self) -> list[tuple[int, list[LLMOutput]]]:
        shares = sorted(self.shares, key=lambda share: share.at)
        return [(share.at, share.outcome) for share in shares if isinstance(share.outcome, list)]

    @property
    def is_whole(self) -> bool:
        """Whether every share has outputs, be they filled in."""
        return all(isinstance(share.outcome, list) for share in self.shares)

    def note_failure(self) -> None:
        """Set ``failure`` to the first one among the shares, with the others attached."""
        errors = [share.outcome for share in self.shares if isinstance(share.outcome, RemoteError)]
        if errors:
            errors[0].others = errors[1:]
            self.failure = errors[0]

    def fill(self, outputs: Callable[[Share, RemoteError], list[LLMOutput] | RemoteError]) -> None:
        """Put outputs in the places of failed shares."""
        for share in self.shares:
            if isinstance(share.outcome, RemoteError):
                share.outcome = outputs(share, share.outcome)


def shares_of(counts: Sequence[int], draw: int = 0) -> list[Share]:
    """A share for each LLM that makes something."""
    return [Share(at, count, draw) for at, count in enumerate(counts) if count]


def planned_shares(plan: Sequence[Planned]) -> list[Share]:
    """The shares of an input whose draw is known."""
    return [Share(one.at, one.count, one.draw, answer=one.answer) for one in plan]
