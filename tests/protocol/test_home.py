"""Paths below a home folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from genpool.protocol.address import resolve
from genpool.protocol.home import expanded


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("~/a/b", "/home/me/a/b"),
        ("a/~", "a/~"),
        ("~nobody-of-that-name/a", "~nobody-of-that-name/a"),
        ("~\0/a", "~\0/a"),
    ],
    ids=["mine", "in the midst", "nobody's", "no name"],
)
def test_the_home_folder_is_where_there_is_one(monkeypatch: pytest.MonkeyPatch, given: str, path: str) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert expanded(given) == Path(path)


def test_a_connection_file_may_be_below_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/broker.json") == str(tmp_path / "broker.json")
