"""Which LLMs make an input's generations: drawn once for a call or for each input, and moved away from lost ones."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..protocol.errors import LLMLost
from ..protocol.printable import printable
from .maker import Voice
from .record import Share, shares_of
from .share import draw_shares, move_shares

if TYPE_CHECKING:
    from .call import CallSettings

log = logging.getLogger("genpool.client")


class Draw:
    """The draws of one call, for use under its lock. An LLM is known by its position among ``voices``.

    ``lost`` has the LLMs that are lost by now and why, until they are served again.
    """

    def __init__(self, voices: Sequence[Voice], settings: CallSettings) -> None:
        self.lost: dict[int, LLMLost] = {}
        self._voices = voices
        self._settings = settings
        # What was drawn last: the LLMs that make some generations, and how many.
        self._counts: list[tuple[int, int]] = []
        # Made when they are needed: to seed one takes longer than to send a row. Not by ``cached_property``, whose
        # lock in Python 3.11 is every object's, and stays locked in a child that is forked meanwhile.
        self._source: random.Random | None = None
        self._redraw_source: random.Random | None = None

    @property
    def moves(self) -> bool:
        """Whether what a lost LLM owes is drawn anew over the others."""
        return self._settings.if_lost == "redraw"

    @property
    def is_one_for_all(self) -> bool:
        """Whether all inputs have the same shares now."""
        return not (self._settings.draw_each_row or self.lost)

    def counts(self, number: int) -> list[tuple[int, int]]:
        """The LLMs that make generations of an input, and how many. With a seed, the same wherever a call begins."""
        if not self._counts or self._settings.draw_each_row:
            self._counts = [(at, count) for at, count in enumerate(self._drawn(number)) if count]
        return self._counts

    def shares(self, number: int) -> list[Share]:
        """New shares for one input."""
        counts = self.counts(number)
        if self.lost and self.moves:
            drawn = dict(counts)
            return shares_of(self._moved([drawn.get(at, 0) for at in range(len(self._voices))]))
        return [Share(at, count) for at, count in counts]

    def in_place_of(self, share: Share) -> list[int]:
        """How many generations each LLM makes of those that a lost one owes."""
        self.note_returns()
        return self._moved([share.count if at == share.at else 0 for at in range(len(self._voices))], share.at)

    def note_loss(self, at: int, error: LLMLost) -> bool:
        """An LLM is lost. Whether it was not so before."""
        is_new = at not in self.lost
        self.lost[at] = error
        return is_new

    def note_returns(self) -> None:
        """Forget the loss of LLMs that are served again."""
        for at in [at for at in self.lost if _is_served(self._voices[at])]:
            del self.lost[at]

    def log_loss(self, error: LLMLost) -> None:
        """Say what becomes of what a lost LLM owes."""
        others = [voice.llm_name for voice in self._voices if _is_served(voice)]
        if not self.moves:
            log.warning("%s; the outputs that it owes are None, until it is served again", error)
        elif others:
            log.warning(
                "%s; its shares are drawn anew over %s, until it is served again", error, printable(", ".join(others))
            )
        else:
            log.warning("%s; no other LLM is served that could take its shares, so they wait", error)

    def _drawn(self, number: int) -> list[int]:
        settings = self._settings
        if len(self._voices) == 1:
            return [settings.num_generations]  # and no source is made
        is_seeded = settings.draw_each_row and settings.seed is not None
        if is_seeded:
            source = random.Random(f"{settings.seed}/{number}/draw")
        else:
            source = self._source = self._source or random.Random(settings.seed)
        return draw_shares(settings.num_generations, settings.weights, source)

    def _moved(self, shares: list[int], *lost: int) -> list[int]:
        """``shares`` with those of the lost LLMs drawn anew over the LLMs that are served."""
        gone = self.lost.keys() | set(lost)
        if not gone:
            return shares
        weights, seed = self._settings.weights, self._settings.seed
        if self._redraw_source is None:
            # Another source, so that the draw can be repeated whatever is lost meanwhile.
            self._redraw_source = random.Random(None if seed is None else f"{seed}/redraw")
        able = [weight if _is_served(voice) else 0.0 for weight, voice in zip(weights, self._voices, strict=True)]
        return move_shares(shares, gone, able, self._redraw_source)


def _is_served(voice: Voice) -> bool:
    return voice.info is not None and voice.info.ready > 0
