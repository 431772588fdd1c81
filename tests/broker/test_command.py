"""``genpool broker``: its options, the environment, and mistakes in either."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import PATIENCE_S, Fleet, until
from wire import Peer, client_hello, worker_hello

from genpool.broker import command
from genpool.broker.settings import BrokerSettings
from genpool.broker.shell import ShellSettings
from genpool.protocol.address import read_connection_file
from genpool.protocol.content import Failure, pack_failure
from genpool.protocol.messages import Answer, Assign, Hold, Outcome, Result, Settle, Submit, SubmitRun

ROW = b"the row's id 123"


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(tmp_path) as fleet:
        yield fleet


def refused(fleet: Fleet, *arguments: str) -> str:
    """What a broker said that would not start."""
    assert fleet.start("broker", *arguments).wait(PATIENCE_S) == 2
    said = (fleet.folder / "0-broker.log").read_text()
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize("host", ["0.0.0.0", "*", "[::]", "192.0.2.1"])
def test_an_address_that_others_reach_is_refused(fleet: Fleet, host: str) -> None:
    assert refused(fleet, "--bind", f"tcp://{host}:*") == (
        f"genpool: tcp://{host}:* can be reached from other machines, and anyone there could use the models. With keys "
        f"only those that you allow can: run `genpool keys new keys`, then `genpool broker --bind 'tcp://{host}:*' "
        "--keys keys`. Or bind tcp://127.0.0.1:PORT, or say --insecure on a network where you trust everyone\n"
    )


def test_an_address_that_is_none_to_listen_on_is_refused(fleet: Fleet) -> None:
    said = refused(fleet, "--bind", "127.0.0.1:5555")
    assert said == "genpool: '127.0.0.1:5555' is no broker's address: give tcp://HOST:PORT or ipc://PATH\n"


def test_the_two_commands_that_it_names_work(fleet: Fleet) -> None:
    keys = fleet.folder / "keys"
    assert fleet.start("keys", "new", str(keys)).wait(PATIENCE_S) == 0
    fleet.address = "tcp://0.0.0.0:*"
    fleet.start_broker("--keys", str(keys))
    assert "--insecure" not in (fleet.folder / "1-broker.log").read_text()


def test_a_socket_in_a_file_takes_no_keys(fleet: Fleet) -> None:
    said = refused(fleet, "--bind", f"ipc://{fleet.folder}/b", "--keys", str(fleet.folder))
    assert "takes no --keys: who may open the socket's file is what guards it" in said


def test_a_folder_without_keys_is_refused(fleet: Fleet) -> None:
    said = refused(fleet, "--bind", "tcp://127.0.0.1:*", "--keys", str(fleet.folder))
    assert said == f"genpool: there is no key file '{fleet.folder}/broker.key': make one with `genpool keys new DIR`\n"


def test_an_address_that_others_reach_is_allowed_when_asked_for_with_a_warning(fleet: Fleet) -> None:
    fleet.address = "tcp://0.0.0.0:*"
    fleet.start_broker("--insecure")
    log = (fleet.folder / "0-broker.log").read_text()
    assert "--insecure: anyone who reaches tcp://0.0.0.0:* can use this broker" in log
    host, _, port = fleet.address.removeprefix("tcp://").rpartition(":")
    assert host == socket.gethostname()
    with Peer(f"tcp://127.0.0.1:{port}", client_hello()) as client:
        assert client.receive()


@pytest.mark.parametrize(
    "address",
    ["nonsense", "127.0.0.1:5555", "tcp://127.0.0.1", "tcp://127.0.0.1:99999", "ipc://", "ipc:///" + "x" * 110],
)
def test_a_bad_address_is_refused(fleet: Fleet, address: str) -> None:
    said = refused(fleet, "--bind", address)
    assert said.startswith(f"genpool: {address!r}")
    assert len(said.splitlines()) == 1


def test_a_connection_file_that_cannot_be_written_is_refused(fleet: Fleet) -> None:
    said = refused(fleet, "--bind", "tcp://127.0.0.1:*", "--connection-file", str(fleet.folder / "no folder" / "file"))
    assert "no folder/file' cannot be written: No such file or directory" in said


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--settle", "-1"),
        ("--client-grace", "soon"),
        ("--worker-grace", "-0.1"),
        ("--heartbeat-timeout", "0"),
        ("--heartbeat-timeout", "100000"),
        ("--max-attempts", "0"),
        ("--max-clients", "0"),
        ("--max-workers", "0"),
        ("--max-rows", "0"),
        ("--max-queued", "0"),
        ("--max-client-rows", "0"),
        ("--max-client-queued", "0"),
        ("--hello-timeout", "0"),
    ],
)
def test_a_number_that_makes_no_sense_is_refused(fleet: Fleet, option: str, value: str) -> None:
    assert f"Invalid value for '{option}'" in refused(fleet, option, value)


def test_a_variable_that_makes_no_sense_is_named(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENPOOL_BROKER_SETTLE", "soon")
    assert "Invalid value for '--settle' (GENPOOL_BROKER_SETTLE): 'soon' is not a valid" in refused(fleet)


def test_every_option_has_an_environment_variable(fleet: Fleet) -> None:
    file = fleet.folder / "connection"
    environment = {
        "GENPOOL_BROKER_BIND": "tcp://127.0.0.1:*",
        "GENPOOL_BROKER_CONNECTION_FILE": str(file),
        "GENPOOL_BROKER_MAX_ATTEMPTS": "1",
        "GENPOOL_BROKER_HEARTBEAT_TIMEOUT": "5",
        "GENPOOL_BROKER": "tcp://127.0.0.1:1",  # for clients and workers; a broker does not bind it
    }
    process = fleet.start("broker", environment=environment)
    until(lambda: file.exists() or process.poll() is not None)
    address = read_connection_file(file).address
    assert attempts_before_a_row_fails(address) == 1


def test_with_http_the_times_of_rows_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str | None, bool]] = []

    def run(shell: ShellSettings, settings: BrokerSettings) -> int:
        asked.append((shell.http, settings.has_row_times))
        return 0

    monkeypatch.setattr(command, "run", run)
    for arguments in ([], ["--http", "127.0.0.1:1"]):
        command.broker.main(arguments, standalone_mode=False)
    assert asked == [(None, False), ("tcp://127.0.0.1:1", True)]


def test_max_attempts_is_how_often_a_row_is_tried(fleet: Fleet) -> None:
    fleet.start_broker("--max-attempts", "2")
    assert attempts_before_a_row_fails(fleet.address) == 2


def attempts_before_a_row_fails(address: str) -> int:
    """How often a row is handed out whose engine raises each time."""
    failure = pack_failure(Failure("OSError", "the engine raised"))
    with Peer(address, worker_hello(credit=9)) as worker, Peer(address, client_hello()) as client:
        worker.send(Hold([], [], [], False))
        client.send(Submit([SubmitRun("llm", "input", 1, b"", None, False, [ROW], [b""])]))
        handed_out, message = 0, worker.wait_for(Assign)
        while isinstance(message, Assign):
            handed_out += 1
            worker.send(Result([message.runs[0].first_execution], [Outcome.RAISED], 0, 9, [failure]))
            worker.wait_for(Settle)
            message = worker.receive()  # the next Assign, which is sent with the Settle, or else a ping
        assert client.wait_for(Answer) == Answer([ROW], [Outcome.FAILED], [handed_out], [failure])
        return handed_out
