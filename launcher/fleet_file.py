"""Reads a fleet file, ``fleet.toml``, and says on which line it is wrong.

broker = "tcp://127.0.0.1:5555"         # or a table [broker] with the options of `genpool broker`

[llm.smollm2]                           # the options of `genpool worker`, and replicas, gpus, set and env
engine = "llamacpp"
model = "smollm2.gguf"
replicas = 2
gpus = 1
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import click

from ..protocol.address import KEYS, resolve
from ..protocol.brokers import joined, split
from ..protocol.errors import ConfigurationError
from ..protocol.home import expanded
from ..protocol.limits import LONGEST_S, MAX_NAME_BYTES
from ..protocol.notify import VARIABLES
from ..protocol.option import parse_file, public_options, typed_option
from ..protocol.secret import has_login, is_secret_name, refuse_secret
from .gpu import VISIBLE
from .line import placed
from .service import BROKER, DRAIN_S, Fleet, Recipe, Service

_TOP = ("broker", "keys", "gpus", "drain-timeout", "ray", "slurm", "llm")
_OWN = ("replicas", "gpus", "set", "env", "ray", "slurm")
# Of a worker, what the fleet file says elsewhere, or what `up` does.
_NOT_HERE = ("llm", "broker", "config", "restart")

_WRITE_BROKER = 'write broker = "tcp://HOST:5555"'

# Options of ``sbatch`` that `up` itself sets.
_NOT_OF_SBATCH = ("array", "job-name", "comment", "output", "open-mode", "requeue", "signal", "wrap", "parsable")

# Of replicas, and of each one's GPUs. Many more would only be added for ever.
_MOST = 10_000

# What a file's name may have, 255 bytes, less the numbers of replicas and of Slurm's jobs.
_LONGEST_QUOTED = 220

Path_ = tuple[str, ...]


class _Wrong(ConfigurationError):
    """Raised where a value cannot be used: ``path`` is where it stands."""

    def __init__(self, path: Path_, sentence: str) -> None:
        super().__init__(sentence)
        self.path = path


def read_fleet(
    file: Path,
    folder: Path,
    commands: Mapping[str, click.Command],
    visible: Callable[[], tuple[str, ...]],
    on: str = "local",
) -> Fleet:
    """What the file asks for.

    Args:
        file: the fleet file. Paths in it are meant from its folder.
        folder: where the broker's connection file goes, unless the file says where.
        commands: ``genpool worker`` and ``genpool broker``, whose options the file gives.
        visible: the GPUs that may be handed out where the file names none.
        on: where the processes are started. Elsewhere than on this host, somebody else hands out the GPUs.

    Raises:
        ConfigurationError: names the file, the line and the key, and says what to do.
    """
    content, text = parse_file(file, "the fleet file")
    try:
        return _Reader(file, folder, commands, visible, on).read(content)
    except _Wrong as error:
        raise ConfigurationError(placed(file, text, error.path, str(error))) from error


class _Reader:
    def __init__(
        self,
        file: Path,
        folder: Path,
        commands: Mapping[str, click.Command],
        visible: Callable[[], tuple[str, ...]],
        on: str,
    ) -> None:
        self._on = on
        self._file, self._base, self._folder = file, file.absolute().parent, folder
        self._commands, self._visible = commands, visible

    def read(self, content: Mapping[str, Any]) -> Fleet:
        _known(content, (), _TOP)
        services, broker = self._broker(content.get("broker"))
        environment = self._keys(content.get("keys"))
        slurm = _sbatch(content, ("slurm",))
        for name, table in _table(content, ("llm",)).items():
            services.append(self._llm(name, table, broker, environment, slurm))
        if not services:
            raise _Wrong((), "there is nothing to start: add a table [llm.NAME]")
        drain_s = _number(content, (_key(content, "drain-timeout"),), DRAIN_S)
        return Fleet(self._file.absolute(), tuple(services), self._gpus(content, services), drain_s)

    def _broker(self, said: object) -> tuple[list[Service], str | None]:
        """The broker, where it is to be started, and its address for workers."""
        if said is None:
            if self._on != "local":
                raise _Wrong((), f"the hosts of a cluster must be told their broker: {_WRITE_BROKER}")
            return [], None
        if isinstance(said, str):
            address = joined(map(self._address, split(_passable(said, ("broker",)))))
            try:
                resolve(address)
            except ConfigurationError as error:
                raise _Wrong(("broker",), str(error)) from error
            return [], address
        if not isinstance(said, dict):
            raise _Wrong(("broker",), "must be an address, or a table of the options of `genpool broker`")
        if self._on != "local":
            raise _Wrong(("broker",), f"the hosts of a cluster need a broker that is there already: {_WRITE_BROKER}")
        given = cast(dict[str, Any], said)
        options = public_options(self._commands["broker"])
        _known(given, ("broker",), sorted(options))
        arguments = self._arguments("broker", options, given, ("broker",))
        key = _key(given, "connection-file")
        connection_file = self._base / expanded(given.get(key, self._folder / "broker.json"))
        if key not in given:
            arguments.append(f"--connection-file={connection_file}")
        return [Service(BROKER, Recipe(("broker", *arguments)), is_broker=True)], str(connection_file)

    def _address(self, said: str) -> str:
        """A path is meant from the file's folder."""
        is_path = "://" not in said and (os.sep in said or said.endswith(".json"))
        return str(self._base / expanded(said)) if is_path else said

    def _keys(self, said: object) -> dict[str, str]:
        if said is None:
            return {}
        if not isinstance(said, str):
            raise _Wrong(("keys",), f"must be the path of a worker's key file, got {said!r}")
        path = self._base / expanded(said)
        if not path.is_file():
            raise _Wrong(("keys",), f"there is no key file {str(path)!r}: make one with `genpool keys new DIR`")
        return {KEYS: str(path)}

    def _gpus(self, content: Mapping[str, Any], services: Sequence[Service]) -> tuple[str, ...]:
        if self._on != "local":
            if "gpus" in content:
                raise _Wrong(("gpus",), "is for --on local: a scheduler hands out GPUs of its own")
            return ()
        wanted = {service.name: service.replicas * (service.recipe.gpus or 0) for service in services}
        if "gpus" in content:
            said = content["gpus"]
            if not isinstance(said, list) or not all(type(one) in (int, str) for one in cast(list[Any], said)):
                raise _Wrong(("gpus",), f"must be a list of GPUs, such as [0, 1], got {said!r}")
            gpus = tuple(_passable(str(one), ("gpus",)) for one in cast(list[Any], said))
            if len(set(gpus)) < len(gpus):
                raise _Wrong(("gpus",), "names a GPU twice")
        else:
            gpus = self._visible() if any(wanted.values()) else ()
        if sum(wanted.values()) > len(gpus):
            greedy = max(wanted, key=lambda name: wanted[name])
            raise _Wrong(
                ("llm", greedy, "gpus"),
                f"all replicas together need {sum(wanted.values())} GPUs, and there are {len(gpus)}"
                f"{' (' + ', '.join(gpus) + ')' if gpus else ''}: ask for fewer, or say at the top which there are, "
                "as in gpus = [0, 1]",
            )
        return gpus

    def _llm(
        self, name: str, said: object, broker: str | None, environment: dict[str, str], slurm: dict[str, str | None]
    ) -> Service:
        path = ("llm", name)
        if not isinstance(said, dict):
            raise _Wrong(path, f"must be a table: write [llm.{name}]")
        if name == BROKER or not name or len(name.encode()) > MAX_NAME_BYTES:
            raise _Wrong(path, f"cannot be an LLM's name here: take one of 1 to {MAX_NAME_BYTES} bytes, not 'broker'")
        if len(quote(name, safe="")) > _LONGEST_QUOTED:
            raise _Wrong(path, "is too long for the names of its logs' files: shorten it")
        table = cast(dict[str, Any], said)
        options = {
            key: option for key, option in public_options(self._commands["worker"]).items() if key not in _NOT_HERE
        }
        _known(table, path, sorted([*options, *_OWN]))
        if ("engine" in table) == ("load" in table):
            raise _Wrong(path, 'needs either engine = "…" or load = "package.module:function"')
        arguments = self._arguments("worker", options, table, path)
        arguments += [f"--broker={broker}"] * (broker is not None)
        arguments += _settings(table, path)
        gpus = _count(table, (*path, "gpus"), 0) if "gpus" in table else None
        own = environment | _environment(table, path, has_gpus=gpus is not None)
        recipe = Recipe(("worker", f"--llm={_passable(name, path)}", *arguments), tuple(sorted(own.items())), gpus)
        sbatch = slurm | _sbatch(table, (*path, "slurm"))
        replicas = _count(table, (*path, "replicas"), 0, default=1)
        return Service(
            name,
            recipe,
            replicas,
            slurm=tuple((option, value) for option, value in sbatch.items() if value is not None),
        )

    def _arguments(
        self, command: str, options: Mapping[str, click.Parameter], table: Mapping[str, Any], path: Path_
    ) -> list[str]:
        """The options of a command that a table gives."""
        context = click.Context(self._commands[command])
        arguments: list[str] = []
        for key, value in table.items():
            option = options.get(_named(key))
            if option is None:
                continue
            try:
                refuse_secret(key, value)
                typed_option(context, option, key, value)
            except ConfigurationError as error:
                raise _Wrong((*path, key), str(error).removeprefix(f"{key}: ").removeprefix(f"{key} ")) from error
            if isinstance(value, bool):
                arguments += [option.opts[0]] if value else []
            else:
                text = expanded(value) if isinstance(option.type, click.Path) else value
                arguments.append(_passable(f"{option.opts[0]}={text}", (*path, key)))
        return arguments


