from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from genpool.protocol.address import (
    DEFAULT_ADDRESS,
    ENVIRONMENT_VARIABLE,
    Connection,
    check,
    endpoint,
    host_of,
    is_literal,
    is_loopback,
    read_connection_file,
    resolve,
    write_connection_file,
)
from genpool.protocol.brokers import split
from genpool.protocol.errors import ConfigurationError


@pytest.fixture(autouse=True)
def no_broker_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)


# What a user may give.


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("tcp://gpu1:5555", "tcp://gpu1:5555"),
        ("gpu1:5555", "tcp://gpu1:5555"),
        ("10.0.0.7:1", "tcp://10.0.0.7:1"),
        ("node-1.cluster_a.example:65535", "tcp://node-1.cluster_a.example:65535"),
        ("[::1]:5555", "tcp://[::1]:5555"),
        ("tcp://[fe80::1%25]:5555", "tcp://[fe80::1%25]:5555"),
        ("ipc:///run/genpool/broker.sock", "ipc:///run/genpool/broker.sock"),
    ],
)
def test_an_address_is_a_url_or_a_host_and_a_port(given: str, address: str) -> None:
    assert resolve(given) == address


def test_without_an_address_it_is_the_default() -> None:
    assert resolve(None) == DEFAULT_ADDRESS
    assert resolve("") == DEFAULT_ADDRESS


def test_the_environment_names_the_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "gpu1:7000")

    assert resolve(None) == "tcp://gpu1:7000"
    assert resolve("gpu2:7000") == "tcp://gpu2:7000"


def test_a_connection_file_stands_for_its_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "broker.json"
    write_connection_file(path, Connection("tcp://gpu1:5555", 42))
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(path))

    assert resolve(str(path)) == resolve(None) == str(path)
    assert endpoint(str(path)) == "tcp://gpu1:5555"
    assert endpoint("tcp://gpu2:5555") == "tcp://gpu2:5555"


def test_several_brokers_have_commas_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, f"gpu1:5555, tcp://gpu2:5555,{tmp_path}/b.json")

    assert resolve(None) == f"tcp://gpu1:5555,tcp://gpu2:5555,{tmp_path}/b.json"
    assert split(resolve(None)) == ["tcp://gpu1:5555", "tcp://gpu2:5555", f"{tmp_path}/b.json"]


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("gpu1:5555,", "a broker's address is empty"),
        (",", "a broker's address is empty"),
        ("gpu1:5555,tcp://gpu1:5555", "names the broker at tcp://gpu1:5555 twice"),
        ("gpu1:5555,gpu2", "is neither an address"),
        ("gpu1:5555,tcp://gpu2", "give tcp://HOST:PORT"),
    ],
    ids=["end", "comma", "twice", "no port", "bad"],
)
def test_each_of_several_brokers_must_have_an_address(given: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        resolve(given)


def test_a_connection_file_may_be_to_come_and_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run" / "broker.json"

    assert resolve("run/broker.json") == str(path)
    assert resolve("broker.json") == str(tmp_path / "broker.json")
    with pytest.raises(ConfigurationError, match="nor an existing connection file"):
        endpoint(str(path))
    path.parent.mkdir()
    write_connection_file(path, Connection("tcp://gpu1:5555"))
    assert endpoint(str(path)) == "tcp://gpu1:5555"
    write_connection_file(path, Connection("tcp://gpu1:6666"))
    assert endpoint(str(path)) == "tcp://gpu1:6666"


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        ("tcp://", "give tcp://HOST:PORT"),
        ("tcp://gpu1", "give tcp://HOST:PORT"),
        ("tcp://gpu1:", "give tcp://HOST:PORT"),
        ("tcp://gpu1:http", "give tcp://HOST:PORT"),
        ("tcp://gpu1:-1", "give tcp://HOST:PORT"),
        ("tcp://gpu 1:5555", "give tcp://HOST:PORT"),
        ("tcp://gpu1:5555/path", "give tcp://HOST:PORT"),
        ("tcp://::1:5555", "give tcp://HOST:PORT"),
        ("tcp://gpu1:५५५५", "give tcp://HOST:PORT"),
        ("tcp://*:5555", "give tcp://HOST:PORT"),
        ("tcp://gpu1:*", "give tcp://HOST:PORT"),
        ("tcp://gpu1:0", "ports go from 1 to 65535"),
        ("tcp://gpu1:65536", "ports go from 1 to 65535"),
        ("ipc://", "the path of a socket has 1 to 107 bytes"),
        ("ipc://" + "a" * 108, "the path of a socket has 1 to 107 bytes"),
        ("ipc://" + "ä" * 54, "the path of a socket has 1 to 107 bytes"),
        ("http://gpu1:5555", "give tcp://HOST:PORT"),
        ("gpu1", "nor an existing connection file"),
        ("::1:5555", "nor an existing connection file"),
        ("broker\0.json", "cannot be read"),
    ],
)
def test_anything_else_is_an_error_that_says_what_to_give(address: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        resolve(address)

    assert complaint in str(caught.value)
    assert repr(address) in str(caught.value)


@pytest.mark.parametrize("broker", [Path("run/broker.json"), b"gpu1:5555", 5555], ids=["path", "bytes", "port"])
def test_an_address_is_a_text(broker: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        resolve(broker)

    assert f"is a text: got {broker!r}" in str(caught.value)


# What a broker may bind.


@pytest.mark.parametrize(
    "address", ["tcp://*:5555", "tcp://127.0.0.1:*", "tcp://127.0.0.1:0", "tcp://[::]:5555", "ipc://" + "a" * 107]
)
def test_a_broker_may_bind_any_interface_and_any_free_port(address: str) -> None:
    assert check(address, bind=True) == address


@pytest.mark.parametrize("address", ["gpu1:5555", "tcp://gpu1:70000", "/run/broker.sock", "tcp://**:1", ""])
def test_what_cannot_be_bound_is_an_error(address: str) -> None:
    with pytest.raises(ConfigurationError, match="broker's address"):
        check(address, bind=True)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("tcp://127.0.0.1:5555", True),
        ("tcp://127.1.2.3:*", True),
        ("tcp://[::1]:5555", True),
        ("tcp://localhost:5555", True),
        ("ipc:///tmp/broker", True),
        ("tcp://*:5555", False),
        ("tcp://0.0.0.0:5555", False),
        ("tcp://[::]:5555", False),
        ("tcp://10.0.0.1:5555", False),
        ("tcp://gpu1:5555", False),
        ("tcp://127.example.org:5555", False),
    ],
)
def test_only_this_machine_reaches_a_loopback_address(address: str, expected: bool) -> None:
    assert is_loopback(address) is expected


