"""What a benchmark hands over: a table for people, figures as JSON, a picture, and how they stand to their goals."""

from __future__ import annotations

import functools
import os
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import msgpack
import zmq
from rich.console import Console
from rich.table import Table
from target import Target, write_json, writing

out = Console()
err = Console(stderr=True)

# Draws on a matplotlib Figure, which may not be installed.
Draw = Callable[[Any], None]


@dataclass(frozen=True)
class Goal:
    """A figure that has a value to reach (``must``) and one to hope for (``aim``): at least, or with ``at_most``."""

    name: str
    value: float
    must: float
    aim: float | None = None
    at_most: bool = False

    @property
    def verdict(self) -> str:
        """How the figure stands."""
        if self.aim is not None and self._reaches(self.aim):
            return "aim reached"
        return "reached" if self._reaches(self.must) else "MISSED"

    def _reaches(self, goal: float) -> bool:
        return self.value <= goal if self.at_most else self.value >= goal


@dataclass(frozen=True)
class Report:
    """What a benchmark has found.

    Attributes:
        title: of the table.
        headings: of its columns; the first is for words, the others for numbers.
        lines: a text for each column.
        figures: all that was measured, for the JSON file.
        goals: the figures that have some.
        caption: what the numbers depend on.
        draw: makes the picture.
    """

    title: str
    headings: Sequence[str]
    lines: Sequence[Sequence[str]]
    figures: dict[str, Any]
    goals: Sequence[Goal] = ()
    caption: str = ""
    draw: Draw | None = field(default=None, repr=False)

    def show(self) -> None:
        """Print the tables."""
        table = Table(self.headings[0], title=self.title, caption=self.caption or None)
        for heading in self.headings[1:]:
            table.add_column(heading, justify="right")
        for line in self.lines:
            table.add_row(*line)
        out.print(table)
        if not self.goals:
            return
        table = Table("goal")
        for heading in ("value", "must", "aim", ""):
            table.add_column(heading, justify="right")
        for goal in self.goals:
            bound = "≤" if goal.at_most else "≥"
            aim = "" if goal.aim is None else f"{bound} {goal.aim:g}"
            table.add_row(goal.name, f"{goal.value:.3g}", f"{bound} {goal.must:g}", aim, goal.verdict)
        out.print(table)

    def write(self, file: Path) -> None:
        """Write all figures, with the machine that they are of."""
        goals = {goal.name: {**asdict(goal), "verdict": goal.verdict} for goal in self.goals}
        write_json(file, {"machine": machine(), "figures": self.figures, "goals": goals})

    def plot(self, file: Path) -> None:
        """Draw the picture, in the format that the file's name ends with."""
        # By its name, for it may not be installed.
        figure: Any = import_module("matplotlib.figure").Figure(figsize=(8, 4.5), layout="constrained")
        assert self.draw is not None
        self.draw(figure)
        figure.suptitle(self.title)
        with writing(file):
            figure.savefig(file, dpi=150)


def machine() -> dict[str, Any]:
    """What figures are worth depends on this."""
    return {
        "cores": os.cpu_count(),
        "processor": _processor(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "pyzmq": zmq.__version__,
        "libzmq": zmq.zmq_version(),
        "msgpack": ".".join(map(str, msgpack.version)),
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())


def reporting(measure: Callable[..., Report]) -> Callable[..., None]:
    """Make a function that returns a Report the body of a command: adds ``--json`` and ``--plot``."""

    @click.option("--json", "json_file", type=Target(), help="Write the figures here, too.")
    @click.option(
        "--plot", "plot_file", type=Target(".png", ".svg", ".pdf"), help="Draw a picture of them: a .png, .svg or .pdf."
    )
    @functools.wraps(measure)
    def command(json_file: Path | None, plot_file: Path | None, **arguments: Any) -> None:
        # Before what may take minutes.
        if plot_file is not None and find_spec("matplotlib") is None:
            sys.exit("--plot needs matplotlib: run scripts/setup --bench, which installs it")
        report = measure(**arguments)
        report.show()
        if json_file is not None:
            report.write(json_file)
        if plot_file is not None:
            report.plot(plot_file)

    return command


def rate(number: float) -> str:
    """A number a second, for a table."""
    return f"{number:,.0f}"


def percentile(times: Sequence[float], percent: int) -> float:
    """What so many in a hundred of ``times`` are not above."""
    return statistics.quantiles(times, n=100, method="inclusive")[percent - 1]
