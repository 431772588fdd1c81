from __future__ import annotations

import pytest

from genpool.broker.settings import BrokerSettings
from genpool.protocol.limits import Limits

# The slowest link that the timeouts are meant for.
_SLOWEST_BYTES_PER_S = 70_000


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], [[]]),
        ([100], [[100]]),
        ([10, 20, 20], [[10, 20, 20]]),
        ([10, 20, 21], [[10, 20], [21]]),
        ([60, 1, 60, 60], [[60], [1], [60], [60]]),
        ([0] * 7, [[0, 0, 0], [0, 0, 0], [0]]),
        ([50, 0, 0, 1], [[50, 0, 0], [1]]),
    ],
    ids=str,
)
def test_rows_are_cut_into_messages_in_their_order(sizes: list[int], expected: list[list[int]]) -> None:
    limits = Limits(target_message_bytes=50, max_rows=3)
    assert [sizes[part] for part in limits.cut(sizes)] == expected


def test_a_frame_passes_the_slowest_link_while_libzmq_waits_for_a_heartbeat() -> None:
    heartbeat_s = 0.75 * BrokerSettings().heartbeat_timeout_s
    assert Limits().max_frame_bytes / _SLOWEST_BYTES_PER_S < heartbeat_s
