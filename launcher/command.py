"""``genpool up`` and ``genpool down``: parse, then run the launcher here or talk to the one that runs."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click

from ..protocol.errors import ConfigurationError
from ..protocol.logs import JSON, TEXT, is_json, say
from ..protocol.number import SECONDS
from ..protocol.option import UserPath
from . import slurm
from .fleet_file import read_fleet
from .gpu import visible_gpus
from .place import Place, Request, Status
from .service import Fleet
from .shell import Launcher

_say = partial(say, lead="")

_LOOK_S = 0.05

# How much longer than it was given a launcher may take to end, before it is ended by force.
_GRACE_S = 10.0

_FILE = click.argument("file", metavar="FLEET.toml", type=UserPath(dir_okay=False))
_LOGS = click.option(
    "--logs",
    type=UserPath(file_okay=False),
    metavar="DIR",
    help="The folder of the logs, a file for each process, and of what `up` notes for `down`.  "
    "[default: FLEET.run/HOST beside the file]",
)
_ON = click.option(
    "--on",
    type=click.Choice(["local", "ray", "slurm"]),
    default="local",
    show_default=True,
    help="Where the processes are: local, on this host; ray, on the hosts of a Ray cluster; slurm, in jobs.",
)


@click.command()
@_FILE
@_ON
@_LOGS
@click.option(
    "--detach",
    is_flag=True,
    help="Leave it running in the background, and return when all are ready; with --on ray it always does.",
)
@click.option(
    "--restart", "names", multiple=True, metavar="NAME", help="Replace the processes of an LLM one by one; repeat."
)
@click.option(
    "--timeout",
    type=SECONDS,
    metavar="SECONDS",
    help="How long to wait until all are ready, where it runs in the background; it goes on after that.  "
    "[default: as long as it takes]",
)
@click.option("--pipe", type=int, hidden=True, help="A file descriptor, which makes this the launcher that reads it.")
def up(
    file: Path,
    on: str,
    logs: Path | None,
    detach: bool,
    names: tuple[str, ...],
    timeout: float | None,
    pipe: int | None,
) -> int:
    """Bring this host, or a cluster, to the state that a fleet file describes, and keep it there.

    \b
    genpool up fleet.toml             # until Ctrl-C, which drains all
    genpool up --detach fleet.toml    # in the background
    genpool down fleet.toml
    genpool up --on ray fleet.toml    # on the hosts of a Ray cluster, which keeps it there

    Processes that die are started again. Called again with a changed file, it changes only what differs; the replicas
    of a changed LLM are replaced one by one, so that it stays served.

    Exit codes: 0 done, 1 not all are ready, 2 usage.
    """
    root = click.get_current_context().find_root()
    place = Place.of(file, logs)

    def read() -> Fleet:
        return _read(root, file, place, on)

    if pipe is not None:  # it is what `up --detach` has started, and nothing else is left to decide
        return Launcher(place, pipe, read).run()
    if on == "slurm":
        if names:
            raise ConfigurationError("--restart is for processes on this host: on Slurm, change the LLM's table")
        folder = logs.absolute() if logs else place.folder.parent / "slurm"
        return slurm.up(read(), folder, detach=detach, timeout_s=timeout)
    known = [service.name for service in read().services]
    for name in names:
        if name not in known:
            raise ConfigurationError(f"there is no {name!r} in {file} to restart: there are {', '.join(known)}")
    end = None if timeout is None else time.monotonic() + timeout
    if on == "ray":
        from .ray import bring_up

        _refuse_logs(logs)
        return bring_up(file, read(), names, end)
    request = Request("up", names)
    follower = Follower(place)
    if place.ask(request):
        return follower.until_ready(lambda status: status.answers.get(request.token), end)
    pipe = _occupied(file, place)
    if detach:
        return _start_detached(file, place, pipe, follower, end)
    return Launcher(place, pipe, read).run()


@click.command()
@_FILE
@_ON
@_LOGS
@click.option(
    "--timeout",
    type=SECONDS,
    metavar="SECONDS",
    help="Kill what has not drained by then.  [default: the file's drain-timeout]",
)
def down(file: Path, on: str, logs: Path | None, timeout: float | None) -> int:
    """Drain and end all that `genpool up` has started for a fleet file, on this host or on a cluster.

    Exit codes: 0 done, also when nothing was there, 2 usage.
    """
    place = Place.of(file, logs)
    if on == "slurm":
        return slurm.down(_read(click.get_current_context().find_root(), file, place, on), timeout)
    if on == "ray":
        from .ray import take_down

        _refuse_logs(logs)
        return take_down(file, _read(click.get_current_context().find_root(), file, place, on), timeout)
    follower = Follower(place)
    status = place.status()
    if not place.ask(Request("down", timeout_s=timeout)):
        if not file.exists():
            raise ConfigurationError(f"there is no fleet file {file}, and nothing of it runs on this host")
        _say(f"nothing of {file} runs on this host")
        return 0
    # The broker's time begins when the workers' is over.
    if not follower.until_gone(None if timeout is None else time.monotonic() + 2 * timeout + _GRACE_S):
        _say("the launcher does not answer; it is killed, and its processes end with it", logging.WARNING)
        if status is not None:
            os.kill(status.pid, signal.SIGKILL)
        place.leave()
    return 0


class Follower:
    """Shows what a launcher elsewhere logs, from now on."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._shown = place.own_log.stat().st_size if place.own_log.exists() else 0

    def until_ready(self, answer_in: Callable[[Status], str | None], end: float | None) -> int:
        """Wait until the launcher has done what it was asked for, and all are ready. Returns the exit code.

        ``answer_in`` gives its answer: why it has not done it, nothing where it has, None where it is still to come.
        """
        while self._place.is_occupied:
            status = self._place.status()
            self._show()
            answer = None if status is None else answer_in(status)
            if status is not None and answer is not None:
                if answer:
                    raise ConfigurationError(answer)
                if status.is_settled:
                    _say(f"all {len(status.processes)} are ready; logs are in {self._place.folder}")
                    return 0
                if failed := [one["name"] for one in status.processes if one["state"] == "final"]:
                    _say(f"{', '.join(failed)} ended; see the logs in {self._place.folder}", logging.ERROR)
                    return 1
            if end is not None and time.monotonic() >= end:
                _say("not all are ready yet; it goes on", logging.WARNING)
                return 1
            time.sleep(_LOOK_S)
        self._show()
        _say("the launcher has ended", logging.ERROR)
        return 1

    def until_gone(self, end: float | None) -> bool:
        """Wait until there is no launcher any more. Returns whether that was before ``end``."""
        while self._place.is_occupied:
            self._show()
            if end is not None and time.monotonic() >= end:
                return False
            time.sleep(_LOOK_S)
        self._show()
        return True

    def _show(self) -> None:
        try:
            with self._place.own_log.open("rb") as file:
                file.seek(self._shown)
                news = file.read()
        except FileNotFoundError:
            return
        news = news[: news.rfind(b"\n") + 1]
        self._shown += len(news)
        for line in news.decode(errors="replace").split("\n")[:-1]:
            # What another `genpool up` has started may log in the other form.
            if is_json() and not line.startswith("{"):
                _say(line)
            else:
                click.echo(line, err=True)


