"""Measurements on this machine. Run by `scripts/bench`; each subcommand has a module in `benchmarks/`."""

from __future__ import annotations

import click
from benchmarks.engines import engines
from benchmarks.recovery import recovery


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def bench() -> None:
    """Measure genpool on this machine."""


bench.add_command(engines)
bench.add_command(recovery)

if __name__ == "__main__":
    bench()
