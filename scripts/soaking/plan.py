"""The plan of a soak's faults: all of it follows from the seed, and from nothing that happens meanwhile."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What is done to whom."""

    WORKER_KILLED = "worker killed"
    WORKER_FROZEN = "worker frozen"
    WORKER_DRAINED = "worker drained"
    WORKERS_CUT = "workers' connections cut"
    CLIENT_CUT = "client's connection cut"
    BROKER_KILLED = "broker killed"
    BROKER_FROZEN = "broker frozen"
    BROKER_DRAINED = "broker stopped"
    POISON = "poisonous row"


_OFTEN = {
    Kind.WORKER_KILLED: 6,
    Kind.WORKER_FROZEN: 4,
    Kind.WORKER_DRAINED: 3,
    Kind.WORKERS_CUT: 3,
    Kind.CLIENT_CUT: 2,
    Kind.BROKER_KILLED: 2,
    Kind.BROKER_FROZEN: 1,
    Kind.BROKER_DRAINED: 1,
    Kind.POISON: 1,
}
_MEAN_GAP_S = 2.0

# What is killed or stopped is away for so long, and what is frozen for so long: beyond the heartbeat timeout of 10 s.
_AWAY_S = (0.1, 2.0)
_FROZEN_S = (0.5, 15.0)


@dataclass(frozen=True)
class Fault:
    """``kind`` happens ``at_s`` after the start, to the worker of number ``target`` where it is about one.

    ``lasts_s`` is for how long a process is frozen, or away before it is started again.
    """

    at_s: float
    kind: Kind
    target: int
    lasts_s: float


def plan(seed: int, end_s: float, workers: int) -> Iterator[Fault]:
    """The faults of ``end_s`` seconds, in order."""
    chance = random.Random(seed)
    at_s = 0.0
    while True:
        at_s += chance.expovariate(1 / _MEAN_GAP_S)
        (kind,) = chance.choices(list(_OFTEN), list(_OFTEN.values()))
        target = chance.randrange(workers)
        lasts_s = chance.uniform(*(_FROZEN_S if kind in (Kind.WORKER_FROZEN, Kind.BROKER_FROZEN) else _AWAY_S))
        if at_s >= end_s:
            return
        yield Fault(at_s, kind, target, lasts_s)
