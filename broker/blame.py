"""Who is charged when a worker is lost, and in what company a suspect is tried again. Pure functions."""

from __future__ import annotations

import math

# How long the last attempt waits for a worker that has outlived the last death, and the first turn for which a worker
# is kept free for suspects. Most rows end within it, so that such a worker is idle by then. Longer, and one that hangs
# would hold up more; shorter, and more last attempts would be made where whatever begins is ended.
SURVIVOR_WAIT_S = 60.0


def suspect_group_size(lost_with: int, charged: int, max_attempts: int) -> int:
    """How many suspects may run together next, after ``lost_with`` rows ended a worker together.

    The group shrinks by an even ratio with every death, so that the last permitted attempt is made alone: with 3
    attempts, 256 rows are tried again in sixteens and then one by one (group testing; Dorfman 1943).
    """
    remaining = max_attempts - charged
    if remaining <= 1:
        return 1
    return max(1, math.ceil(lost_with ** (1 - 1 / remaining)))


def is_last_attempt(charged: int, max_attempts: int) -> bool:
    """Whether one more death would fail the row: so its worker should be one that has outlived the row's last death.

    A host that ends whatever it begins comes back idle each time, and would otherwise be given one row until it fails.
    """
    return charged == max_attempts - 1


def is_spared(waited_s: float) -> bool:
    """Whether a worker that is at work is given no other rows, so that suspects who have waited so long find it idle.

    By turns, each as long as all before it and a bit more: a row that never ends takes a worker's other places for a
    part of the time only, and however long rows take, some turn is longer.
    """
    _, turn = math.frexp(1 + waited_s / SURVIVOR_WAIT_S)
    return turn % 2 == 1


def is_guilty(lost_with: int, charged: int, max_attempts: int) -> bool:
    """Whether a row fails for ending workers: only when it did so alone, and for the last permitted time."""
    return lost_with == 1 and charged >= max_attempts
