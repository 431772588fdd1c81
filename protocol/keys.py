"""Keys of CURVE (Z85 texts of 40 characters): who a peer is, and which broker it trusts.

A key file is JSON, readable by its owner alone. A broker's holds its pair; a peer's holds its own pair and the broker's
public key, so that one file is all that a host needs beside the address.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import zmq
from zmq.utils import z85

from .errors import ConfigurationError
from .private import refuse_shared, write_private

_WHAT = "the key file"


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A public key, which may be told to anyone, and the secret one that belongs to it."""

    public: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class PeerKeys:
    """A peer's own pair, and the public key of the broker that it speaks to."""

    own: KeyPair
    broker: str

    def secure(self, sock: zmq.Socket[bytes]) -> None:
        """Have ``sock`` encrypt, and speak to nobody but that broker. Before it connects."""
        sock.curve_publickey = self.own.public.encode()
        sock.curve_secretkey = self.own.secret.encode()
        sock.curve_serverkey = self.broker.encode()

    def plain(self) -> dict[str, str]:
        """For a file."""
        return {"public": self.own.public, "secret": self.own.secret, "broker": self.broker}


def new_pair() -> KeyPair:
    """A fresh pair.

    Raises:
        ConfigurationError: when this libzmq was built without encryption.
    """
    if not zmq.has("curve"):
        raise ConfigurationError("the installed libzmq cannot encrypt (CURVE): install pyzmq from a wheel")
    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode(), secret.decode())


def is_key(text: object) -> bool:
    """Whether ``text`` is a key."""
    try:
        return isinstance(text, str) and len(text) == 40 and len(z85.decode(text)) == 32
    except (ValueError, KeyError, struct.error):
        return False


def peer_keys(said: object, where: str) -> PeerKeys:
    """The keys of a peer, as ``plain`` gave them.

    Raises:
        ConfigurationError: says what is wrong at ``where``.
    """
    given: Mapping[str, Any] = cast(Mapping[str, Any], said) if isinstance(said, dict) else {}
    pair = _pair(given, where)
    if not is_key(given.get("broker")):
        raise ConfigurationError(f"{where} holds no public key of the broker: is it the broker's own?")
    return PeerKeys(pair, given["broker"])


def read_pair(path: Path) -> KeyPair:
    """The pair in a key file, a broker's or a peer's. Raises ConfigurationError."""
    return _pair(_read(path), _name(path))


def read_peer_keys(path: Path) -> PeerKeys:
    """What a peer's key file holds. Raises ConfigurationError."""
    return peer_keys(_read(path), _name(path))


def write_keys(path: Path, keys: KeyPair | PeerKeys) -> None:
    """Write a key file. Raises ConfigurationError."""
    plain = keys.plain() if isinstance(keys, PeerKeys) else {"public": keys.public, "secret": keys.secret}
    write_private(path, json.dumps(plain) + "\n", _WHAT)


def _pair(said: Mapping[str, Any], where: str) -> KeyPair:
    if not is_key(said.get("public")) or not is_key(said.get("secret")):
        raise ConfigurationError(f"{where} holds no pair of keys: make one with `genpool keys new DIR`")
    return KeyPair(said["public"], said["secret"])


def _read(path: Path) -> Mapping[str, Any]:
    try:
        refuse_shared(path, _WHAT)
        text = path.read_bytes()
    except FileNotFoundError:
        raise ConfigurationError(f"there is no key file {str(path)!r}: make one with `genpool keys new DIR`") from None
    except OSError as error:
        raise ConfigurationError(f"{_name(path)} cannot be read: {error.strerror}") from None
    try:
        content: Any = json.loads(text)
    except (ValueError, RecursionError):  # what it says may quote the secret
        raise ConfigurationError(f"{_name(path)} is no key file: it is not JSON") from None
    return cast(Mapping[str, Any], content) if isinstance(content, dict) else {}


def _name(path: Path) -> str:
    return f"{_WHAT} {str(path)!r}"
