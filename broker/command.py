"""``genpool broker``: parses, then runs the shell."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path

import click

from ..protocol.address import DEFAULT_ADDRESS, check
from ..protocol.errors import ConfigurationError
from ..protocol.limits import Limits
from ..protocol.number import COUNT, SECONDS, FiniteRange
from ..protocol.option import UserPath
from .settings import BrokerSettings
from .shell import ShellSettings, is_open_to_others, run

# With a short timeout the pings come faster, so that a late one is no silence.
_PINGS_PER_TIMEOUT = 20

_MEBI = 1024 * 1024

log = logging.getLogger("genpool.broker")


@click.command()
@click.option(
    "--bind",
    default=DEFAULT_ADDRESS,
    show_default=True,
    metavar="ADDRESS",
    help="Where clients and workers connect: tcp://HOST:PORT (port * takes a free one) or ipc://PATH.",
)
@click.option(
    "--connection-file",
    type=UserPath(dir_okay=False),
    help="Write the address to this file, for GENPOOL_BROKER and --broker; it is removed at the end.",
)
@click.option(
    "--keys",
    type=UserPath(file_okay=False),
    metavar="DIR",
    help="Encrypt, and let in only who is allowed: the folder that `genpool keys new DIR` made.",
)
@click.option(
    "--insecure", is_flag=True, help="Allow an address that other machines reach without keys: anyone there can use it."
)
@click.option(
    "--settle",
    type=SECONDS,
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="How long, after the start, workers may say what they hold before rows are sent again.",
)
@click.option(
    "--client-grace",
    type=SECONDS,
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a client may be away before its rows are dropped.",
)
@click.option(
    "--worker-grace",
    type=SECONDS,
    default=0.4,
    show_default=True,
    metavar="SECONDS",
    help="How long a worker whose connection broke may be away before its rows go elsewhere.",
)
@click.option(
    "--heartbeat-timeout",
    type=FiniteRange(0.1, 3600),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a peer may be silent on the network.",
)
@click.option(
    "--max-attempts",
    default=3,
    show_default=True,
    type=COUNT,
    help="How often a row may end a worker or make an engine raise.",
)
@click.option(
    "--max-unread",
    default=64,
    show_default=True,
    type=COUNT,
    metavar="MEBIBYTES",
    help="How much a client may be sent before it has read it; its rows are held back meanwhile.",
)
@click.option(
    "--max-clients",
    type=COUNT,
    metavar="N",
    help="How many clients are taken in; without it, as many as the limit on open files leaves room for.",
)
@click.option("--max-workers", type=COUNT, metavar="N", help="How many workers are taken in; without it, as above.")
@click.option(
    "--max-rows",
    default=BrokerSettings().max_rows,
    show_default=True,
    type=COUNT,
    metavar="N",
    help="How many rows of all clients are kept. Who sends more keeps them, and is told when to try again.",
)
@click.option(
    "--max-queued",
    default=BrokerSettings().max_bytes // _MEBI,
    show_default=True,
    type=COUNT,
    metavar="MEBIBYTES",
    help="How much these rows may be in all.",
)
@click.option(
    "--max-client-rows",
    default=Limits().max_client_rows,
    show_default=True,
    type=COUNT,
    metavar="N",
    help="How many rows of one client are kept.",
)
@click.option(
    "--max-client-queued",
    default=Limits().max_client_bytes // _MEBI,
    show_default=True,
    type=COUNT,
    metavar="MEBIBYTES",
    help="How much the rows of one client may be in all.",
)
@click.option(
    "--hello-timeout",
    default=BrokerSettings().hello_timeout_s,
    show_default=True,
    type=FiniteRange(0.1, 3600),
    metavar="SECONDS",
    help="How long a connection may stay that is no client's or worker's.",
)
@click.option(
    "--http",
    metavar="HOST:PORT",
    help="Serve a web page of the fleet, /metrics (for Prometheus), /healthz and /readyz here, without authentication; "
    "port 0 takes a free one.",
)
@click.option("--lifeline", type=int, hidden=True, help="A pipe's file descriptor; end when it closes.")
def broker(
    bind: str,
    connection_file: Path | None,
    keys: Path | None,
    insecure: bool,
    settle: float,
    client_grace: float,
    worker_grace: float,
    heartbeat_timeout: float,
    max_attempts: int,
    max_unread: int,
    max_clients: int | None,
    max_workers: int | None,
    max_rows: int,
    max_queued: int,
    max_client_rows: int,
    max_client_queued: int,
    hello_timeout: float,
    http: str | None,
    lifeline: int | None,
) -> int:
    """Run the broker that clients and workers connect to.

    It keeps what waits for each LLM and gives it to the workers that ask for rows. It may be restarted at any time:
    clients and workers find it again and go on. Stop it with SIGTERM or Ctrl-C.
    """
    address = check(bind, bind=True)
    if keys is not None and address.startswith("ipc://"):
        raise ConfigurationError(
            f"{address} takes no --keys: who may open the socket's file is what guards it; bind tcp://HOST:PORT"
        )
    if keys is None and is_open_to_others(address):
        if not insecure:
            raise ConfigurationError(
                f"{address} can be reached from other machines, and anyone there could use the models. With keys only "
                "those that you allow can: run `genpool keys new keys`, then "
                f"`genpool broker --bind {shlex.quote(address)} --keys keys`. "
                "Or bind tcp://127.0.0.1:PORT, or say --insecure on a network where you trust everyone"
            )
        log.warning("--insecure: anyone who reaches %s can use this broker", address)
    http_address = None if http is None else _http_address(http)
    settings = BrokerSettings(
        settle_s=settle,
        client_grace_s=client_grace,
        worker_grace_s=worker_grace,
        heartbeat_timeout_s=heartbeat_timeout,
        ping_interval_s=min(BrokerSettings().ping_interval_s, heartbeat_timeout / _PINGS_PER_TIMEOUT),
        max_attempts=max_attempts,
        max_unread_bytes=max_unread * _MEBI,
        max_clients=max_clients or BrokerSettings().max_clients,
        max_workers=max_workers or BrokerSettings().max_workers,
        max_rows=max_rows,
        max_bytes=max_queued * _MEBI,
        hello_timeout_s=hello_timeout,
        has_row_times=http_address is not None,
        limits=_limits(max_client_rows, min(max_client_queued, max_queued) * _MEBI),
    )
    return run(ShellSettings(address, connection_file, keys, lifeline, http_address), settings)


def _http_address(given: str) -> str:
    try:
        address = check(f"tcp://{given}", bind=True)
    except ConfigurationError:
        raise ConfigurationError(
            f"--http {given!r} is nothing to serve HTTP on: give HOST:PORT, such as 127.0.0.1:9464; port 0 takes a "
            "free one"
        ) from None
    if is_open_to_others(address):
        log.warning(
            "--http %s: anyone who reaches it can read names of LLMs and hosts, and counts, without a key", given
        )
    return address


def _limits(max_client_rows: int, max_client_bytes: int) -> Limits:
    """The limits to tell: no row is longer than what a client may have, or it could never be taken."""
    longest = min(Limits().max_row_bytes, max_client_bytes)
    return Limits(max_row_bytes=longest, max_client_rows=max_client_rows, max_client_bytes=max_client_bytes)
