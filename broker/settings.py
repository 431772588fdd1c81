"""What can be set on a broker."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from ..protocol.limits import Limits


@dataclass(frozen=True, slots=True)
class BrokerSettings:
    """Times are in seconds.

    Attributes:
        settle_s: after its start the broker keeps rows that were submitted again this long, so that workers can say
            that they hold them already. Longer saves work after a restart, shorter saves time.
        client_grace_s: how long a client may be away before its rows are dropped.
        worker_grace_s: how long a worker whose connection broke may take to come back before its rows go elsewhere.
            Longer than a reconnect takes, so that a cut repeats no work.
        heartbeat_timeout_s: how long a peer may be silent on the network.
        ping_interval_s: how often the broker speaks to each peer and tells how much it counts there.
        max_attempts: how often a row may be charged before it fails.
        max_unread_bytes: a client that has been sent so many bytes of answers and has not said that it has them gets
            no more, and its rows are not handed out, until it reads on. The answers wait at their workers.
        max_peers: how many clients and workers are taken in, those among them that are away and may come back.
        llm_memory_s: how long the name of an LLM that nobody serves and nobody waits for is remembered.
    """

    settle_s: float = 2.0
    client_grace_s: float = 10.0
    worker_grace_s: float = 0.4
    heartbeat_timeout_s: float = 10.0
    ping_interval_s: float = 0.5
    max_attempts: int = 3
    max_unread_bytes: int = 64 * 1024 * 1024
    max_peers: int = sys.maxsize
    llm_memory_s: float = 3600.0
    limits: Limits = Limits()
