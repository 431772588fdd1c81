"""The limits of one broker, told to every peer in the welcome and checked by the sender."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

PROTOCOL_VERSION = 1

ROW_ID_BYTES = 16

# The largest number that is carried for a count.
MAX_COUNT = 2**63 - 1

# The most outputs that one row may be asked for. With more, short as they may be, a worker would be busy with lists.
MAX_GENERATIONS = 100_000

# The head is never split over frames, so it bounds how many rows one message may name. 4096 ids are 64 KiB.
MAX_ROWS_PER_MESSAGE = 4096

# Three years: the longest that a timer of the operating system surely takes.
LONGEST_S = 1e8

# Names (of LLMs, models, hosts, options), and reasons. Hello has several, a task's description among them, and what it
# says goes on to all clients: so it is bounded as a whole too.
MAX_NAME_BYTES = 1024
MAX_REASON_BYTES = 4096
MAX_HELLO_BYTES = 32 * 1024

# Options travel in the head too, once for each run of rows in a message.
MAX_OPTIONS_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """How large things may be. All sizes are in bytes.

    Attributes:
        max_frame_bytes: a body is cut into frames of at most this size. A ZeroMQ heartbeat waits behind the frame
            that is being sent, so this must stay below three quarters of the heartbeat timeout times the slowest
            link (7.5 s at 70 kB/s here); smaller frames cost a little more work for large rows.
        target_message_bytes: a sender closes a message when its rows and their options pass this; a single longer row
            still goes, and rows that go into one engine call, up to ``max_row_bytes`` in all.
        max_row_bytes: the longest row or answer that is carried.
        max_rows: the most rows in one message.
        max_client_rows, max_client_bytes: how many rows a client may have at the broker, and how many bytes they may
            have in all, with the options of each. The broker takes no row beyond that, and says so (Busy).
    """

    max_frame_bytes: int = 512 * 1024
    target_message_bytes: int = 1024 * 1024
    max_row_bytes: int = 64 * 1024 * 1024
    max_rows: int = 1024
    max_client_rows: int = 100_000
    max_client_bytes: int = 512 * 1024 * 1024

    def cut(self, sizes: Sequence[int]) -> Iterator[slice]:
        """How rows of so many bytes each are cut into messages: as many into each, in order, as it may have."""
        if len(sizes) <= self.max_rows and sum(sizes) <= self.target_message_bytes:
            yield slice(len(sizes))
            return
        start = total = 0
        for number, size in enumerate(sizes):
            if number > start and (total + size > self.target_message_bytes or number - start >= self.max_rows):
                yield slice(start, number)
                start, total = number, 0
            total += size
        yield slice(start, len(sizes))
