"""What a fleet file asks for, checked: plain data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

BROKER = "broker"

# A drain waits for the rows that run. With a smaller value long ones are lost and run again.
DRAIN_S = 300.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a process is started. One that was started by another recipe is to be replaced.

    ``arguments`` are of the ``genpool`` command. ``gpus`` is how many GPUs it is handed; None leaves it those that
    this process sees.
    """

    arguments: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()
    gpus: int | None = None


@dataclass(frozen=True, slots=True)
class Service:
    """So many processes of one recipe: the replicas of an LLM, or the broker.

    ``slurm`` are the options of ``sbatch`` for them, where Slurm runs them.
    """

    name: str
    recipe: Recipe
    replicas: int = 1
    is_broker: bool = False
    slurm: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Fleet:
    """The state to bring this host to.

    ``gpus`` are those that may be handed out, as ``CUDA_VISIBLE_DEVICES`` names them. ``drain_s`` is how long a process
    may take to end before it is killed.
    """

    path: Path
    services: tuple[Service, ...] = ()
    gpus: tuple[str, ...] = ()
    drain_s: float = DRAIN_S
