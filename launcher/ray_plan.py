"""What a fleet file asks of a Ray cluster, and what is there of it: data, without Ray.

Each replica is an actor whose name tells all that the plan needs, also of one that does not answer::

    FLEET/LLM/NUMBER/FINGERPRINT        fleet-1f0c93aa/qwen/2/5be1c0d2f7a9

The fingerprint is that of the recipe and of Ray's options. One with another fingerprint is to be replaced. The order is
that of ``machine.py``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..protocol.backoff import Backoff
from .machine import Process, State
from .ray_file import RayFile
from .service import Fleet, Recipe, Service


@dataclass(frozen=True, slots=True)
class Order:
    """How a replica is started: the command, and where Ray may place it."""

    recipe: Recipe
    options: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        recipe = self.recipe
        parts = [recipe.arguments, recipe.environment, recipe.gpus, dict(self.options)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def placement(self) -> dict[str, Any]:
        """Options of Ray's actors."""
        return {**self.options, **({} if self.recipe.gpus is None else {"num_gpus": self.recipe.gpus})}


def orders_of(fleet: Fleet, file: RayFile) -> dict[str, Order]:
    """By fingerprint, how the replicas of the file are started."""
    orders = [Order(service.recipe, file.options[service.name]) for service in fleet.services]
    return {order.fingerprint: order for order in orders}


def wanted(fleet: Fleet, file: RayFile) -> Fleet:
    """The fleet as the launcher's plan takes it: fingerprints for recipes, and no GPU, which Ray hands out."""
    services = tuple(_marked(service, file) for service in fleet.services)
    return Fleet(fleet.path, services, drain_s=fleet.drain_s)


def _marked(service: Service, file: RayFile) -> Service:
    return replace(service, recipe=_mark(Order(service.recipe, file.options[service.name]).fingerprint))


def name_of(fleet: str, process: Process) -> str:
    """The actor's name."""
    return f"{fleet}/{process.service}/{process.number}/{fingerprint_of(process)}"


def fingerprint_of(process: Process) -> str:
    return process.recipe.arguments[0]


def found(fleet: str, names: Iterable[str]) -> list[Process]:
    """The replicas of the fleet among the actors' ``names``, as if they started; others' are left out."""
    processes: list[Process] = []
    for name in sorted(names):
        before, _, fingerprint = name.rpartition("/")
        before, _, number = before.rpartition("/")
        # The fleet's name may have a slash as well as the LLM's.
        if before.startswith(f"{fleet}/") and number.isdecimal():
            processes.append(_process(before.removeprefix(f"{fleet}/"), int(number), fingerprint))
    return processes


def _process(service: str, number: int, fingerprint: str) -> Process:
    return Process(
        service=service,
        recipe=_mark(fingerprint),
        is_broker=False,
        number=number,
        epoch=0,
        gpus=(),
        backoff=Backoff(lambda: 0.0),  # it is the actor that starts again
        due=0.0,
        state=State.STARTING,
    )


def _mark(fingerprint: str) -> Recipe:
    return Recipe((fingerprint,))
