"""The folder that a broker's keys are in: its own, those of peers made beside it, and the list of allowed ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..protocol.errors import ConfigurationError
from ..protocol.keys import KeyPair, PeerKeys, new_pair, read_pair, read_peer_keys, write_keys
from ..protocol.messages import Role
from .access import ADMIN, Permission
from .allowed import read_access, write_access

BROKER_KEY = "broker.key"
ALLOWED = "allowed.toml"
_ENDING = ".key"

# The peers that a new folder has keys for, by their roles.
USUAL = (Role.CLIENT.value, Role.WORKER.value, ADMIN)

# Those that a connection file hands on, so that its path is the whole set-up of an account.
_HANDED_ON = (Role.CLIENT.value, Role.WORKER.value)


def new_keyring(folder: Path) -> list[Path]:
    """Make the folder, with a broker's key and an allowed one for each usual role. Returns the files, the list last.

    Raises:
        ConfigurationError: when it has a broker's key already, or cannot be made.
    """
    if (folder / BROKER_KEY).exists():
        raise ConfigurationError(
            f"{str(folder)!r} has a broker's key already: name the peers to make more keys for, as in "
            f"`genpool keys new {folder} gpu-hosts`, or choose another folder"
        )
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"the folder {str(folder)!r} cannot be made: {error.strerror}") from None
    broker = new_pair()
    permissions: list[Permission] = []
    files = [folder / BROKER_KEY]
    for name in USUAL:
        file, keys = _new_peer(folder, name, broker)
        files.append(file)
        permissions.append(Permission(keys.own.public, name, frozenset([name])))
    write_access(folder / ALLOWED, permissions)
    write_keys(folder / BROKER_KEY, broker)  # last: with it, the folder is whole
    return [*files, folder / ALLOWED]


def new_peers(folder: Path, names: Sequence[str]) -> list[Path]:
    """Keys for more peers of the broker whose folder this is, allowed nothing yet. Returns their files.

    Raises:
        ConfigurationError: when a name is taken, or is no name of a file.
    """
    broker = read_pair(folder / BROKER_KEY)
    for name in names:
        if name != Path(name).name or not name.isprintable() or not name.strip("."):
            raise ConfigurationError(f"{name!r} cannot be a key's name: it becomes the name of a file")
        if (file := folder / f"{name}{_ENDING}").exists():
            raise ConfigurationError(f"{str(file)!r} is there already: choose another name")
    return [_new_peer(folder, name, broker)[0] for name in names]


def _new_peer(folder: Path, name: str, broker: KeyPair) -> tuple[Path, PeerKeys]:
    keys = PeerKeys(new_pair(), broker.public)
    path = folder / f"{name}{_ENDING}"
    write_keys(path, keys)
    return path, keys


def peer_file(folder: Path, name: str) -> Path:
    """Where the key of the peer with this name is, if it was made here."""
    return folder / f"{name.removesuffix(_ENDING)}{_ENDING}"


def key_files(folder: Path) -> list[Path]:
    """All key files in the folder, the broker's first."""
    return sorted(folder.glob(f"*{_ENDING}"), key=lambda path: (path.name != BROKER_KEY, path.name))


def usual_peer_keys(folder: Path) -> dict[str, PeerKeys]:
    """The keys that a connection file hands on: of client and worker, as far as they are here and allowed.

    Raises:
        ConfigurationError: when one of them cannot be used.
    """
    allowed = read_access(folder / ALLOWED).permissions
    files = {role: folder / f"{role}{_ENDING}" for role in _HANDED_ON}
    keys = {role: read_peer_keys(path) for role, path in files.items() if path.exists()}
    return {role: one for role, one in keys.items() if one.own.public in allowed}
