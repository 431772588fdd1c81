"""The list of allowed keys: what it says of hellos, and how a file of it is read, written and followed."""

from __future__ import annotations

import os
import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from genpool.broker.access import OPEN, Access, Permission
from genpool.broker.allowed import AccessFile, add_access, read_access, write_access
from genpool.protocol.errors import ConfigurationError
from genpool.protocol.keys import new_pair
from genpool.protocol.messages import Hello, Role

# Two that ZeroMQ's documentation shows.
KEY = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID"
OTHER = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"
CLIENT = Hello(role=Role.CLIENT)


def worker(llm: str) -> Hello:
    return Hello(role=Role.WORKER, llm=llm)


def access(*roles: str, llms: list[str] | None = None) -> Access:
    return Access({KEY: Permission(KEY, "lab", frozenset(roles), None if llms is None else frozenset(llms))})


@pytest.mark.parametrize(
    ("given", "hello", "sentence"),
    [
        (OPEN, CLIENT, None),
        (OPEN, worker("a"), None),
        (access("client"), CLIENT, None),
        (access("admin"), CLIENT, None),
        (access("worker"), worker("a"), None),
        (access("worker", llms=["a", "b"]), worker("b"), None),
        (access("client", "worker"), worker("a"), None),
        (Access(), CLIENT, "its key is not allowed at this broker (any more)"),
        (access("worker"), CLIENT, "its key (lab) may be worker here, and no client"),
        (access("client", "admin"), worker("a"), "its key (lab) may be admin or client here, and no worker"),
        (access("worker", llms=["b", "a"]), worker("c"), "its key (lab) may serve 'a', 'b' here, and not 'c'"),
        (access("worker", llms=[]), worker("c"), "its key (lab) may serve nothing here, and not 'c'"),
        (access("client"), Hello(role=""), "its key (lab) may be client here, and no "),
    ],
)
def test_what_a_key_may_be(given: Access, hello: Hello, sentence: str | None) -> None:
    assert given.refusal(KEY, hello) == sentence


def test_another_key_may_nothing() -> None:
    assert access("client").refusal(OTHER, CLIENT) is not None
    assert access("client").refusal("", CLIENT) is not None


def test_a_list_is_written_read_and_added_to(tmp_path: Path) -> None:
    path = tmp_path / "allowed.toml"
    first = Permission(KEY, "the lab's „Größte“ \\ 🦙", frozenset(["client", "admin"]))
    second = Permission(OTHER, "gpus", frozenset(["worker"]), frozenset(["a", "b"]))
    write_access(path, [first])
    path.write_text(path.read_text() + "# a note of mine\n")
    add_access(path, second)
    assert read_access(path).permissions == {KEY: first, OTHER: second}
    assert "# a note of mine\n" in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigurationError, match="has this key already, as 'gpus': change that entry"):
        add_access(path, second)


def test_who_adds_to_a_list_at_once_with_others_takes_nothing_away(tmp_path: Path) -> None:
    path = tmp_path / "allowed.toml"
    write_access(path, [])
    added = [Permission(new_pair().public, f"peer {number}", frozenset(["client"])) for number in range(50)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda permission: add_access(path, permission), added))
    assert {*read_access(path).permissions} == {permission.key for permission in added}


def test_a_list_that_is_added_to_stays_where_it_is_with_its_mode(tmp_path: Path) -> None:
    path, link = tmp_path / "allowed.toml", tmp_path / "link.toml"
    write_access(path, [])
    path.chmod(0o640)
    link.symlink_to(path)
    add_access(link, Permission(KEY, "lab", frozenset(["client"])))
    assert [*read_access(path).permissions] == [KEY]
    assert path.stat().st_mode & 0o777 == 0o640


def test_an_entry_that_finds_no_room_on_the_disk_is_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "allowed.toml"
    write_access(path, [])
    before = path.read_text()
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 50, former[1]))
    try:
        with pytest.raises(ConfigurationError, match="cannot be written: No space left on device"):
            add_access(path, Permission(KEY, "lab", frozenset(["client"])))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert path.read_text() == before


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is empty: leave a comment in it to allow nobody"),
        ("\n \n", "is empty: "),
        ("[[allowed]", "is no TOML"),
        ("\x00", "is no TOML"),
        ("keys = 1", r"must have tables \[\[allowed\]\] and nothing else"),
        ("allowed = 1", r"must have tables \[\[allowed\]\] and nothing else"),
        ("allowed = [1]", "entry 1: `key` must be a public key of 40 characters"),
        ('[[allowed]]\nkey = "short"\nroles = ["client"]', "entry 1: `key` must be a public key of 40 characters"),
        (f"[[allowed]]\nkey = {KEY!r}", "entry 1: `roles` must be a list of texts"),
        (f"[[allowed]]\nkey = {KEY!r}\nroles = []", "entry 1: `roles` must be a list of some of client, worker, admin"),
        (f"[[allowed]]\nkey = {KEY!r}\nroles = ['god']", "entry 1: `roles` must be a list of some of client"),
        (f"[[allowed]]\nkey = {KEY!r}\nroles = ['client']\nrole = 1", "entry 1: 'role' is none of key, name, roles"),
        (f"[[allowed]]\nkey = {KEY!r}\nroles = ['worker']\nllms = 'a'", "entry 1: `llms` must be a list of texts"),
        (f"[[allowed]]\nkey = {KEY!r}\nroles = ['client']\n" * 2, "entry 2: this key is there already, as 'entry 1'"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused_with_a_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "allowed.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=sentence) as caught:
        read_access(path)
    assert str(path) in str(caught.value)


def test_a_list_that_others_can_write_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "allowed.toml"
    write_access(path, [])
    path.chmod(0o620)
    with pytest.raises(ConfigurationError, match=f"could let themselves in: run `chmod go-w {path}`$"):
        read_access(path)
    path.chmod(0o644)
    assert read_access(path).permissions == {}


def test_a_list_that_changes_is_followed_and_one_that_breaks_is_not(tmp_path: Path) -> None:
    path = tmp_path / "allowed.toml"
    with pytest.raises(ConfigurationError, match="cannot be read: No such file"):
        AccessFile(path)
    write_access(path, [Permission(KEY, "lab", frozenset(["client"]))])
    file = AccessFile(path)
    assert file.changed() is None
    write_access(path, [Permission(OTHER, "lab", frozenset(["client"]))])
    changed = file.changed()
    assert changed is not None
    assert [*changed.permissions] == [OTHER]
    assert file.changed() is None
    for spoil in (lambda: path.write_text("[["), lambda: path.write_text(""), path.unlink):
        spoil()
        os.utime(path.parent)
        with pytest.raises(ConfigurationError):
            file.changed()
        assert file.changed() is None, "it is said once"
        assert [*file.access.permissions] == [OTHER]