@pytest.mark.parametrize(
    ("address", "host", "literal"),
    [
        ("tcp://gpu1:5555", "gpu1", False),
        ("tcp://10.0.0.1:5555", "10.0.0.1", True),
        ("tcp://[fe80::1%eth0]:5555", "fe80::1%eth0", True),
        ("tcp://300.0.0.1:5555", "300.0.0.1", False),
    ],
)
def test_the_host_of_an_address(address: str, host: str, literal: bool) -> None:
    assert host_of(address) == host
    assert is_literal(host) is literal


# Connection files.


def test_a_connection_file_is_written_whole_and_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "broker.json"
    path.write_text("an older one")
    path.chmod(0o644)

    write_connection_file(path, Connection("tcp://127.0.0.1:7000", 42))

    assert json.loads(path.read_text()) == {"address": "tcp://127.0.0.1:7000", "pid": 42}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]
    assert read_connection_file(path) == Connection("tcp://127.0.0.1:7000", 42)


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "none" / "broker.json"

    with pytest.raises(ConfigurationError, match=r"broker\.json' cannot be written: No such file or directory"):
        write_connection_file(path, Connection("tcp://127.0.0.1:7000"))


def test_a_file_that_cannot_be_replaced_leaves_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "broker.json"
    path.mkdir()

    with pytest.raises(ConfigurationError, match="cannot be written: Is a directory"):
        write_connection_file(path, Connection("tcp://127.0.0.1:7000"))

    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(ConfigurationError, match="pipe' cannot be written: what is there is no file"):
        write_connection_file(path, Connection("tcp://127.0.0.1:7000"))
    assert path.is_fifo()
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_not_there_is_an_error_that_says_who_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "broker.json"

    with pytest.raises(ConfigurationError, match=f"does `genpool broker --connection-file {path}` run"):
        endpoint(str(path))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "cannot be read: Expecting value"),
        ("tcp://gpu1:5555", "cannot be read: Expecting value"),
        ('{"address": "tcp://gpu1', "cannot be read: Unterminated string"),
        ("[]", "is no connection file: it names no address"),
        ("{}", "is no connection file: it names no address"),
        ('{"address": 5555}', "is no connection file: it names no address"),
        ('{"address": "gpu1"}', "'gpu1' is no broker's address"),
        ('{"address": "tcp://*:5555"}', "is no broker's address"),
    ],
)
def test_a_file_that_is_something_else_is_an_error(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "broker.json"
    path.write_text(text)

    with pytest.raises(ConfigurationError) as caught:
        read_connection_file(path)

    assert complaint in str(caught.value)


def test_a_file_of_bytes_and_a_folder_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "broker.json"
    path.write_bytes(b"\xff\xfe")

    for wrong in (path, tmp_path):
        with pytest.raises(ConfigurationError, match="cannot be read"):
            read_connection_file(wrong)


@pytest.mark.parametrize("pid", ['"42"', "null", "[1]", "1.5", "true"])
def test_a_pid_that_is_no_number_is_none(tmp_path: Path, pid: str) -> None:
    path = tmp_path / "broker.json"
    path.write_text(f'{{"address": "tcp://gpu1:5555", "pid": {pid}}}')

    assert read_connection_file(path) == Connection("tcp://gpu1:5555", 0)
