"""The same work through genpool and through others, each as its own documentation says is good for throughput.

A text goes in, another comes back, and nothing is computed. Each text is a request of its own, with its own answer.
Each system runs in processes of its own with four workers, and only while it is measured; genpool is measured before
and after each. How each one is run stands in its module in ``rivals/``. distilabel 0.6 needs old packages, and so an
environment of its own (``--install``).

genpool is measured in three ways, for its worker may give an engine 64 rows in a call, or one row in each of 64 calls
at once, or one row after the other; in the last no row waits at a worker, while the others hand theirs out ahead. With
``--pack`` the others get several texts in a call, as if a user had packed them by hand.
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

from genpool.protocol.number import FiniteRange

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
_SINGLY = _System("genpool, a row a call", "own", ("--batch-size", "1", "--concurrency", "1"))
_PEERS = (
    _SINGLY,
    _System("genpool, 64 calls of a row", "own", ("--batch-size", "1", "--concurrency", "64")),
    _System("Ray actors", "ray_actors", package="ray"),
    _System("Celery + Redis", "celery_redis", package="celery", needs_redis=True),
    _System("Dask distributed", "dask_cluster", package="distributed"),
    _System("ipyparallel", "ipyparallel_view", package="ipyparallel"),
    _System("RQ + Redis", "rq_redis", package="rq", needs_redis=True),
    _System("distilabel ProcessLLM", "distilabel_pool", ("processes",), is_old=True),
    _System("distilabel LLMPool", "distilabel_pool", ("pool",), is_old=True),
)


@dataclass(frozen=True)
class _Plan:
    """How each is measured. ``pack`` texts are a call of the others; ours takes rows, and packs them itself."""

    seconds: float
    repeat: int
    pack: int

    def order(self, system: _System) -> dict[str, Any]:
        """What a system is started with: see rivals/harness.py."""
        pack = 1 if system.module == _OURS.module else self.pack
        characters = noop.INPUT_CHARACTERS
        return {"workers": _WORKERS, "input_characters": characters, "pack": pack, "arguments": system.arguments}


@dataclass
class _Measured:
    """What was found: requests a second with many outstanding, and seconds of one at a time, of each round."""

    version: str
    workers: str
    many_per_s: list[float]
    one_s: list[float]

    @property
    def median_per_s(self) -> float:
        return statistics.median(self.many_per_s)


class _Running:
    """A system's process, which is told what to measure: see rivals/harness.py. Raises ScriptError when it fails."""

    def __init__(self, system: _System, process: subprocess.Popen[bytes]) -> None:
        self._system, self._process = system, process
        assert process.stdout is not None
        self._replies = selectors.DefaultSelector()
        self._replies.register(process.stdout, selectors.EVENT_READ)
        self.about: dict[str, str] = self._reply()

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
def _running(system: _System, folder: Path, plan: _Plan) -> Generator[_Running]:
    """Start a system; all its processes end with the block."""
    python = _OLD / "bin/python" if system.is_old else Path(sys.executable)
    with (folder / f"{system.module}.log").open("ab") as log:
        process = subprocess.Popen(
            [python, "-m", f"benchmarks.rivals.{system.module}", json.dumps(plan.order(system))],
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
        _end(process, folder)


def _end(process: subprocess.Popen[bytes], folder: Path) -> None:
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
        for pid in _left(folder):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def _left(folder: Path) -> list[int]:
    """Processes whose TMPDIR is ``folder``: Ray and ipyparallel start some in groups of their own.

    Linux tells. Elsewhere they are left to end by themselves.
    """
    mark = f"TMPDIR={folder}".encode()
    found: list[int] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes().split(b"\0")
        except OSError:  # it has ended, or is another user's
            continue
        if mark in environment:
            found.append(int(process.name))
    return found


def _measure(system: _System, folder: Path, plan: _Plan) -> _Measured:
    with _running(system, folder, plan) as running:
        measured = _Measured(running.about["version"], running.about["workers"], [], [])
        for _ in range(plan.repeat):
            measured.many_per_s.append(running.ask("many", plan.seconds))
            measured.one_s.append(running.ask("one", plan.seconds / 2))
        return measured


def _measure_all(systems: Sequence[_System], plan: _Plan) -> tuple[list[_Measured], dict[_System, _Measured]]:
    """Our own figures, before the first and after each of the others, and theirs."""
    found: dict[_System, _Measured] = {}
    # Short, for Ray puts sockets there, whose paths must be; so it is not the user's TMPDIR.
    with tempfile.TemporaryDirectory(prefix="peers-", dir="/tmp") as name:
        folder = Path(name)
        ours = [_measure(_OURS, folder, plan)]
        for system in track(systems, "Measuring", console=err, transient=True):
            try:
                found[system] = _measure(system, folder, plan)
            except ScriptError as error:
                err.print(f"{error}; the others go on")
                continue
            ours.append(_measure(_OURS, folder, plan))
    return ours, found


def _install() -> None:
    """Make the environment of distilabel 0.6, if it is not there."""
    if (_OLD / "bin/python").exists():
        return
    err.print(f"Making {_OLD.name} with {', '.join(_OLD_PACKAGES)} (once, some minutes) …")
    pip = [_OLD / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *_OLD_PACKAGES]
    try:
        venv.create(_OLD, with_pip=True)
        subprocess.run(pip, check=True)
    except BaseException as error:
        # Half of it would be taken for the whole, be it by Ctrl-C that it ends.
        shutil.rmtree(_OLD, ignore_errors=True)
        if isinstance(error, subprocess.CalledProcessError):
            sys.exit("scripts/bench peers: the packages could not be installed; pip has said why")
        raise


@click.command()
@click.option("--seconds", default=1.0, show_default=True, type=FiniteRange(0.1), help="Of each measurement.")
@click.option("--repeat", default=3, show_default=True, type=click.IntRange(1), help="Measurements of each.")
@click.option("--pack", default=1, show_default=True, type=click.IntRange(1), help="Texts in each call of the others.")
@click.option("--only", multiple=True, help="Only systems whose names hold this; repeatable.")
@click.option("--install", is_flag=True, help="First make the environment that distilabel 0.6 needs, in .peers/.")
@reporting
def peers(only: Sequence[str], install: bool, **numbers: Any) -> Report:
    """Measure the same work through Ray, Celery, Dask, ipyparallel, RQ and distilabel 0.6, each if it is installed."""
    # A signal unwinds the stack, so that nothing started here is left behind.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    plan = _Plan(**numbers)
    chosen = _chosen(only)
    if install:
        _install()
    for lack in [one.lack for one in chosen if one.lack is not None]:
        err.print(lack)
    ours, found = _measure_all([one for one in chosen if one.lack is None], plan)
    own_per_s = [one.median_per_s for one in ours]
    ratios = {
        system: 1 / Paired(own_per_s[at : at + 2], [measured.median_per_s]).ratio
        for at, (system, measured) in enumerate(found.items())
    }
    others = {system: ratio for system, ratio in ratios.items() if system.module != _OURS.module}
    own = _joined(ours)
    lines = [(_OURS.name, *_figures(own), "", "")]
    for one, measured in found.items():
        # By way of what was measured beside each of the two.
        singly = f"{ratios[one] / ratios[_SINGLY]:.3g}" if _SINGLY in ratios and one in others else ""
        lines.append((one.name, *_figures(measured), f"{ratios[one]:.3g}", singly))
    return Report(
        title=f"Requests a second through {_WORKERS} workers that do nothing, medians of {plan.repeat} rounds",
        headings=("system", "requests/s", "range", "p50, ms", "genpool/it", "a row a call/it"),
        lines=lines,
        figures={
            "pack": plan.pack,
            _OURS.name: own.__dict__,
            **{one.name: {**measured.__dict__, "ratio": ratios[one]} for one, measured in found.items()},
        },
        # Packed by hand, the texts of a call are answered, lost and tried again together: that is other work.
        goals=[Goal("genpool / the best of the others", min(others.values()), 1.0, 5.0)]
        if others and plan.pack == 1
        else [],
        caption=f"{noop.INPUT_CHARACTERS} characters in, {noop.OUTPUT_BYTES} bytes out, on one host"
        + (f"; the others get {plan.pack} texts in a call" if plan.pack > 1 else ""),
        draw=lambda figure: _draw(figure, {_OURS: own, **found}),
    )


def _chosen(only: Sequence[str]) -> list[_System]:
    """The systems that are asked for. Raises click.BadParameter for a part that is in no name."""
    for part in only:
        if not any(_is_named(one, part) for one in _PEERS):
            known = ", ".join(repr(one.name) for one in _PEERS)
            raise click.BadParameter(
                f"there is no system with {part!r} in its name: there are {known}.", param_hint="'--only'"
            )
    return [one for one in _PEERS if not only or any(_is_named(one, part) for part in only)]


def _is_named(system: _System, part: str) -> bool:
    return part.lower() in system.name.lower()


def _joined(several: Sequence[_Measured]) -> _Measured:
    """One system's, measured several times."""
    many = [value for one in several for value in one.many_per_s]
    return _Measured(several[0].version, several[0].workers, many, [value for one in several for value in one.one_s])


def _figures(measured: _Measured) -> tuple[str, ...]:
    spread = f"{rate(min(measured.many_per_s))} to {rate(max(measured.many_per_s))}"
    return rate(measured.median_per_s), spread, f"{1000 * statistics.median(measured.one_s):.2f}"


def _draw(figure: Any, measured: dict[_System, _Measured]) -> None:
    axes = figure.add_subplot()
    ordered = sorted(measured.items(), key=lambda item: item[1].median_per_s)
    rates = [one.median_per_s for _, one in ordered]
    lows = [one.median_per_s - min(one.many_per_s) for _, one in ordered]
    highs = [max(one.many_per_s) - one.median_per_s for _, one in ordered]
    colours = ["tab:orange" if one.module == _OURS.module else "tab:blue" for one, _ in ordered]
    names = [one.name for one, _ in ordered]
    axes.barh(names, rates, xerr=[lows, highs], color=colours, error_kw={"ecolor": "0.3", "capsize": 3})
    for at, (value, high) in enumerate(zip(rates, highs, strict=True)):
        axes.annotate(rate(value), (value + high, at), (6, 0), textcoords="offset points", va="center")
    axes.set(xlabel="requests a second", xscale="log", xlim=(min(rates) / 2, max(rates) * 4))
