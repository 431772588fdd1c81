from __future__ import annotations

from pathlib import Path

import pytest

from genpool.protocol.errors import ConfigurationError
from genpool.worker.engines.key import Key, read_key


def test_a_file_goes_before_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", " k1\n")
    (tmp_path / "key").write_text("k2\n")
    assert read_key("MY_KEY", None) == "k1"
    assert read_key("MY_KEY", tmp_path / "key") == "k2"


@pytest.mark.parametrize("value", [None, "", " "])
def test_no_key_is_none(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("MY_KEY", value)
    assert read_key("MY_KEY", None) is None
    assert read_key(None, None) is None
    assert Key("MY_KEY", None, "none").value == "none"


@pytest.mark.parametrize(
    ("content", "sentence"), [(None, "cannot be read"), (b"\n", "is empty"), (b"\xff", "cannot be")]
)
def test_a_file_without_a_key_is_named(tmp_path: Path, content: bytes | None, sentence: str) -> None:
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    with pytest.raises(ConfigurationError, match=f"api_key_file .*key {sentence}"):
        read_key(None, tmp_path / "key")


def test_a_key_may_be_exchanged(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("old")
    key = Key(None, file)
    assert not key.is_new()
    file.write_text("")  # as it is for a moment when somebody writes it
    assert not key.is_new()
    file.write_text("new")
    assert key.is_new()
    assert key.value == "new"


def test_what_stands_for_a_key_is_no_new_one() -> None:
    key = Key("SURELY_NOT_SET", None, "none")
    assert not key.is_new()
    assert key.value == "none"
