"""Frames over real sockets within the process: which of them are copied, and what arrives."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import zmq

from genpool.protocol.content import pack, unpack, unpack_rows
from genpool.protocol.frames import LARGE_BYTES, Frames, in_one_piece
from genpool.protocol.multipart import receive

Socket = zmq.Socket[bytes]


@pytest.fixture
def pair() -> Iterator[tuple[Socket, Socket]]:
    """Two sockets that are connected."""
    with zmq.Context[Socket]() as context, context.socket(zmq.PAIR) as one, context.socket(zmq.PAIR) as other:
        for sock in (one, other):
            sock.setsockopt(zmq.LINGER, 0)
            sock.setsockopt(zmq.RCVTIMEO, 10_000)
        one.bind("inproc://frames")
        other.connect("inproc://frames")
        yield one, other


def test_large_frames_behind_the_first_are_not_copied(pair: tuple[Socket, Socket]) -> None:
    one, other = pair
    message = [b"h" * LARGE_BYTES, b"s" * (LARGE_BYTES - 1), b"l" * LARGE_BYTES, b""]
    one.send_multipart(message)
    frames = receive(other)

    assert [bytes(frame) for frame in frames] == message
    assert [isinstance(frame, bytes) for frame in frames] == [True, True, False, True]


def test_what_was_received_can_be_sent_on_more_than_once(pair: tuple[Socket, Socket]) -> None:
    one, other = pair
    one.send_multipart([b"head", b"a" * LARGE_BYTES, b"b" * LARGE_BYTES])
    payload = Frames(receive(other)[1:])
    for _ in range(2):
        other.send_multipart([b"on", *payload.frames])

        assert one.recv_multipart() == [b"on", b"a" * LARGE_BYTES, b"b" * LARGE_BYTES]
    assert bytes(payload) == b"a" * LARGE_BYTES + b"b" * LARGE_BYTES


def test_only_the_first_frame_may_be_waited_for(pair: tuple[Socket, Socket]) -> None:
    with pytest.raises(zmq.Again):
        receive(pair[0], zmq.NOBLOCK)


def test_a_payload_that_lies_in_one_frame_is_not_copied_to_be_read(pair: tuple[Socket, Socket]) -> None:
    one, other = pair
    one.send_multipart([b"head", b"a" * LARGE_BYTES])
    frame = receive(other)[1]

    assert in_one_piece(Frames([frame])) is frame
    assert in_one_piece(Frames([frame, b"b"])) == b"a" * LARGE_BYTES + b"b"
    assert in_one_piece(b"small") == b"small"


@pytest.mark.parametrize("cut", [LARGE_BYTES, 3 * LARGE_BYTES], ids=["two frames", "one frame"])
def test_a_large_row_is_read_from_its_frames(pair: tuple[Socket, Socket], cut: int) -> None:
    one, other = pair
    row = [{"input": "ä" * LARGE_BYTES, "image": b"\xff" * 10}, 7]
    packed = pack(row)
    one.send_multipart([b"head", *[part for part in (packed[:cut], packed[cut:]) if part]])
    payload = Frames(receive(other)[1:])

    assert unpack(payload) == row
    assert unpack_rows([payload]) == ([row[0]], [7])
