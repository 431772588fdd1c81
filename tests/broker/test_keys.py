"""``genpool keys``: what its commands make, show and refuse."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from genpool.broker.allowed import read_access
from genpool.broker.keyring import usual_peer_keys
from genpool.broker.keys import keys
from genpool.protocol.errors import ConfigurationError
from genpool.protocol.keys import is_key, new_pair, peer_keys, read_pair, read_peer_keys, write_keys


def run(*arguments: object) -> str:
    """What a command prints."""
    result = CliRunner().invoke(keys, [str(one) for one in arguments], catch_exceptions=False, standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run("new", tmp_path / "keys")
    return tmp_path / "keys"


def test_a_new_folder_is_whole_and_nobody_elses(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [
        "admin.key",
        "allowed.toml",
        "broker.key",
        "client.key",
        "worker.key",
    ]
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    broker = read_pair(folder / "broker.key")
    permissions = read_access(folder / "allowed.toml").permissions
    for name in ("client", "worker", "admin"):
        peer = read_peer_keys(folder / f"{name}.key")
        assert peer.broker == broker.public
        assert permissions[peer.own.public].roles == {name}
    assert {*usual_peer_keys(folder)} == {"client", "worker"}


def test_a_folder_with_keys_is_not_overwritten(folder: Path) -> None:
    before = (folder / "broker.key").read_text()
    with pytest.raises(ConfigurationError, match="has a broker's key already"):
        run("new", folder)
    assert (folder / "broker.key").read_text() == before


def test_what_to_do_next_can_be_called_as_it_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "my keys"
    run("new", folder)
    told = CliRunner().invoke(keys, ["new", str(folder), "lab 2"], standalone_mode=False).stderr
    command = told.partition("genpool keys ")[2]
    assert run(*shlex.split(command)) == "lab 2 may be worker\n"


def test_more_peers_are_allowed_by_their_names_or_keys(folder: Path) -> None:
    assert run("new", folder, "gpus", "lab 2").split("\n")[:2] == [str(folder / "gpus.key"), str(folder / "lab 2.key")]
    assert run("allow", folder, "gpus", "--as", "worker", "--llm", "b", "--llm", "a") == "gpus may be worker of a, b\n"
    elsewhere = new_pair().public
    assert run("allow", folder, "--as", "client", "--as", "admin", "--name", "Ada", "--", elsewhere) == (
        "Ada may be admin and client\n"
    )
    shown = run("show", folder)
    assert "gpus.key: worker of a, b\n" in shown
    assert "lab 2.key: not allowed\n" in shown
    assert "broker.key: the broker's\n" in shown
    assert f"{elsewhere}  Ada, whose file is elsewhere: admin and client\n" in shown
    assert run("show", folder / "gpus.key").endswith("gpus.key: worker of a, b\n")
    with pytest.raises(ConfigurationError, match="has this key already, as 'gpus'"):
        run("allow", folder, "gpus", "--as", "client")


def test_secrets_are_never_shown(folder: Path) -> None:
    shown = run("show", folder)
    for path in folder.glob("*.key"):
        keys = read_pair(path)
        assert keys.secret not in shown
        assert keys.secret not in repr(keys)
        assert keys.public in shown
    assert read_pair(folder / "client.key").secret not in repr(read_peer_keys(folder / "client.key"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("new", "FOLDER", "../other"), "cannot be a key's name"),
        (("new", "FOLDER", "a\nb"), "cannot be a key's name"),
        (("new", "FOLDER", ".."), "cannot be a key's name"),
        (("new", "FOLDER", "client"), r"^'[^']*/client\.key' is there already: choose another name"),
        (("allow", "FOLDER", "nobody", "--as", "client"), "there is no key file .*nobody.key"),
        (("allow", "FOLDER", "client", "--as", "client", "--llm", "a"), "--llm is for workers"),
        (("allow", "FOLDER", "client", "--as", "client", "--name", "a\nb"), "cannot be printed"),
        (("show", "FOLDER/none"), "there is no key file"),
        (("show", "FOLDER/.."), "there are no key files"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(folder: Path, arguments: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        run(*(one.replace("FOLDER", str(folder)) for one in arguments))


def test_a_key_file_that_others_can_read_is_refused(folder: Path) -> None:
    path = folder / "worker.key"
    path.chmod(0o640)
    with pytest.raises(ConfigurationError, match=rf"others can read it \(its mode is 0640\): run `chmod 600 {path}`"):
        read_peer_keys(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"public": 1, "secret": 2}', '"s"', "\xff"])
def test_a_file_that_holds_no_keys_is_refused_and_not_quoted(tmp_path: Path, text: str) -> None:
    path = tmp_path / "some.key"
    write_keys(path, new_pair())
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigurationError, match=r"the key file .* (is no key file|holds no pair of keys)"):
        read_pair(path)


def test_a_brokers_file_is_no_peers(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="holds no public key of the broker: is it the broker's own"):
        read_peer_keys(folder / "broker.key")


def test_keys_are_told_from_other_texts() -> None:
    key = new_pair().public
    assert is_key(key)
    for other in ("", key[:39], key + "a", " " + key[1:], "é" + key[1:], "#" * 40, None, 7, key.encode()):
        assert not is_key(other)
    assert peer_keys(json.loads(json.dumps({"public": key, "secret": key, "broker": key})), "here").broker == key
