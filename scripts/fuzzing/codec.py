"""Target: frames as a peer may send them. What decodes can be passed on, and arrives as it was."""

from __future__ import annotations

from genpool.protocol.codec import decode, encode
from genpool.protocol.errors import DecodeError

from .choices import Choices
from .garbage import MAKERS, Vocabulary, spoiled

_FRAME_BYTES = 100


def check(data: bytes) -> None:
    choices = Choices(data)
    for frames in _received(choices):
        try:
            message = decode(frames)
        except DecodeError:
            continue
        sent = encode(message, _FRAME_BYTES)
        again = decode(sent)
        assert type(again) is type(message)
        # Not the messages: a report may hold a number that is not equal to itself.
        assert [bytes(frame) for frame in encode(again, _FRAME_BYTES)] == [bytes(frame) for frame in sent]


def _received(choices: Choices) -> list[list[bytes]]:
    match choices.below(4):
        case 0:
            return [[choices.rest()]]
        case 1:
            body = choices.blob()
            return [[choices.rest(), body[:3], body[3:]]]
        case 2:
            return [[choices.blob() for _ in range(4)]]
        case _:
            words, kinds = Vocabulary(), tuple(MAKERS)
            return [spoiled(choices, words, kinds) for _ in range(1 + choices.below(4))]
