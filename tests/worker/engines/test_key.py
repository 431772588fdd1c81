from __future__ import annotations

from pathlib import Path

import pytest
from written import written

from genpool.protocol.errors import ConfigurationError
from genpool.worker.engines.key import Key, read_key
from genpool.worker.secret import redacted


def test_a_file_goes_before_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", " k1\n")
    written(tmp_path / "key", "k2\n")
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
        written(tmp_path / "key", "").write_bytes(content)
    with pytest.raises(ConfigurationError, match=f"api_key_file .*key {sentence}"):
        read_key(None, tmp_path / "key")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_a_file_of_ours_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    file = written(tmp_path / "key", "sk-1")
    file.chmod(mode)
    with pytest.raises(ConfigurationError, match=r"others can read it \(.*\): run `chmod 600 .*key`") as raised:
        read_key(None, file)
    assert "sk-1" not in str(raised.value)


def test_a_file_of_another_user_is_theirs_to_protect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As secrets are that Docker and Kubernetes mount."""
    file = written(tmp_path / "key", "k")
    file.chmod(0o644)
    monkeypatch.setattr("os.geteuid", lambda: file.stat().st_uid + 1)
    assert read_key(None, file) == "k"


@pytest.mark.parametrize("name", ["sk-proj-1", "gsk_abcdef", "KEY=1", ""])
def test_a_key_in_the_place_of_its_variables_name_is_not_repeated(name: str) -> None:
    if not name:
        assert read_key(name, None) is None
        return
    with pytest.raises(ConfigurationError, match="api_key_env must be the name of an environment variable") as raised:
        read_key(name, None)
    assert name not in str(raised.value)


@pytest.mark.parametrize(
    "content",
    ["sk-aaaaaaaa\nsk-bbbbbbbb", "\ufeffsk-aaaaaaaa", "\u201csk-aaaaaaaa\u201d", "sk-aaaaaaaa\x1b"],
    ids=["two lines", "a mark of its encoding", "a word processor's quotes", "a control character"],
)
def test_what_no_request_can_carry_is_no_key_and_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setenv("MY_KEY", content)
    file = written(tmp_path / "key", content)
    for env, path, where in (("MY_KEY", None, "the environment variable MY_KEY"), (None, file, "api_key_file .*key")):
        with pytest.raises(ConfigurationError, match=f"{where} has a line break or another character") as raised:
            read_key(env, path)
        assert "aaaaaaaa" not in str(raised.value)


def test_a_key_is_not_repeated_once_it_was_read(tmp_path: Path) -> None:
    read_key(None, written(tmp_path / "key", "sk-proj-0123456789\n"))
    assert redacted("no sk-proj-0123456789") == "no [secret]"


def test_a_key_may_be_exchanged(tmp_path: Path) -> None:
    file = written(tmp_path / "key", "old")
    key = Key(None, file)
    assert not key.is_another_than("old")
    file.write_text("")  # as it is for a moment when somebody writes it
    assert not key.is_another_than("old")
    file.write_text("new")
    assert key.is_another_than("old")
    assert key.value == "new"
    # So it is for every request that was made with the former one, whichever asks first.
    assert key.is_another_than("old")
    assert not key.is_another_than("new")


def test_what_stands_for_a_key_is_no_other_one() -> None:
    key = Key("SURELY_NOT_SET", None, "none")
    assert not key.is_another_than("none")
    assert key.value == "none"
