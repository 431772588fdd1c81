"""The journal's entries as bytes: each with its length and a checksum, so that a torn end is known for one."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import asdict, astuple
from typing import Any, BinaryIO, cast

from ..protocol.content import pack, unpack
from ..protocol.errors import DecodeError
from .standing import Block, Entry, Finished, LostWorker, Made, Standing

_HEAD = struct.Struct(">II")
_FINISHED, _BLOCK, _STANDING = range(3)


def frame(body: bytes) -> bytes:
    """``body`` as it stands in a file."""
    return _HEAD.pack(len(body), zlib.crc32(body)) + body


def bodies(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Every body from where ``file`` is, and where in the file it ends; up to the first that is torn."""
    end = file.tell()
    while len(head := file.read(_HEAD.size)) == _HEAD.size:
        length, crc = _HEAD.unpack(head)
        body = file.read(length)
        if len(body) != length or zlib.crc32(body) != crc:
            return
        end += _HEAD.size + length
        yield body, end


def packed(entry: Entry) -> bytes:
    """An entry's body."""
    match entry:
        case Finished(number, contents, at, draw, plan, answer, attempts):
            return pack([_FINISHED, number, contents, at, draw, plan, answer, attempts])
        case Block():
            return pack([_BLOCK, *astuple(entry)])
        case Standing():
            return pack([_STANDING, standing_fields(entry)])


def unpacked(body: bytes) -> Entry:
    """The entry in a body. Raises DecodeError."""
    try:
        kind, *rest = cast(list[Any], unpack(body))
        match kind:
            case 0:
                number, contents, at, draw, plan, answer, attempts = rest
                plan = [(a, count, d) for a, count, d in plan]
                return Finished(number, contents, at, draw, plan, answer, attempts)
            case 1:
                rows, size, chain, line, errors_size, crc, reason, made = rest
                made = {llm: Made(*one) for llm, one in made.items()}
                return Block(rows, size, chain, line, errors_size, crc, reason, made)
            case 2:
                return standing_of(rest[0])
            case _:
                raise DecodeError(f"an entry of the kind {kind!r}")
    except (TypeError, ValueError, KeyError) as error:
        raise DecodeError(f"an entry that cannot be read: {error}") from None


def standing_fields(standing: Standing) -> dict[str, Any]:
    """A Standing as plain data."""
    return asdict(standing)


def standing_of(fields: dict[str, Any]) -> Standing:
    """The Standing that ``standing_fields`` gave. Raises TypeError and KeyError."""
    made = {llm: Made(**one) for llm, one in fields["made"].items()}
    lost = [LostWorker(**one) for one in fields.get("lost", [])]  # which what an older version wrote has not
    others = {name: value for name, value in fields.items() if name not in ("made", "lost")}
    return Standing(**others, made=made, lost=lost)
