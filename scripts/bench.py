"""Measurements on this machine. Run by `scripts/bench`; each subcommand has a module in `benchmarks/`."""

from __future__ import annotations

import importlib

import click

# Each is imported when it is called: they need more than each other.
_BENCHMARKS = {
    "throughput": "Rows a second, against libzmq's proxy without policy.",
    "latency": "One row at a time, against an echo through the proxy.",
    "peers": "The same work through Ray, Celery, Dask, ipyparallel, RQ and distilabel 0.6.",
    "workers": "Rows a second with 10, 100 and 1000 workers connected.",
    "backlog": "Rows a second and the broker's memory with up to a million rows waiting.",
    "start": "Imports and commands, against importing zmq and msgpack.",
    "payload": "Megabytes a second, against libzmq's proxy that moves the same bytes.",
    "fairness": "A few rows beside clients with very many, against an idle fleet.",
    "hedging": "How long calls take with a slow worker in the fleet, hedged and not.",
    "utilisation": "How busy unequal workers are with unequal rows, against an even split.",
    "curve": "Rows a second with encryption, against without.",
    "client": "The client's processor time, and its memory over a stream of a million rows.",
    "engines": "SmolLM2 through the pool, against the engine called directly.",
    "recovery": "The time until rows flow again after a worker or the broker has gone.",
}


class _Benchmarks(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_BENCHMARKS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _BENCHMARKS:
            return None
        return getattr(importlib.import_module(f"benchmarks.{cmd_name}"), cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_BENCHMARKS.items()))


@click.command(cls=_Benchmarks, context_settings={"help_option_names": ["-h", "--help"]})
def bench() -> None:
    """Measure genpool on this machine."""


if __name__ == "__main__":
    bench()
