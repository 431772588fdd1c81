"""How long a process takes to start, against one that imports only what genpool cannot do without.

Whole processes are timed, one after the other in rounds, each with its bytecode at hand and without an editable install
(whose finder would import much for all of them): as where genpool was installed from a wheel.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.progress import track

import genpool

from .report import Goal, Report, err, reporting

_BASELINE = "import zmq, msgpack"

# What is started -> what `python` is given for it. The command is what pip writes for it.
_COMMAND = ("-c", "import sys; from genpool.cli import main; sys.argv[0] = 'genpool'; sys.exit(main())")
_STARTS: dict[str, Sequence[str]] = {
    _BASELINE: ("-c", _BASELINE),
    "an empty program": ("-c", "pass"),
    "import genpool": ("-c", "import genpool"),
    "from genpool import LLMPool": ("-c", "from genpool import LLMPool"),
    "genpool --help": (*_COMMAND, "--help"),
    **{f"genpool {name} --help": (*_COMMAND, name, "--help") for name in ("broker", "worker", "generate", "status")},
}


@click.command()
@click.option("--repeat", default=30, show_default=True, type=click.IntRange(1), help="Rounds.")
@reporting
def start(repeat: int) -> Report:
    """Measure how long imports and commands take to start, against importing zmq and msgpack."""
    with tempfile.TemporaryDirectory(prefix="genpool-bench-") as name:
        python, environment = _installed(Path(name))
        commands = {what: [str(python), *arguments] for what, arguments in _STARTS.items()}
        for command in commands.values():
            _time(command, environment)  # the first one compiles
        rounds = [
            {what: _time(command, environment) for what, command in commands.items()}
            for _ in track(range(repeat), "Measuring starts", console=err, transient=True)
        ]
    ratios = {what: [times[what] / times[_BASELINE] for times in rounds] for what in commands}
    return Report(
        title=f"Milliseconds of a whole process, medians of {repeat} rounds",
        headings=("what is started", "ms", "ratio", "min", "max"),
        lines=[_line(what, [times[what] for times in rounds], ratios[what]) for what in commands],
        figures={what: {"times_s": [times[what] for times in rounds], "ratios": ratios[what]} for what in commands},
        goals=[
            Goal("import genpool", statistics.median(ratios["import genpool"]), 1.8, 1.3, at_most=True),
            Goal("genpool --help", statistics.median(ratios["genpool --help"]), 2.2, 1.6, at_most=True),
        ],
        caption=f"ratios to `{_BASELINE}` in the same round",
        draw=lambda figure: _draw(figure, rounds),
    )


def _installed(folder: Path) -> tuple[Path, dict[str, str]]:
    """An interpreter that finds genpool and what it needs, and the environment in which it keeps bytecode."""
    venv.create(folder / "env")
    (folder / "genpool").symlink_to(Path(genpool.__path__[0]).resolve())
    (site_packages,) = (folder / "env").glob("lib/python*/site-packages")
    found = [str(Path(module.__file__ or "").parents[1]) for module in (click, sys.modules["zmq"])]
    (site_packages / "genpool.pth").write_text("\n".join([str(folder), *dict.fromkeys(found)]))
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return folder / "env" / "bin" / "python", {**kept, "PYTHONPYCACHEPREFIX": str(folder / "bytecode")}


def _time(command: Sequence[str], environment: Mapping[str, str]) -> float:
    begun_at = time.perf_counter()
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begun_at


def _line(what: str, times: list[float], ratios: list[float]) -> tuple[str, ...]:
    figures = (statistics.median(ratios), min(ratios), max(ratios))
    return (what, f"{1000 * statistics.median(times):.0f}", *(f"{one:.2f}" for one in figures))


def _draw(figure: Any, rounds: Sequence[Mapping[str, float]]) -> None:
    axes = figure.add_subplot()
    names = list(reversed(_STARTS))
    times = [[1000 * one[name] for one in rounds] for name in names]
    axes.boxplot(times, orientation="horizontal", tick_labels=names, showfliers=False)
    axes.axvline(statistics.median(times[-1]), color="grey", linestyle=":")
    axes.set(xlabel="milliseconds", xlim=(0, None))
