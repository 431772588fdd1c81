"""The ``genpool`` command: gathers each folder's subcommands and imports them only when they are called."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import sys
from typing import Any

import click
from click.core import ParameterSource

from . import __version__
from .protocol.logs import JSON, TEXT, configure, is_json, open_standard_streams, say

# Subcommand -> where it is, and its line in `genpool --help` (so that help imports none of them).
_COMMANDS = {
    "broker": (".broker.command:broker", "Run the broker that clients and workers connect to."),
    "worker": (".worker.command:worker", "Run a worker that serves one LLM."),
    "up": (".launcher.command:up", "Bring this host, or a cluster, to the state of a fleet file."),
    "down": (".launcher.command:down", "Drain and end what `genpool up` has started."),
    "keys": (".broker.keys:keys", "Make keys, show them, and say who may come in."),
    "generate": (".client.generate:generate", "Generate over a file of rows with the LLMs of a fleet."),
    "status": (".client.status:status", "Show the fleet: LLMs, workers, what waits."),
    "drain": (".client.dismissal:drain", "Have workers finish what they run, and end."),
    "kick": (".client.dismissal:kick", "End a client's session, and withdraw its rows."),
}

# Why a file that is open takes no more. Who has closed it knows: click ends the command without a word.
_UNWRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = _COMMANDS.get(cmd_name)
        if place is None:
            return None
        module, _, name = place[0].partition(":")
        return getattr(importlib.import_module(module, __package__), name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in _COMMANDS.items()])


@click.command(cls=_Lazy, context_settings={"auto_envvar_prefix": "GENPOOL", "help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="genpool")
@click.option(
    "--log-level", default="info", show_default=True, type=click.Choice(["debug", "info", "warning", "error"])
)
@click.option(
    "--log-format",
    default=TEXT,
    show_default=True,
    type=click.Choice([TEXT, JSON]),
    help="How the log is written to stderr: lines for people, or one JSON object a line.",
)
def genpool(log_level: str, log_format: str) -> None:
    """Split the generations of every prompt over several LLMs, on one machine or many.

    Start a broker, start workers that connect to it, then call the pool from Python or with `genpool generate`.
    Every option can be given as an environment variable: GENPOOL_<COMMAND>_<OPTION>. GENPOOL_BROKER is the broker's
    address for all commands.
    """
    configure(log_level, log_format)


def _name_variable(error: click.BadParameter) -> None:
    """Where the environment gave a bad value, say by which variable: nobody typed the option."""
    context, option = error.ctx, error.param
    if context is None or option is None:
        return
    if context.get_parameter_source(option.name) is not ParameterSource.ENVIRONMENT:
        return
    given = option.envvar or f"{context.auto_envvar_prefix}_{option.name.upper()}"
    names = [given] if isinstance(given, str) else given
    variable = next((name for name in names if os.environ.get(name)), names[0])
    error.param_hint = f"{option.get_error_hint(context)} ({variable})"


def main() -> Any:
    """Run the command line. Errors that a user can mend are one sentence on stderr, never a traceback."""
    from .protocol.errors import ConfigurationError, GenpoolError, NoBroker, Refused

    open_standard_streams()
    codes = {ConfigurationError: 2, NoBroker: 3, Refused: 4}
    try:
        sys.exit(genpool(standalone_mode=False) or 0)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        if isinstance(error, click.BadParameter):
            _name_variable(error)
        if is_json():
            say(error.format_message(), logging.ERROR)
        else:
            error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except GenpoolError as error:
        say(str(error), logging.ERROR)
        sys.exit(next((code for kind, code in codes.items() if isinstance(error, kind)), 1))
    except OSError as error:
        if error.filename is not None:
            say(f"{error.filename!r} cannot be used: {error.strerror}", logging.ERROR)
            logging.getLogger("genpool").debug("where that was", exc_info=True)
        elif error.errno in _UNWRITTEN:
            # The interpreter would complain when it flushes at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            say(f"the output cannot be written: {error.strerror}", logging.ERROR)
        else:
            raise
        sys.exit(1)  # and not 2: who starts commands anew does so after this


if __name__ == "__main__":
    main()
