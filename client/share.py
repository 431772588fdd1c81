"""How the generations of one input are split over several LLMs. Pure functions; the random source is an argument."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Sequence

from ..protocol.errors import ConfigurationError

# Larger ones add up to more than a float holds, or do so times the generations.
_MOST_WEIGHT = 1e200


def draw_shares(num_generations: int, weights: Sequence[float], source: random.Random) -> list[int]:
    """How many of ``num_generations`` each LLM makes, one entry for each of ``weights``.

    Every LLM gets the whole part of its proportion; what remains goes, one each, to LLMs drawn at random with the
    fractions as chances. With equal weights that is ``n // k`` each, and one more for ``n % k`` of them.
    """
    total = sum(weights)
    exact = [num_generations * weight / total for weight in weights]
    # Rounded first: 3 * (1/3) must count as a whole 1.
    shares = [math.floor(round(part, 9)) for part in exact]
    fractions = [max(0.0, part - share) for part, share in zip(exact, shares, strict=True)]
    for chosen in _draw(num_generations - sum(shares), fractions, source):
        shares[chosen] += 1
    return shares


def move_shares(
    shares: Sequence[int], lost: Collection[int], weights: Sequence[float], source: random.Random
) -> list[int]:
    """``shares`` without those of the ``lost`` LLMs, which are drawn over the others by ``weights``.

    Where no other has any weight, they stay as they are.
    """
    others = [0.0 if at in lost else weight for at, weight in enumerate(weights)]
    count = sum(shares[at] for at in lost)
    if not count or not sum(others):
        return list(shares)
    moved = draw_shares(count, others, source)
    return [more + (0 if at in lost else share) for at, (share, more) in enumerate(zip(shares, moved, strict=True))]


def _draw(count: int, chances: list[float], source: random.Random) -> list[int]:
    """``count`` positions, each with exactly its chance: systematic sampling in a random order (Madow 1949)."""
    if not count:
        return []
    order = [at for at, chance in enumerate(chances) if chance > 1e-9]
    source.shuffle(order)
    reached = source.random()
    drawn: list[int] = []
    passed: list[int] = []
    for at in order:
        reached += chances[at]
        (drawn if reached >= len(drawn) + 1 else passed).append(at)
    # The chances add up to `count` but for rounding, which must not cost a generation.
    return (drawn + passed)[:count]


def check_weights(weights: Sequence[float] | None, llms: int) -> list[float]:
    """The weights to draw by: equal ones for None.

    Raises:
        ConfigurationError: when they are not one positive number for each LLM.
    """
    if weights is None:
        return [1.0] * llms
    try:
        checked = [float(weight) for weight in weights]
    except (TypeError, ValueError, OverflowError):
        checked = []
    if len(checked) != llms or not all(0 <= weight <= _MOST_WEIGHT for weight in checked) or sum(checked) <= 0:
        raise ConfigurationError(
            f"`weights` must be {llms} numbers, one for each LLM, none negative or above "
            f"{_MOST_WEIGHT:g}, and not all zero; got {weights!r}"
        )
    return checked
