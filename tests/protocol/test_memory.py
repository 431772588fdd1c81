from __future__ import annotations

import ctypes
import platform

import pytest

from genpool.protocol.memory import keep_freed_memory


class CLibrary:
    """What an extension sees of a C library, with the functions that are given."""

    def __init__(self, **functions: object) -> None:
        vars(self).update(functions)


def test_glibc_is_told_what_to_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []

    def mallopt(parameter: int, value: int) -> int:
        told.append((parameter, value))
        return 1

    monkeypatch.setattr(ctypes, "CDLL", lambda _: CLibrary(mallopt=mallopt))
    assert keep_freed_memory()
    assert told == [(-3, 32 * 1024 * 1024), (-1, 64 * 1024 * 1024)]


def test_another_c_library_goes_on_as_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: CLibrary())
    assert not keep_freed_memory()


def test_this_c_library_takes_what_it_is_told() -> None:
    assert keep_freed_memory() is (platform.libc_ver()[0] == "glibc")
