"""Fuzzing: random bytes, guided by what they reach, for the codec, the content of rows and the three state machines.

Run by `scripts/fuzz`. Each target is a module in `fuzzing/` and runs in a process of its own, one after the other. It
begins with its corpus in `tests/corpus/`, which `tests/test_fuzz.py` replays, and goes on in `.fuzz/` where it was.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tempfile
from pathlib import Path

import click
from fuzzing.run import Fuzzed, fuzz_target, smallest_cover
from fuzzing.targets import CORPUS, TARGETS, check_of, name_of
from target import Target, write_json

from genpool.protocol.number import FiniteRange

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".fuzz"
# As many as a test replays in a moment.
MOST_KEPT = 200


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("targets", nargs=-1, type=click.Choice(TARGETS), metavar="[TARGET]...")
@click.option("--minutes", type=FiniteRange(0, min_open=True), default=1.0, show_default=True, help="In all.")
@click.option("--again", type=click.Path(exists=True, path_type=Path), help="Only try this file, or a folder's files.")
@click.option("--keep", is_flag=True, help="Then have tests/corpus hold the fewest inputs that reach what was reached.")
@click.option("--folder", type=click.Path(path_type=Path), default=FOLDER, help="Where to work, instead of .fuzz.")
@click.option("--json", "json_path", type=Target(), help="Write the figures to this file, too.")
def fuzz(
    targets: tuple[str, ...], minutes: float, again: Path | None, keep: bool, folder: Path, json_path: Path | None
) -> None:
    """Look for inputs that break, slow or swell what reads from the network.

    \b
    TARGET is codec, content, broker, client or worker; without one, all of them share the time.
    """
    if again is not None:
        if len(targets) != 1:
            raise click.UsageError("--again takes one TARGET: the one that the file was found for")
        try_again(targets[0], again)
        return
    if importlib.util.find_spec("atheris") is None:
        raise click.ClickException("fuzzing needs atheris: `./scripts/setup --fuzz` installs it (for Linux and macOS)")
    chosen = targets or TARGETS
    every: dict[str, Fuzzed] = {}
    for target in chosen:
        click.echo(f"{target}: {60 * minutes / len(chosen):.0f} s …", err=True)
        every[target] = fuzz_target(target, 60 * minutes / len(chosen), folder.resolve())
        say(target, every[target])
        if keep and every[target].finding is None:
            click.echo(f"{target}: {keep_corpus(target, folder.resolve())} inputs kept in {CORPUS / target}")
    if json_path is not None:
        figures = {name: {"executions": one.executions, "seconds": one.seconds} for name, one in every.items()}
        findings = [str(one.finding) for one in every.values() if one.finding]
        write_json(json_path, {"targets": figures, "findings": findings})
    sys.exit(any(one.finding for one in every.values()))


def say(target: str, fuzzed: Fuzzed) -> None:
    click.echo(f"{target}: {fuzzed.executions} executions in {fuzzed.seconds / 60:.1f} minutes")
    if fuzzed.finding is not None:
        click.echo(f"{fuzzed.said}\n{target}: found {fuzzed.finding}")
        click.echo(f"to run it again: ./scripts/fuzz --again {fuzzed.finding} {target}")


def try_again(target: str, path: Path) -> None:
    """Try the inputs at ``path``; what one of them raises ends this with its traceback."""
    check = check_of(target)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    if folder := next((file for file in files if file.is_dir()), None):
        raise click.UsageError(f"--again takes a file, or a folder of files: {folder} is a folder")
    for file in files:
        try:
            check(file.read_bytes())
        except Exception:
            click.echo(f"{target}: {file} is a finding", err=True)
            raise
    click.echo(f"{target}: {len(files)} tried, none is a finding")


def keep_corpus(target: str, folder: Path) -> int:
    """Replace the corpus by the fewest of its inputs and of those found that reach as much. Returns how many."""
    own = CORPUS / target
    with tempfile.TemporaryDirectory() as merged:
        smallest_cover(target, Path(merged), [folder / target, own])
        # Where there are too many, the long ones are kept: they reach what others do not.
        found = sorted((file.read_bytes() for file in Path(merged).iterdir()), key=lambda data: (-len(data), data))
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir(parents=True)
    for data in found[:MOST_KEPT]:
        (own / name_of(data)).write_bytes(data)
    return len(found[:MOST_KEPT])


if __name__ == "__main__":
    fuzz()
