"""``genpool drain`` and ``genpool kick``: take a worker or a client away."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from ..protocol.address import resolve
from ..protocol.errors import ConfigurationError, NoBroker
from ..protocol.limits import MAX_NAME_BYTES
from ..protocol.logs import say
from ..protocol.messages import Dismiss, PeerInfo, Role
from ..protocol.number import POSITIVE_SECONDS
from ..protocol.option import broker_option
from ..protocol.printable import plural, printable
from .link import Link, leave, link_to

# How often it is asked who is still there. A worker whose connection breaks and is opened anew is not listed for a
# moment, so it has gone when it is missing twice in a row.
_ASK_EVERY_S = 0.5
_MISSING = 2

# A broker that has begun anew does not know all workers yet. They look for it once a second or more often.
_YOUNG_S = 3.0

# How long the broker is waited for.
_BROKER_S = 5.0

# How often it is said who is waited for.
_SAY_EVERY_S = 10.0

_EXIT_LEFT = 1

Report = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class DrainSettings:
    """What ``genpool drain`` is asked for. ``timeout_s`` None waits for ever, and 0 not at all."""

    broker: str
    name: str
    llm: str
    timeout_s: float | None


@click.command()
@click.argument("name", metavar="WORKER|HOST")
@broker_option("drain", takes_several=False)
@click.option("--llm", default="", metavar="NAME", help="Only workers of this LLM.")
@click.option("--no-wait", is_flag=True, help="Do not wait until they have gone.")
@click.option(
    "--timeout",
    type=POSITIVE_SECONDS,
    metavar="SECONDS",
    help="How long to wait until they have gone; they go on draining.  [default: as long as it takes]",
)
def drain(name: str, broker: str | None, llm: str, no_wait: bool, timeout: float | None) -> int:
    """Have workers drain: they take no more rows, finish what they run, and end with exit code 0.

    WORKER is HOST:PID as `genpool status` shows them, or the process id where only one worker has it; HOST is all
    workers of that host. No row is charged for it, and what waits goes to other workers. With keys, only an admin's
    may do this.

    Exit codes: 0 done, 1 some are still there after --timeout, 2 usage or no such worker, 3 no broker, 4 refused.
    """
    return run_drain(DrainSettings(resolve(broker), name, llm, 0.0 if no_wait else timeout))


@click.command()
@click.argument("name", metavar="CLIENT")
@broker_option("kick", takes_several=False)
def kick(name: str, broker: str | None) -> int:
    """End a client's session for good: its rows are withdrawn, and its calls fail with Refused.

    CLIENT is HOST:PID as `genpool status` shows them, or the process id where only one client has it. With keys, only
    an admin's may do this. To keep a client out, take its key back: a process that is started anew may come in. Of
    several brokers, each must be told: a client that one of them has kicked goes on at the next.

    Exit codes: 0 done, 2 usage or no such client, 3 no broker, 4 refused.
    """
    return run_kick(resolve(broker), name)


def run_drain(settings: DrainSettings) -> int:
    """Have workers drain, wait for their end, and return the exit code.

    Raises:
        NoBroker: when there was none within 5 s; one that goes away later is waited for.
        Refused: when the broker will not talk to this client, or take this from it.
        ConfigurationError: when there is no such worker, or there can be none.
    """
    message = Dismiss(Role.WORKER, _name(settings.name), _name(settings.llm))
    link = link_to(settings.broker)
    try:
        told = link.dismiss(message, _BROKER_S)
        if settings.timeout_s == 0:
            click.echo(f"{_workers(told)} will end with the last of {_rows(told)}: {_names(told)}")
            return 0
        left = _wait(link, told, settings.timeout_s)
    finally:
        leave(link)
    if left:
        say(f"{_workers(left)} still there after {settings.timeout_s:g} s, draining: {_names(left)}", logging.WARNING)
        return _EXIT_LEFT
    click.echo(f"{_workers(told)} gone, which ran {_rows(told)}: {_names(told)}")
    return 0


def run_kick(broker: str, name: str) -> int:
    """End a client's session and return the exit code. Raises as ``run_drain`` does."""
    message = Dismiss(Role.CLIENT, _name(name))
    link = link_to(broker)
    try:
        told = link.dismiss(message, _BROKER_S)
    finally:
        leave(link)
    click.echo(f"{_names(told[:1])} was kicked, and {_rows(told)} withdrawn")
    return 0


def _name(name: str) -> str:
    """``name``, if it can be sent: a broker ends the connection of who sends a longer one, and keeps it out at last.

    Raises:
        ConfigurationError: when it is too long.
    """
    if len(name.encode(errors="surrogatepass")) > MAX_NAME_BYTES:
        raise ConfigurationError(f"nobody has a name of more than {MAX_NAME_BYTES} bytes: {name[:20]!r}…")
    return name


def _wait(link: Link, workers: Sequence[PeerInfo], timeout_s: float | None) -> list[PeerInfo]:
    """Wait until they have gone. Returns who has not in time."""
    left = {_key(one): 0 for one in workers}  # how often each was missing in a row
    begun = time.monotonic()
    next_word = begun
    while True:
        report = _report(link)
        if report is not None:
            running = _running(report)
            left = {key: 0 if key in running else times + 1 for key, times in left.items()}
            left = {key: times for key, times in left.items() if times < _MISSING}
            now = time.monotonic()
            if left and now >= next_word:
                next_word = now + _SAY_EVERY_S
                rows = sum(running.get(key, 0) for key in left)
                their_rows = f" {plural(rows, 'row')}" if rows else ""
                say(f"waiting for {plural(len(left), 'worker')} to end{their_rows}")
        remains = [one for one in workers if _key(one) in left]
        left_s = _ASK_EVERY_S if timeout_s is None else begun + timeout_s - time.monotonic()
        if not remains or left_s <= 0:
            return remains
        time.sleep(min(_ASK_EVERY_S, left_s))


def _report(link: Link) -> Report | None:
    """What the broker says, if there is one that knows its workers; they go on draining without it."""
    try:
        report = link.status(_ASK_EVERY_S)
    except NoBroker:
        return None
    return report if report["uptime_s"] > _YOUNG_S else None


def _running(report: Report) -> dict[tuple[str, str, int], int]:
    """The workers that are there, and how many rows each of them runs."""
    return {
        (str(llm["name"]), str(one["host"]), int(one["pid"])): int(one["running"])
        for llm in report["llms"]
        for one in llm["workers"]
    }


def _key(worker: PeerInfo) -> tuple[str, str, int]:
    return worker.llm, worker.host, worker.pid


def _names(peers: Sequence[PeerInfo]) -> str:
    return ", ".join(printable(f"{one.host}:{one.pid}") for one in peers)


def _workers(workers: Sequence[PeerInfo]) -> str:
    return plural(len(workers), "worker")


def _rows(peers: Sequence[PeerInfo]) -> str:
    return plural(sum(one.rows for one in peers), "row")
