"""The bytes of an input: a file, a pipe or standard input, packed by gzip or not."""

from __future__ import annotations

import io
import os
import sys
import zlib
from collections.abc import Iterator
from io import RawIOBase

from ...protocol.errors import ConfigurationError
from .base import STANDARD_STREAM

_PIECE_BYTES = 1 << 16
_GZIP = zlib.MAX_WBITS | 16


class CutOff(ValueError):
    """Raised where packed bytes end too early or are damaged, after all that was whole; the text says which."""


class ByteFile:
    """A file, a pipe, or standard input.

    Args:
        path: ``-`` is standard input.
        is_read_twice: keeps in memory what can be read only once, so that ``rewind`` works.
        is_gzip: whether to unpack it.

    Raises:
        ConfigurationError: when it cannot be read.
    """

    def __init__(self, path: str, *, is_read_twice: bool = False, is_gzip: bool = False) -> None:
        self.name = "standard input" if path == STANDARD_STREAM else path
        self._is_gzip = is_gzip
        is_standard = path == STANDARD_STREAM
        if is_standard and sys.stdin is None:  # pyright: ignore[reportUnnecessaryComparison]
            raise ConfigurationError("the input cannot be read: standard input is closed")
        try:
            # Without Python's buffer: a thread that waits for a line in it would hold up whoever closes the file.
            self._file: RawIOBase | io.BytesIO = io.FileIO(0 if is_standard else path, closefd=not is_standard)
            self._stat = os.fstat(self._file.fileno())
            if is_read_twice and not self._file.seekable():
                with self._file as pipe:
                    self._file = io.BytesIO(b"".join(_pieces(pipe)))
            self._start = self._file.tell() if self._file.seekable() else 0
        except OSError as error:
            raise ConfigurationError(f"the input {self.name} cannot be read: {error.strerror}") from None

    @property
    def is_seekable(self) -> bool:
        """Whether ``rewind`` works."""
        return self._file.seekable()

    def close(self) -> None:
        self._file.close()

    def is_at(self, found: os.stat_result) -> bool:
        """Whether ``found`` is this file."""
        return os.path.samestat(found, self._stat)

    def rewind(self) -> None:
        """Go back to where it began."""
        self._file.seek(self._start)

    def lines(self) -> Iterator[bytes]:
        """The bytes of each line with its line feed, as soon as it is whole; the last may have none.

        Raises:
            CutOff: after the last line that is whole, when packed bytes are damaged.
        """
        pieces = _pieces(self._file)
        begun: list[bytes] = []
        for piece in _unpacked(pieces) if self._is_gzip else pieces:
            *whole, rest = piece.split(b"\n")
            for line in whole:
                yield b"".join((*begun, line, b"\n"))
                begun.clear()
            begun.append(rest)
        if any(begun):
            yield b"".join(begun)


def _pieces(file: RawIOBase | io.BytesIO) -> Iterator[bytes]:
    """All of a file, in pieces as they come."""
    while piece := file.read(_PIECE_BYTES):
        yield piece


def _unpacked(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The contents of gzip members, one after the other. Raises CutOff."""
    member = zlib.decompressobj(_GZIP)
    is_begun = False
    for piece in pieces:
        while piece := piece.lstrip(b"\0") if not is_begun else piece:
            try:
                unpacked = member.decompress(piece, _PIECE_BYTES)
            except zlib.error as error:
                raise CutOff(_damage(error)) from None
            is_begun = True
            if unpacked:
                yield unpacked
            piece = member.unconsumed_tail
            if member.eof:
                piece, member, is_begun = member.unused_data, zlib.decompressobj(_GZIP), False
    if is_begun:
        raise CutOff("the gzip data end too early: the file is cut off")


def _damage(error: zlib.error) -> str:
    if "incorrect header check" in str(error):
        return "this is no gzip data"
    return f"the gzip data are damaged ({error})"
