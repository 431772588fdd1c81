"""The list of allowed keys on disk: read, written, added to, and followed when it changes."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import tomllib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from ..protocol.errors import ConfigurationError
from ..protocol.keys import is_key
from ..protocol.private import write_private
from .access import ROLES, Access, Permission

_FIELDS = ("key", "name", "roles", "llms")
_WHAT = "the list of allowed keys"
_OTHERS_WRITE = 0o022
_HEAD = """\
# The keys that may speak to this broker. The broker reads this file again when it changes.
#
# key    the public key, as `genpool keys show` tells it
# name   who that is, for the log
# roles  what it may be: "client", "worker" or "admin"
# llms   for a worker: the names that it may serve; without them, any
"""


class AccessFile:
    """A list of allowed keys on disk, read again when it has changed."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigurationError as ``read_access``."""
        self._path = path
        self._seen = self._stamp()
        self.access = read_access(path)

    def changed(self) -> Access | None:
        """What it says now, if that is something new.

        Raises:
            ConfigurationError: when it cannot be used; what it said before stays in force.
        """
        stamp = self._stamp()
        if stamp == self._seen:
            return None
        self._seen = stamp
        self.access = read_access(self._path)
        return self.access

    def _stamp(self) -> tuple[int, int, int]:
        try:
            status = self._path.stat()
        except OSError:
            return (0, 0, 0)
        return (status.st_mtime_ns, status.st_size, status.st_ino)


def read_access(path: Path) -> Access:
    """The list of allowed keys in a TOML file.

    Raises:
        ConfigurationError: what is wrong, and in which entry.
    """
    try:
        mode, content = path.stat().st_mode, path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{_WHAT} {str(path)!r} cannot be read: {error.strerror}") from None
    if mode & _OTHERS_WRITE:
        raise ConfigurationError(
            f"{_WHAT} {str(path)!r} can be written by others, who could let themselves in: run `chmod go-w {path}`"
        )
    if not content.strip():
        # What writes in place leaves it so for a while, and all peers would have to go.
        raise ConfigurationError(f"{_WHAT} {str(path)!r} is empty: leave a comment in it to allow nobody")
    try:
        said = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{_WHAT} {str(path)!r} is no TOML: {error}") from None
    entries = said.pop("allowed", [])
    if said or not isinstance(entries, list):
        raise ConfigurationError(f"{_WHAT} {str(path)!r} must have tables [[allowed]] and nothing else")
    permissions: dict[str, Permission] = {}
    for number, entry in enumerate(cast(list[Any], entries), 1):
        where = f"{_WHAT} {str(path)!r}, entry {number}"
        permission = _permission(entry, where)
        if permission.key in permissions:
            raise ConfigurationError(f"{where}: this key is there already, as {permissions[permission.key].name!r}")
        permissions[permission.key] = permission
    return Access(permissions)


def write_access(path: Path, permissions: Iterable[Permission]) -> None:
    """Write the list. Raises ConfigurationError."""
    write_private(path, _HEAD + "".join(map(_entry, permissions)), _WHAT)


def add_access(path: Path, permission: Permission) -> None:
    """Append to the list, which keeps its owner, its mode, and what people have written into it.

    Raises:
        ConfigurationError: when the key is there already, or the list cannot be used.
    """
    try:
        with path.open("rb+", buffering=0) as file:
            # Of several at once, each sees what those before it have added.
            with suppress(OSError):  # some file systems have no locks
                fcntl.flock(file, fcntl.LOCK_EX)
            known = read_access(path).permissions.get(permission.key)
            if known is not None:
                raise ConfigurationError(f"{str(path)!r} has this key already, as {known.name!r}: change that entry")
            size, entry = file.seek(0, os.SEEK_END), _entry(permission).encode()
            if file.write(entry) != len(entry):
                file.truncate(size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
    except OSError as error:
        raise ConfigurationError(f"{_WHAT} {str(path)!r} cannot be written: {error.strerror}") from None


def _entry(permission: Permission) -> str:
    # JSON's strings and lists of strings are TOML's, too.
    lines = {"key": permission.key, "name": permission.name, "roles": sorted(permission.roles)}
    if permission.llms is not None:
        lines["llms"] = sorted(permission.llms)
    return "\n[[allowed]]\n" + "".join(
        f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in lines.items()
    )


def _permission(entry: object, where: str) -> Permission:
    said = cast(dict[str, Any], entry) if isinstance(entry, dict) else {}
    unknown = [name for name in said if name not in _FIELDS]
    if unknown:
        raise ConfigurationError(f"{where}: {unknown[0]!r} is none of {', '.join(_FIELDS)}")
    if not is_key(said.get("key")):
        raise ConfigurationError(f"{where}: `key` must be a public key of 40 characters, as `genpool keys show` tells")
    roles = _names(said, "roles", where)
    if not roles or not roles <= {*ROLES}:
        raise ConfigurationError(f"{where}: `roles` must be a list of some of {', '.join(ROLES)}")
    llms = _names(said, "llms", where) if "llms" in said else None
    return Permission(said["key"], str(said.get("name", f"entry {where.rpartition(' ')[2]}")), roles, llms)


def _names(said: Mapping[str, Any], field_name: str, where: str) -> frozenset[str]:
    names = said.get(field_name)
    if not isinstance(names, list) or not all(isinstance(one, str) for one in cast(list[Any], names)):
        raise ConfigurationError(f"{where}: `{field_name}` must be a list of texts")
    return frozenset(cast(list[str], names))
