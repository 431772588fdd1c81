"""A target in a process of its own under libFuzzer, and what that has come to."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .targets import CORPUS

_SCRIPTS = Path(__file__).resolve().parents[1]

# Longer inputs hold more messages, and each try of one takes longer.
LONGEST_BYTES = 512

# The last resort, by the clock: see targets.py for what an input may take.
_HANGS_AFTER_S = 60
_MOST_MEGABYTES = 1024

_FINDING = re.compile(r"Test unit written to (.+)")
_EXECUTIONS = re.compile(r"stat::number_of_executed_units: (\d+)")
_TRACEBACK = re.compile(r"=== Uncaught Python exception: ===\n(.*?)\n==", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Fuzzed:
    """How often a target was tried and for how long; the file of the input that broke it, and what was said then."""

    executions: int
    seconds: float
    finding: Path | None = None
    said: str = ""


def fuzz_target(target: str, seconds: float, folder: Path) -> Fuzzed:
    """Try inputs until the time is over or one is found, which then lies in ``folder``/findings.

    New inputs are kept in ``folder``/TARGET, and what libFuzzer says in ``folder``/TARGET.log.

    Raises:
        RuntimeError: it ended early, and not with a finding.
    """
    findings, own = folder / "findings", folder / target
    for needed in (findings, own):
        needed.mkdir(parents=True, exist_ok=True)
    arguments = [
        f"-max_total_time={max(1, round(seconds))}",
        f"-max_len={LONGEST_BYTES}",
        "-len_control=0",
        f"-timeout={_HANGS_AFTER_S}",
        f"-rss_limit_mb={_MOST_MEGABYTES}",
        f"-artifact_prefix={findings}/{target}-",
        "-print_final_stats=1",
        *map(str, _there([own, CORPUS / target])),
    ]
    log = folder / f"{target}.log"
    began = time.monotonic()
    code = _guided(target, arguments, log)
    said = log.read_text(errors="replace")
    executions, found = _EXECUTIONS.search(said), _FINDING.search(said)
    if executions is None or (code != 0 and found is None):
        raise RuntimeError(f"the fuzzing of {target} ended with code {code}; see {log}\n{said[-2000:]}")
    traceback = _TRACEBACK.search(said)
    return Fuzzed(
        int(executions[1]),
        time.monotonic() - began,
        Path(found[1]) if found else None,
        traceback[1].strip() if traceback else said[-2000:] if found else "",
    )


def smallest_cover(target: str, into: Path, folders: Sequence[Path]) -> None:
    """Copy to ``into`` few of the inputs in ``folders`` that reach all that they reach together.

    Raises:
        RuntimeError: it could not be done.
    """
    log = into.with_suffix(".log")
    arguments = ["-set_cover_merge=1", f"-max_len={LONGEST_BYTES}", str(into), *map(str, _there(folders))]
    try:
        if _guided(target, arguments, log) != 0:
            raise RuntimeError(f"the inputs of {target} cannot be merged:\n{log.read_text(errors='replace')[-2000:]}")
    finally:
        log.unlink(missing_ok=True)


def _there(folders: Sequence[Path]) -> list[Path]:
    return [folder for folder in folders if folder.is_dir()]


def _guided(target: str, arguments: Sequence[str], log: Path) -> int:
    """Run libFuzzer with its arguments; returns its exit code."""
    path = os.pathsep.join(filter(None, [str(_SCRIPTS), os.environ.get("PYTHONPATH", "")]))
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "fuzzing.guided", target, *arguments],
            # The same input takes the same way each time.
            env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "0"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        try:
            return process.wait()
        finally:
            process.kill()
            process.wait()
