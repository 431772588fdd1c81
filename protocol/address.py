"""A broker's address as users write it, and the connection file that stands for one."""

from __future__ import annotations

import ipaddress
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from .brokers import joined, split
from .errors import ConfigurationError
from .home import expanded
from .private import refuse_shared, write_private

if TYPE_CHECKING:
    from .keys import PeerKeys

DEFAULT_ADDRESS = "tcp://127.0.0.1:5555"
ENVIRONMENT_VARIABLE = "GENPOOL_BROKER"
KEYS = "GENPOOL_KEYS"

_WHAT = "the connection file"

# What the operating system leaves for the path of a socket.
_LONGEST_IPC_PATH = 107
_HOST_AND_PORT = re.compile(r"(?P<host>\[[0-9a-fA-F:.%]+\]|\*|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5}|\*)")


@dataclass(frozen=True, slots=True)
class Connection:
    """What a connection file says. ``keys`` has, by role, those that peers on this account may use."""

    address: str
    pid: int = 0
    keys: Mapping[str, PeerKeys] = field(default_factory=dict[str, "PeerKeys"])


def resolve(broker: str | None) -> str:
    """What stands for the broker from now on: a ZeroMQ endpoint, or the absolute path of a connection file.

    ``broker`` is ``tcp://host:port``, ``host:port``, ``ipc://path``, or the path of a connection file; or several of
    them with commas between, for several brokers. None stands for ``$GENPOOL_BROKER``, and without that for the default
    port on this machine. A connection file may still be to come, if its path has a separator in it or ends in
    ``.json``: no host's name looks so.

    Raises:
        ConfigurationError: says what is wrong with it, or with the key file that ``$GENPOOL_KEYS`` names.
    """
    if broker is not None and not isinstance(cast(object, broker), str):
        raise ConfigurationError(f"a broker's address, or the path of its connection file, is a text: got {broker!r}")
    given = broker or os.environ.get(ENVIRONMENT_VARIABLE) or DEFAULT_ADDRESS
    addresses = [_resolved(one) for one in split(given)]
    twice = [address for at, address in enumerate(addresses) if address in addresses[:at]]
    if twice:
        raise ConfigurationError(f"{given!r} names the broker at {twice[0]} twice: name each once")
    if not all(address.startswith("ipc://") for address in addresses):
        _named_keys()  # now rather than at the first attempt to connect, which is repeated
    return joined(addresses)


def _resolved(given: str) -> str:
    if not given:
        raise ConfigurationError("a broker's address is empty: give tcp://HOST:PORT, HOST:PORT or a connection file")
    if "://" in given:
        return check(given)
    if _HOST_AND_PORT.fullmatch(given):
        return check(f"tcp://{given}")
    path = expanded(given).absolute()
    is_path = os.sep in given or given.endswith(".json")
    if not is_path or _is_there(path):
        read_connection_file(expanded(given))
    return str(path)


def _is_there(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError):
        pass  # no path at all, or one that is not for us: reading it will tell
    return True


def endpoint(address: str) -> str:
    """The ZeroMQ endpoint that ``resolve`` has led to, read from the connection file as it is now.

    Raises:
        ConfigurationError: when there is no such file yet, or it is something else.
    """
    return address if "://" in address else read_connection_file(Path(address)).address


def keys_for(address: str, role: str) -> PeerKeys | None:
    """The keys that a peer of this ``role`` uses with the broker that ``resolve`` has led to; None for none.

    They are those of the file that ``$GENPOOL_KEYS`` names, or else the connection file's. An ``ipc://`` address has
    none: who may open the socket's file is known.

    Raises:
        ConfigurationError: when there is no such file, or it is something else.
    """
    if endpoint(address).startswith("ipc://"):
        return None
    return _named_keys() or (None if "://" in address else read_connection_file(Path(address)).keys.get(role))


def _named_keys() -> PeerKeys | None:
    named = os.environ.get(KEYS)
    if not named:
        return None
    from .keys import read_peer_keys  # who has no keys does without

    return read_peer_keys(expanded(named))


def check(address: str, *, bind: bool = False) -> str:
    """``address`` itself, if ZeroMQ can connect to it (or ``bind`` it).

    Raises:
        ConfigurationError: says what is wrong with it.
    """
    if address.startswith("ipc://"):
        path = address.removeprefix("ipc://")
        if not path or len(path.encode()) > _LONGEST_IPC_PATH:
            raise ConfigurationError(
                f"{address!r} cannot be a broker's address: the path of a socket has 1 to {_LONGEST_IPC_PATH} bytes"
            )
        return address
    match = _HOST_AND_PORT.fullmatch(address.removeprefix("tcp://")) if address.startswith("tcp://") else None
    if match is None or (not bind and "*" in match.groups()):
        forms = "tcp://HOST:PORT or ipc://PATH" if bind else "tcp://HOST:PORT, HOST:PORT or a connection file's path"
        raise ConfigurationError(f"{address!r} is no broker's address: give {forms}")
    # Whoever binds port 0 gets a free one; nobody can connect to it.
    if match["port"] != "*" and not (0 if bind else 1) <= int(match["port"]) <= 65535:
        raise ConfigurationError(f"{address!r} is no broker's address: ports go from 1 to 65535")
    return address


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach ``address``."""
    if address.startswith("ipc://"):
        return True
    host = host_of(address)
    return host == "localhost" or (is_literal(host) and ipaddress.ip_address(host).is_loopback)


def host_of(address: str) -> str:
    """The host of a ``tcp://`` address, an IPv6 one without its brackets."""
    return address.removeprefix("tcp://").rpartition(":")[0].strip("[]")


def is_literal(host: str) -> bool:
    """Whether ``host`` is an IP address, and no name that must be looked up."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def write_connection_file(path: Path, connection: Connection) -> None:
    """Write the file in one step, readable by its owner alone. Raises ConfigurationError."""
    content: dict[str, Any] = {"address": connection.address, "pid": connection.pid}
    if connection.keys:
        content["keys"] = {role: keys.plain() for role, keys in connection.keys.items()}
    write_private(path, json.dumps(content) + "\n", _WHAT)


def read_connection_file(path: Path) -> Connection:
    """What ``genpool broker --connection-file`` wrote.

    Raises:
        ConfigurationError: when there is no such file, or it is something else.
    """
    try:
        content: Any = json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigurationError(
            f"{str(path)!r} is neither an address (tcp://HOST:PORT) nor an existing connection file; "
            f"does `genpool broker --connection-file {path}` run?"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{_WHAT} {str(path)!r} cannot be read: {error}") from None
    said = cast(dict[str, Any], content) if isinstance(content, dict) else {}
    if not isinstance(said.get("address"), str):
        raise ConfigurationError(f"{str(path)!r} is no connection file: it names no address")
    pid = said.get("pid")
    return Connection(check(said["address"]), pid if type(pid) is int else 0, _keys(path, said.get("keys")))


def _keys(path: Path, said: object) -> dict[str, PeerKeys]:
    if not isinstance(said, dict):
        return {}
    from .keys import peer_keys

    refuse_shared(path, _WHAT)
    by_role = cast(dict[str, object], said)
    return {role: peer_keys(one, f"{_WHAT} {str(path)!r}") for role, one in by_role.items()}
