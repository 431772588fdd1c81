"""``genpool status``: the fleet, for people and as JSON."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..protocol.address import resolve
from ..protocol.errors import ConfigurationError, GenpoolError, NoBroker
from ..protocol.number import POSITIVE_SECONDS
from ..protocol.option import broker_option
from ..protocol.printable import plural, printable
from .link import Link, leave, link_to

_REDRAW_S = 1.0
# Wide enough for whoever reads a table from a file; without a terminal rich would take 80 columns.
_FILE_WIDTH = 200

_LOST_FOR_S = 3600.0
# A fleet that loses more has its own troubles, and should see the rest of it too.
_MOST_LOST = 10

Report = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StatusSettings:
    """What ``genpool status`` is asked for."""

    broker: str
    as_json: bool
    watch: bool
    timeout_s: float


@click.command()
@broker_option("status")
@click.option("--json", "as_json", is_flag=True, help="The broker's report as JSON; with --watch, one a line.")
@click.option("--watch", is_flag=True, help="Draw it anew every second, until Ctrl-C.")
@click.option(
    "--timeout",
    type=POSITIVE_SECONDS,
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for the broker.",
)
def status(broker: str | None, as_json: bool, watch: bool, timeout: float) -> int:
    """Show the fleet: its LLMs, their workers, what waits, and who is connected.

    An LLM's rows are queued at the broker (`oldest` is how long one has waited) or running (`4/64`: four, and its
    ready workers run 64 at once). A worker is busy when it is ready and has no room. Rates are those of the last 8 to
    10 seconds. An LLM's failed rows are those that have failed or expired since the broker knows it, a worker's are
    those since it connected. Where calls hedge, `outrun` counts a worker's rows that another one has answered before
    it. Workers that went without a word in the last hour are shown with the rows that they had to run, and why.

    Exit codes: 0 done, 2 usage, 3 no broker within the time given, 4 refused by the broker.
    """
    return run(StatusSettings(resolve(broker), as_json, watch, timeout))


def run(settings: StatusSettings) -> int:
    """Print the report, or keep on printing it until Ctrl-C, and return the exit code.

    Raises:
        NoBroker: when there was none within the time given; a broker that goes away while it is watched is waited for.
        Refused: when the broker will not talk to this client.
        ConfigurationError: when standard output is closed or full.
    """
    if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison]
        raise ConfigurationError("the report cannot be written: standard output is closed")
    link = link_to(settings.broker)
    try:
        _print(link, settings)
    except KeyboardInterrupt:
        if not settings.watch:
            raise
    except GenpoolError:  # some are an OSError, too
        raise
    except OSError as error:
        # The interpreter would complain when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # else whoever read has gone
            raise ConfigurationError(f"the report cannot be written: {error.strerror}") from None
    finally:
        leave(link)
    return 0


def _print(link: Link, settings: StatusSettings) -> None:
    if not settings.watch:
        report = link.status(settings.timeout_s)
        console = _console()
        _print_json(report, indent=2) if settings.as_json else console.print(tables(report, console.width))
    elif settings.as_json:
        for report in _reports(link, settings.timeout_s):
            if not isinstance(report, str):
                _print_json(report)
    else:
        _draw(_reports(link, settings.timeout_s))


def _reports(link: Link, timeout_s: float) -> Iterator[Report | str]:
    """A report every second; for a broker that is away, the sentence about it."""
    yield link.status(timeout_s)
    patience_s = min(timeout_s, _REDRAW_S)
    pause = threading.Event()
    while True:
        pause.wait(_REDRAW_S)
        try:
            yield link.status(patience_s)
        except NoBroker as error:
            yield str(error)


def _draw(reports: Iterator[Report | str]) -> None:
    console = _console()
    if not console.is_terminal:
        for report in reports:
            console.print(_shown(report, console.width))
        return
    # The sentence in the place of the table tells what the log would write across it.
    logging.getLogger("genpool").setLevel(logging.ERROR)
    with Live(_shown(next(reports), console.width), console=console, auto_refresh=False, screen=True) as live:
        for report in reports:
            live.update(_shown(report, console.width), refresh=True)


def _shown(report: Report | str, width: int) -> RenderableType:
    return Text(report, style="red") if isinstance(report, str) else tables(report, width)


def _console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=_FILE_WIDTH)


def _print_json(report: Report, indent: int | None = None) -> None:
    click.echo(json.dumps(report, indent=indent))


def tables(report: Report, width: int) -> RenderableType:
    """The report for people, on so many columns. What a release of another day does not tell is left blank."""
    left_out = set[str]() if width >= _WIDE else _ONLY_WIDE
    llms = _maps(report, "llms")
    workers = [{"llm": llm.get("name"), **worker} for llm in llms for worker in _maps(llm, "workers")]
    clients = [client for client in _maps(report, "clients") if not _is_this_process(client)]
    uptime = _duration(report.get("uptime_s"))
    rows = report.get("rows")
    held = plural(rows, "row") if isinstance(rows, int) else "? rows"
    parts: list[RenderableType] = [Text(f"broker up for {uptime}, {held} there")]
    if llms:
        hedges = {"hedges": "hedges"} if any(llm.get("hedged") for llm in llms) else {}
        columns = {heading: key for heading, key in _LLM_COLUMNS.items() if heading not in left_out}
        parts.append(_table("LLMs", columns | hedges, [_llm(llm) for llm in llms]))
    else:
        parts.append(Text("no LLMs: no worker has connected"))
    if workers:
        outrun = {"outrun": "outrun"} if any(worker.get("outrun") for worker in workers) else {}
        columns = {heading: key for heading, key in _WORKER_COLUMNS.items() if heading not in left_out}
        parts.append(_table("Workers", columns | outrun | _REASON_COLUMN, [_worker(one) for one in workers]))
    parts += _lost(_maps(report, "lost"))
    if clients:
        parts.append(_table("Clients", _CLIENT_COLUMNS, clients))
    return Group(*parts)


# Heading -> the report's key.
_LLM_COLUMNS = {
    "LLM": "name",
    "model": "model",
    "task": "task",
    "workers": "workers",
    "queued": "queued",
    "oldest": "oldest",
    "running": "load",
    "rows/s": "rows_per_s",
    "tokens/s": "tokens_per_s",
    "failed": "failed",
}
_WORKER_COLUMNS = {
    "LLM": "llm",
    "host": "host",
    "pid": "pid",
    "state": "state",
    "running": "running",
    "rows/s": "rows_per_s",
    "tokens/s": "tokens_per_s",
    "done": "done",
    "failed": "failed",
}
_REASON_COLUMN = {"reason": "reason"}
_LOST_COLUMNS = {"LLM": "llm", "host": "host", "pid": "pid", "ago": "ago", "rows": "rows", "why": "why"}
_CLIENT_COLUMNS = {"host": "host", "pid": "pid", "rows": "rows", "answered": "answered", "away (s)": "away_s"}
# A terminal narrower than _WIDE has no room for these.
_WIDE = 110
_ONLY_WIDE = {"model", "task", "tokens/s", "done"}
_STATE_STYLES = {"ready": "green", "busy": "green", "loading": "yellow", "draining": "yellow", "unwell": "red"}
# What is no text: it is never broken over lines, however narrow the terminal is.
_FIGURES = {
    *("queued", "oldest", "load", "rows_per_s", "tokens_per_s", "failed", "done", "running", "pid", "rows", "answered"),
    *("away_s", "ago", "outrun"),
}


def _llm(llm: Report) -> dict[str, Any]:
    states = [_state(worker) for worker in _maps(llm, "workers")]
    counts = [f"{states.count(state)} {state}" for state in _STATE_STYLES if state in states]
    task = cast(Report, llm.get("task") or {})
    return {
        **llm,
        "model": ", ".join(map(str, llm.get("model_names") or ())),
        "task": task.get("name"),
        "workers": ", ".join(counts) or "none" + ("" if llm.get("announced", True) else ", ever"),
        "oldest": None if llm.get("oldest_s") is None else _age(llm["oldest_s"]),
        "load": f"{llm.get('running', '?')}/{llm.get('capacity', '?')}",
        **_rates(llm),
        "failed": _sum(llm.get("failed"), llm.get("expired")),
        "hedges": f"{llm.get('hedges_won')} of {llm['hedged']} won" if llm.get("hedged") else None,
    }


def _worker(worker: Report) -> dict[str, Any]:
    return {**worker, "state": _state(worker), **_rates(worker)}


def _state(worker: Report) -> str:
    return "busy" if worker.get("busy") else str(worker.get("state"))


def _rates(one: Report) -> dict[str, Any]:
    rates = {key: one.get(key) for key in ("rows_per_s", "tokens_per_s")}
    return {key: f"{rate:.1f}" for key, rate in rates.items() if isinstance(rate, (int, float))}


def _sum(*counts: Any) -> int | None:
    return sum(known) if (known := [count for count in counts if isinstance(count, int)]) else None


def _lost(workers: Sequence[Report]) -> list[RenderableType]:
    """Those of the last hour, the last one first."""
    lost = [one for one in workers if isinstance(ago_s := one.get("ago_s"), (int, float)) and ago_s <= _LOST_FOR_S]
    lost.sort(key=lambda one: one["ago_s"])
    if not lost:
        return []
    rows = [{**one, "ago": _age(one["ago_s"])} for one in lost[:_MOST_LOST]]
    more = [Text(f"and {len(lost) - _MOST_LOST} more, which --json tells of")] if len(lost) > _MOST_LOST else []
    return [_table("Lost workers of the last hour", _LOST_COLUMNS, rows), *more]


def _table(title: str, columns: Mapping[str, str], rows: Sequence[Report]) -> Table:
    table = Table(title=title, title_justify="left")
    for heading, key in columns.items():
        is_figure = key in _FIGURES
        table.add_column(heading, justify="right" if is_figure else "left", overflow="fold", no_wrap=is_figure)
    for row in rows:
        table.add_row(*(_cell(row.get(key)) for key in columns.values()))
    return table


def _cell(value: Any) -> Text:
    # As Text: a bracket in a name is no markup.
    text = "" if value is None else printable(str(value))
    return Text(text, style=_STATE_STYLES.get(text, ""))


def _maps(report: Report, key: str) -> list[Report]:
    found = report.get(key)
    return [cast(Report, one) for one in cast(list[Any], found) if isinstance(one, Mapping)] if found else []


def _is_this_process(client: Report) -> bool:
    return client.get("pid") == os.getpid() and client.get("host") == socket.gethostname()


def _age(seconds: float) -> str:
    """About how long, in few characters."""
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.0f} h"
    )


def _duration(seconds: Any) -> str:
    if not isinstance(seconds, (int, float)):
        return "?"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