def _settings(table: Mapping[str, Any], path: Path_) -> list[str]:
    """The engine's settings as ``genpool worker --set`` takes them."""
    pairs: list[str] = []
    settings = _table(table, (*path, "set"))
    if settings and "load" in table:
        raise _Wrong((*path, "set"), "is for an engine; a function that load names has its own settings")
    for key, value in settings.items():
        try:
            refuse_secret(key, value)
        except ConfigurationError as error:
            raise _Wrong((*path, "set", key), str(error).removeprefix(f"{key} ")) from error
        try:
            text = value if isinstance(value, str) else json.dumps(value)
        except TypeError:
            raise _Wrong((*path, "set", key), f"no setting is a date or a time, got {value}") from None
        pairs.append(_passable(f"--set={key}={text}", (*path, "set", key)))
    return pairs


def _sbatch(table: Mapping[str, Any], path: Path_) -> dict[str, str | None]:
    """The options of ``sbatch`` in a table, by their long names; None where it is not to have one."""
    options: dict[str, str | None] = {}
    for key, value in _table(table, path).items():
        name = _named(key)
        if name in _NOT_OF_SBATCH:
            raise _Wrong((*path, key), "is set by `genpool up`")
        if type(value) not in (str, int, bool):
            raise _Wrong((*path, key), f"must be a text, a whole number or true, as sbatch takes it, got {value!r}")
        options[name] = None if value is False else "" if value is True else _passable(str(value), (*path, key))
    return options


