"""``genpool broker``: parses, then runs the shell."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path

import click

from ..protocol.address import check
from ..protocol.errors import ConfigurationError
from .settings import BrokerSettings
from .shell import ShellSettings, is_open_to_others, run

# With a short timeout the pings come faster, so that a late one is no silence.
_PINGS_PER_TIMEOUT = 20

log = logging.getLogger("genpool.broker")


@click.command()
@click.option(
    "--bind",
    default="tcp://127.0.0.1:5555",
    show_default=True,
    metavar="ADDRESS",
    help="Where clients and workers connect: tcp://HOST:PORT (port * takes a free one) or ipc://PATH.",
)
@click.option(
    "--connection-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the address to this file, for GENPOOL_BROKER and --broker; it is removed at the end.",
)
@click.option(
    "--keys",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Encrypt, and let in only who is allowed: the folder that `genpool keys new DIR` made.",
)
@click.option(
    "--insecure", is_flag=True, help="Allow an address that other machines reach without keys: anyone there can use it."
)
@click.option(
    "--settle",
    type=click.FloatRange(0),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="How long, after the start, workers may say what they hold before rows are sent again.",
)
@click.option(
    "--client-grace",
    type=click.FloatRange(0),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a client may be away before its rows are dropped.",
)
@click.option(
    "--worker-grace",
    type=click.FloatRange(0),
    default=0.4,
    show_default=True,
    metavar="SECONDS",
    help="How long a worker whose connection broke may be away before its rows go elsewhere.",
)
@click.option(
    "--heartbeat-timeout",
    type=click.FloatRange(0.1, 3600),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a peer may be silent on the network.",
)
@click.option(
    "--max-attempts",
    default=3,
    show_default=True,
    type=click.IntRange(1),
    help="How often a row may end a worker or make an engine raise.",
)
@click.option(
    "--max-unread",
    default=64,
    show_default=True,
    type=click.IntRange(1),
    metavar="MEBIBYTES",
    help="How much a client may be sent before it has read it; its rows are held back meanwhile.",
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
    settings = BrokerSettings(
        settle_s=settle,
        client_grace_s=client_grace,
        worker_grace_s=worker_grace,
        heartbeat_timeout_s=heartbeat_timeout,
        ping_interval_s=min(BrokerSettings().ping_interval_s, heartbeat_timeout / _PINGS_PER_TIMEOUT),
        max_attempts=max_attempts,
        max_unread_bytes=max_unread * 1024 * 1024,
    )
    return run(ShellSettings(address, connection_file, keys, lifeline), settings)
