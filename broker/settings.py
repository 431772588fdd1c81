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
        max_rows, max_bytes: how many rows of all clients are kept, and how many bytes they may have in all. What a
            single client may have there is in ``limits``.
        max_clients, max_workers, max_peers: how many clients, workers, and of both together are taken in, those among
            them that are away and may come back.
        max_llms: how many names of LLMs that workers have announced are known at once, and how many that only rows
            have: clients may name what they like. What is told of all announced ones must fit into a message.
        hello_timeout_s: how long a connection may stay that is no client's or worker's, or is none any more.
        max_malformed: so many unusable messages a minute are borne from a connection, and as many at once.
        shut_out_s: how long a process is kept out that has sent more.
        llm_memory_s: how long the name of an LLM that nobody serves and nobody waits for is remembered.
        has_row_times: whether histograms of how long rows wait and run are kept, which takes a moment for each row.
    """

    settle_s: float = 2.0
    client_grace_s: float = 10.0
    worker_grace_s: float = 0.4
    heartbeat_timeout_s: float = 10.0
    ping_interval_s: float = 0.5
    max_attempts: int = 3
    max_unread_bytes: int = 64 * 1024 * 1024
    max_rows: int = 2_000_000
    max_bytes: int = 4 * 1024 * 1024 * 1024
    max_clients: int = sys.maxsize
    max_workers: int = sys.maxsize
    max_peers: int = sys.maxsize
    max_llms: int = 1000
    hello_timeout_s: float = 10.0
    max_malformed: int = 10
    shut_out_s: float = 60.0
    llm_memory_s: float = 3600.0
    has_row_times: bool = False
    limits: Limits = Limits()
