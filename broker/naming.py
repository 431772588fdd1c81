"""Peers as people name them: HOST:PID, a process id that nobody else has, or a worker's host."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from ..protocol.messages import PeerInfo
from .peer import Client, Peer, Worker

P = TypeVar("P", Client, Worker)

# So many names stand in a sentence.
_MOST_NAMES = 20


def name_of(peer: Peer) -> str:
    """HOST:PID. Two connections of one process have the same."""
    return f"{peer.hello.host}:{peer.hello.pid}"


def info_of(peer: Client | Worker) -> PeerInfo:
    """What whoever dismisses it is told of it."""
    hello, rows = peer.hello, peer.running if isinstance(peer, Worker) else len(peer.rows)
    return PeerInfo(hello.host, hello.pid, hello.llm, rows)


def find(name: str, what: str, peers: Iterable[P], of: str = "") -> list[P] | str:
    """Which of ``peers`` go by ``name``; or why it is none, in a sentence that calls one of them ``what``.

    ``of`` is the LLM whose workers they are, where they are not all.
    """
    owner = f" of {of!r}" if of else ""
    known = list(peers)
    if found := [peer for peer in known if name_of(peer) == name]:
        return found
    if found := [peer for peer in known if isinstance(peer, Worker) and peer.hello.host == name]:
        return found
    found = [peer for peer in known if str(peer.hello.pid) == name]
    if len({name_of(peer) for peer in found}) > 1:
        return f"{name} is the process id of {_names(found)}: name one of them as HOST:PID"
    others = f"there are {_names(known)}" if known else f"there is none{owner} at all"
    return found or f"there is no {what} {name!r}{owner}; {others}"


def _names(peers: Iterable[Peer]) -> str:
    names = sorted({name_of(peer) for peer in peers})
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more
