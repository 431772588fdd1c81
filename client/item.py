"""An input with what a run of a dataset knows of it beyond its arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Planned:
    """``count`` generations that the LLM at position ``at`` makes, as it was drawn before.

    ``draw`` is as in record.Share. ``answer`` is what a worker answered then, packed; None where it is still owed.
    """

    at: int
    count: int
    draw: int = 0
    answer: bytes | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """An input of a call, in the place of the input itself.

    Attributes:
        input: the task's arguments.
        number: stands for its index in the inputs, in what its draw and its sampling are seeded with.
        options: generation options of its own, over those of the call.
        seed: a sampling seed of its own, in the place of the one that is made of the call's.
        plan: its shares, as they were drawn before; empty has the call draw them.
    """

    input: Any
    number: int
    options: Mapping[str, Any] | None = None
    seed: int | None = None
    plan: Sequence[Planned] = ()
