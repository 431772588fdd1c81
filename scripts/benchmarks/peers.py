"""The same work through genpool and through others, each as its own documentation says is good for throughput.

A text goes in, another comes back, and nothing is computed. Each system runs in processes of its own with four workers,
and only while it is measured; genpool is measured before and after each. How each one is run stands in its module in
``rivals/``. distilabel 0.6 needs old packages, and so an environment of its own (``--install``).
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import click
from commands import ScriptError
from rich.progress import track

from . import noop
from .paired import Paired
from .report import Goal, Report, err, rate, reporting

_ROOT = Path(__file__).parents[2]
_OLD = _ROOT / ".peers"
_OLD_PACKAGES = ("distilabel==0.6.0", "huggingface_hub==0.20.3", "tenacity")

_WORKERS = 4
# A system may take long to start, and longer for the first calls that it measures itself by.
_PATIENCE_S = 120.0
# After the end of what it is told, a system is given so long to end by itself.
_END_S = 10.0

_BENCH = "scripts/setup --bench installs it"
_REDIS = "redis-server is missing: apt-get install redis-server, or your system's like"


@dataclass(frozen=True)
class _System:
    """What is measured: its module in ``rivals``, words for that, what it needs, and whether in the old environment."""

    name: str
    module: str
    arguments: Sequence[str] = ()
    package: str = "genpool"
    needs_redis: bool = False
    is_old: bool = False

    @property
    def lack(self) -> str | None:
        """What is missing, and how to get it."""
        if self.is_old:
            is_there = (_OLD / "bin/python").exists()
            return None if is_there else f"{self.name} is not installed: scripts/bench peers --install does so"
        if find_spec(self.package) is None:
            return f"{self.name} is not installed: {_BENCH}"
        return f"{self.name}: {_REDIS}" if self.needs_redis and shutil.which("redis-server") is None else None


_OURS = _System("genpool, 64 rows a call", "own", ("--batch-size", "64", "--concurrency", "2"))
_PEERS = (
    _System("genpool, a row a call", "own", ("--batch-size", "1", "--concurrency", "1")),
    _System("Ray actors", "ray_actors", package="ray"),
    _System("Celery + Redis", "celery_redis", package="celery", needs_redis=True),
    _System("Dask distributed", "dask_cluster", package="distributed"),
    _System("ipyparallel", "ipyparallel_view", package="ipyparallel"),
    _System("RQ + Redis", "rq_redis", package="rq", needs_redis=True),
    _System("distilabel 0.6 ProcessLLM", "distilabel_pool", ("processes",), is_old=True),
    _System("distilabel 0.6 LLMPool", "distilabel_pool", ("pool",), is_old=True),
)


@dataclass
class _Measured:
    """Requests a second with many outstanding, and seconds of one at a time."""

    version: str
    many_per_s: list[float]
    one_s: list[float]


class _Running:
    """A system's process, which is told what to measure: see rivals/harness.py. Raises ScriptError when it fails."""

    def __init__(self, system: _System, process: subprocess.Popen[bytes]) -> None:
        self._system, self._process = system, process
        assert process.stdout is not None
        self._replies = selectors.DefaultSelector()
        self._replies.register(process.stdout, selectors.EVENT_READ)
        self.version = str(self._reply()["version"])

    def ask(self, what: str, seconds: float) -> float:
        """Measure ``many`` or ``one`` for about so long."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([what, seconds]).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise ScriptError(f"{self._system.name} ended by itself") from None
        return float(self._reply())

    def _reply(self) -> Any:
        assert self._process.stdout is not None
        if not self._replies.select(_PATIENCE_S):
            raise ScriptError(f"{self._system.name} said nothing for {_PATIENCE_S:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise ScriptError(f"{self._system.name} ended by itself")
        reply: Any = json.loads(line)
        if isinstance(reply, dict) and "error" in reply:
            raise ScriptError(f"{self._system.name} failed: {reply['error']}")
        return cast(Any, reply)


@contextmanager
def _running(system: _System, folder: Path) -> Generator[_Running]:
    """Start a system; all its processes end with the block."""
    order = {"workers": _WORKERS, "input_characters": noop.INPUT_CHARACTERS, "pack": 1, "arguments": system.arguments}
    python = _OLD / "bin/python" if system.is_old else Path(sys.executable)
    with (folder / f"{system.module}.log").open("ab") as log:
        process = subprocess.Popen(
            [python, "-m", f"benchmarks.rivals.{system.module}", json.dumps(order)],
            env={**os.environ, **noop.environment(), "TMPDIR": str(folder)},
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield _Running(system, process)
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Let it end by itself, and then kill whatever of it is left."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.close()
        process.wait(_END_S)
    except (OSError, subprocess.TimeoutExpired):
        pass
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
        process.stdout.close()


def _measure(system: _System, folder: Path, seconds: float) -> _Measured:
    with _running(system, folder) as running:
        return _Measured(running.version, [running.ask("many", seconds)], [running.ask("one", seconds / 2)])


def _measure_all(systems: Sequence[_System], seconds: float) -> tuple[_Measured, dict[_System, _Measured]]:
    """Our own figures, one more of each than others were measured, and theirs."""
    found: dict[_System, _Measured] = {}
    # A short path, for some put sockets there.
    with tempfile.TemporaryDirectory(prefix="peers-") as name:
        folder = Path(name)
        ours = _measure(_OURS, folder, seconds)
        for system in track(systems, "Measuring", console=err, transient=True):
            try:
                measured = _measure(system, folder, seconds)
            except ScriptError as error:
                err.print(f"{error}; the others go on")
                continue
            found[system] = measured
            again = _measure(_OURS, folder, seconds)
            ours.many_per_s += again.many_per_s
            ours.one_s += again.one_s
    return ours, found


def _install() -> None:
    """Make the environment of distilabel 0.6, if it is not there."""
    if (_OLD / "bin/python").exists():
        return
    err.print(f"Making {_OLD.name} with {', '.join(_OLD_PACKAGES)} (once, some minutes) …")
    venv.create(_OLD, with_pip=True)
    pip = [_OLD / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *_OLD_PACKAGES]
    if subprocess.run(pip, check=False).returncode:
        shutil.rmtree(_OLD)
        sys.exit("scripts/bench peers: the packages could not be installed; pip has said why")


@click.command()
@click.option("--seconds", default=3.0, show_default=True, type=click.FloatRange(0.1), help="Of each measurement.")
@click.option("--only", multiple=True, help="Only systems whose names hold this; repeatable.")
@click.option("--install", is_flag=True, help="First make the environment that distilabel 0.6 needs, in .peers/.")
@reporting
def peers(seconds: float, only: Sequence[str], install: bool) -> Report:
    """Measure the same work through Ray, Celery, Dask, ipyparallel, RQ and distilabel 0.6, each if it is installed."""
    if install:
        _install()
    chosen = [one for one in _PEERS if not only or any(part.lower() in one.name.lower() for part in only)]
    for lack in [one.lack for one in chosen if one.lack is not None]:
        err.print(lack)
    ours, found = _measure_all([one for one in chosen if one.lack is None], seconds)
    ratios = {
        system: 1 / Paired(ours.many_per_s[at : at + 2], measured.many_per_s).ratio
        for at, (system, measured) in enumerate(found.items())
    }
    others = [ratios[system] for system in found if system.module != "own"]
    lines = [(_OURS.name, ours.version, *_figures(ours), "")]
    lines += [
        (one.name, measured.version, *_figures(measured), f"{ratios[one]:.1f}") for one, measured in found.items()
    ]
    return Report(
        title=f"Requests a second through {_WORKERS} workers that do nothing",
        headings=("system", "version", "requests/s", "p50, ms", "genpool/it"),
        lines=lines,
        figures={
            _OURS.name: ours.__dict__,
            **{one.name: {**measured.__dict__, "ratio": ratios[one]} for one, measured in found.items()},
        },
        goals=[Goal("genpool / the best of the others", min(others), 1.0, 5.0)] if others else [],
        caption=f"{noop.INPUT_CHARACTERS} characters in, {noop.OUTPUT_BYTES} bytes out, on one host",
        draw=lambda figure: _draw(figure, {_OURS: ours, **found}),
    )


def _figures(measured: _Measured) -> tuple[str, str]:
    return rate(statistics.median(measured.many_per_s)), f"{1000 * statistics.median(measured.one_s):.2f}"


def _draw(figure: Any, measured: dict[_System, _Measured]) -> None:
    axes = figure.add_subplot()
    ordered = sorted(measured.items(), key=lambda item: statistics.median(item[1].many_per_s))
    rates = [statistics.median(one.many_per_s) for _, one in ordered]
    colours = ["tab:orange" if one.module == "own" else "tab:blue" for one, _ in ordered]
    bars = axes.barh([one.name for one, _ in ordered], rates, color=colours)
    axes.bar_label(bars, [rate(one) for one in rates], padding=3)
    axes.set(xlabel="requests a second", xscale="log", xlim=(min(rates) / 2, max(rates) * 4))