def _environment(table: Mapping[str, Any], path: Path_, *, has_gpus: bool) -> dict[str, str]:
    environment: dict[str, str] = {}
    for key, value in _table(table, (*path, "env")).items():
        here = (*path, "env", key)
        if not isinstance(value, str):
            raise _Wrong(here, f'must be a text, got {value!r}: write "{value}"')
        if is_secret_name(key) or has_login(value):
            raise _Wrong(here, "is a secret, and others can read this file: set it where you call `genpool up`")
        if key in VARIABLES or (key == VISIBLE and has_gpus):
            raise _Wrong(here, f"is set by `genpool up`{' where gpus is given' if key == VISIBLE else ''}")
        if not key or "=" in key:
            raise _Wrong(here, "is no name of an environment variable: take one without '=' that is not empty")
        environment[_passable(key, here)] = _passable(value, here)
    return environment


def _known(table: Mapping[str, Any], path: Path_, names: Sequence[str]) -> None:
    for key in table:
        if _named(key) not in names:
            raise _Wrong((*path, key), f"there is no such key here: there are {', '.join(names)}")
        if (other := _key(table, _named(key))) != key:
            raise _Wrong((*path, key), f"is there twice, as {other!r} too: take one of them")


def _named(key: str) -> str:
    """``batch_size`` and ``batch-size`` are one."""
    return key.replace("_", "-")


def _key(table: Mapping[str, Any], name: str) -> str:
    """How the table spells the key that is called ``name``."""
    return next((key for key in table if _named(key) == name), name)


def _passable(text: str, path: Path_) -> str:
    """``text``, which a process is given. Without this a start would raise, in a launcher that runs others."""
    if "\0" in text:
        raise _Wrong(path, "has a NUL character in it, which no command and no environment can have: take it out")
    return text


def _table(content: Mapping[str, Any], path: Path_) -> dict[str, Any]:
    found = content.get(path[-1], {})
    if not isinstance(found, dict):
        raise _Wrong(path, f"must be a table: write [{'.'.join(path)}]")
    return cast(dict[str, Any], found)


def _count(table: Mapping[str, Any], path: Path_, least: int, default: int = 0) -> int:
    value = table.get(path[-1], default)
    if type(value) is not int or not least <= value <= _MOST:
        raise _Wrong(path, f"must be a whole number from {least} on, got {value!r}: take one up to {_MOST}")
    return value


def _number(table: Mapping[str, Any], path: Path_, default: float) -> float:
    value = table.get(path[-1], default)
    if type(value) not in (int, float) or not 0 <= value <= LONGEST_S:
        raise _Wrong(path, f"must be a number of seconds, got {value!r}: take one from 0 to {LONGEST_S:.0f}")
    return float(value)