def _occupied(file: Path, place: Place) -> int:
    pipe = place.occupy()
    if pipe is None:
        raise ConfigurationError(f"another `genpool up {file}` has begun in this moment; call it again")
    return pipe


def _start_detached(file: Path, place: Place, pipe: int, follower: Follower, end: float | None) -> int:
    # It is told all that it would else take from the environment, or find out: were it to detach or to follow, too, it
    # would start another one without end, or write the log into the log.
    form = f"--log-format={JSON if is_json() else TEXT}"
    command = [sys.executable, "-m", "genpool.cli", form, "up", str(file), "--on=local", f"--pipe={pipe}"]
    try:
        with place.own_log.open("ab") as stream:
            process = subprocess.Popen(
                [*command, "--logs", str(place.folder)],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                pass_fds=[pipe],
                start_new_session=True,
            )
    except OSError as error:
        place.leave()
        raise ConfigurationError(f"{place.folder} cannot be used for logs: {error.strerror}") from error
    finally:
        os.close(pipe)
    return follower.until_ready(lambda status: "" if status.pid == process.pid else None, end)


def _read(root: click.Context, file: Path, place: Place, on: str) -> Fleet:
    commands = {name: _command(root, name) for name in ("worker", "broker")}
    return read_fleet(file, place.folder, commands, visible_gpus, on)


def _refuse_logs(logs: Path | None) -> None:
    if logs is not None:
        raise ConfigurationError("--logs is for --on local: the cluster keeps the logs")


def _command(root: click.Context, name: str) -> click.Command:
    """Another command of ``genpool``, whose options a fleet file gives."""
    assert isinstance(root.command, click.Group)
    command = root.command.get_command(root, name)
    assert command is not None
    return command
