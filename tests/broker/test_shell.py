"""The broker's shell: what a fake ROUTER cannot send, and the real command with peers held by hand."""

from __future__ import annotations

import errno
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import zmq
from fleet import PATIENCE_S, Fleet, until
from wire import Peer, client_hello, worker_hello

from genpool.broker.outgoing import Send
from genpool.broker.peer import Client
from genpool.broker.settings import BrokerSettings
from genpool.broker.shell import ShellSettings, _Loop
from genpool.protocol.address import Connection, read_connection_file, write_connection_file
from genpool.protocol.codec import decode
from genpool.protocol.limits import Limits
from genpool.protocol.messages import (
    Answer,
    Ask,
    Assign,
    Goodbye,
    Hold,
    Message,
    Outcome,
    Ping,
    Refuse,
    Release,
    Reset,
    Result,
    Settle,
    Status,
    Submit,
    SubmitRun,
    Welcome,
)
from genpool.protocol.messages import (
    Fleet as FleetMessage,
)

ROW = b"the row's id 123"


def submit(payload: bytes = b"payload") -> Submit:
    return Submit([SubmitRun("llm", "input", 1, b"", None, False, [ROW], [payload])])


def said(fleet: Fleet, number: int = 0) -> str:
    return (fleet.folder / f"{number}-broker.log").read_text()


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(tmp_path) as fleet:
        yield fleet


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short one, for sockets."""
    with tempfile.TemporaryDirectory(prefix="b-", dir="/tmp") as folder:
        yield Path(folder)


# What cannot be sent, with a ROUTER that does as it is told.


class FakeRouter:
    """Takes messages but for peers that are ``full`` or ``gone``."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, Message]] = []
        self.tried: list[bytes] = []
        self.full: set[bytes] = set()
        self.gone: set[bytes] = set()
        self._frames: list[bytes] = []

    def send(self, frame: bytes, flags: int, copy: bool) -> None:
        assert flags & zmq.NOBLOCK
        assert copy
        if not self._frames:  # as with the real one, the peer's name is what fails
            self.tried.append(frame)
            if frame in self.full:
                raise zmq.Again
            if frame in self.gone:
                raise zmq.ZMQError(errno.EHOSTUNREACH)
        self._frames.append(frame)
        if not flags & zmq.SNDMORE:
            (peer, *rest), self._frames = self._frames, []
            self.sent.append((peer, decode(rest)))


@pytest.fixture
def router() -> FakeRouter:
    return FakeRouter()


@pytest.fixture
def loop(router: FakeRouter) -> Iterator[_Loop]:
    loop = _Loop(cast(Any, router), ShellSettings("tcp://127.0.0.1:*"), BrokerSettings())
    for name in (b"one", b"two"):
        loop._machine.received(name, client_hello(name.decode()), 0.0)
    loop._perform(loop._machine.flush(0.0))
    router.sent.clear()
    router.tried.clear()
    yield loop
    os.close(loop._ear)
    os.close(loop._bell)


def client_of(loop: _Loop, name: bytes) -> Client:
    peer = loop._machine.peers[name]
    assert isinstance(peer, Client)
    return peer


def big(size: int = 10) -> Answer:
    return Answer([ROW], [Outcome.DONE], [0], [b"x" * size])


def test_what_a_full_peer_did_not_take_waits_in_order_and_others_get_theirs(loop: _Loop, router: FakeRouter) -> None:
    router.full.add(b"one")
    loop._perform([Send(b"one", big(1)), Send(b"two", big(2)), Send(b"one", big(3)), Send(b"one", Goodbye("last"))])
    assert router.sent == [(b"two", big(2))]
    assert router.tried == [b"one", b"two"]  # nothing overtakes the first
    assert list(client_of(loop, b"one").outbox) == [big(1), big(3), Goodbye("last")]
    router.full.clear()
    loop._perform(loop._machine.tick(0.01))
    kept = [message for peer, message in router.sent if peer == b"one" and not isinstance(message, Ping)]
    assert kept == [big(1), big(3), Goodbye("last")]
    assert not client_of(loop, b"one").outbox


def test_a_peer_that_is_gone_is_lost_at_the_first_message(loop: _Loop, router: FakeRouter) -> None:
    router.gone.add(b"one")
    loop._perform([Send(b"one", big()), Send(b"one", big()), Send(b"two", big())])
    assert router.sent == [(b"two", big())]
    assert router.tried == [b"one", b"two"]
    assert list(loop._machine.peers) == [b"two"]


def test_any_other_fault_of_the_socket_is_raised(
    loop: _Loop, router: FakeRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(frame: bytes, flags: int, copy: bool) -> None:
        raise zmq.ZMQError(errno.ENOTSOCK)

    monkeypatch.setattr(router, "send", broken)
    with pytest.raises(zmq.ZMQError):
        loop._perform([Send(b"one", big())])


# The real command.


def test_a_row_goes_through_and_its_answer_comes_back(fleet: Fleet) -> None:
    fleet.start_broker()
    with Peer(fleet.address, worker_hello(credit=1)) as worker, Peer(fleet.address, client_hello()) as client:
        worker.send(Hold([], [], [], False))
        payload = b"x" * (3 * Limits().max_frame_bytes)
        client.send(submit(payload))
        (run,) = worker.wait_for(Assign).runs
        assert (run.ids, [*map(bytes, run.payloads)]) == ([ROW], [payload])
        worker.send(Result([run.first_execution], [Outcome.DONE], 0, 2, [payload.upper()]))
        answer = client.wait_for(Answer)
        assert replace(answer, payloads=[]) == Answer([ROW], [Outcome.DONE], [0], [])
        assert [*map(bytes, answer.payloads)] == [payload.upper()]
        client.send(Release([ROW]))
        assert worker.wait_for(Settle).executions == [run.first_execution]


def test_garbage_costs_its_sender_the_connection_and_nobody_else_anything(fleet: Fleet) -> None:
    fleet.start_broker()
    with Peer(fleet.address, client_hello()) as client, Peer(fleet.address, client_hello("other")) as other:
        for frames in ((b"",), (b"?",), (b"P\xc1",), (b"S" + b"\x80",), (b"H", b"", b"x"), (os.urandom(64),) * 3):
            client.send_frames(*frames)
            assert client.wait_for(Reset).reason
        other.send(Ask())
        assert len(other.wait_for(Status).report["clients"]) == 2
    with Peer(fleet.address) as stranger:
        stranger.send_frames(b"?")
        stranger.send(Ask())
        assert stranger.wait_for(Reset).reason == "say hello first"
    assert "client client:1 sent something unusable: a message of the unknown kind b'?'" in said(fleet)


def test_a_peer_that_is_gone_is_noticed_and_clients_are_told(fleet: Fleet) -> None:
    fleet.start_broker()
    with Peer(fleet.address, client_hello()) as client:
        with Peer(fleet.address, worker_hello()):
            client.wait_for(FleetMessage, lambda fleet: any(info.ready for info in fleet.llms))
        told = client.wait_for(FleetMessage, lambda fleet: not any(info.ready for info in fleet.llms))
        assert [info.name for info in told.llms] == ["llm"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_a_goodbye(fleet: Fleet, number: signal.Signals) -> None:
    process = fleet.start_broker()
    with Peer(fleet.address, client_hello()) as client:
        process.send_signal(number)
        assert client.wait_for(Goodbye).reason == "it was stopped"
    assert process.wait(PATIENCE_S) == 0
    assert "Traceback" not in said(fleet)


def test_a_second_signal_ends_it_at_once(fleet: Fleet) -> None:
    process = fleet.start_broker()
    # Both are there when it wakes up; SIGINT, the lower number, is handled first.
    for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
        process.send_signal(number)
    assert process.wait(PATIENCE_S) == 128 + signal.SIGTERM


def test_the_connection_file_is_its_owners_alone_and_removed_at_the_end(fleet: Fleet) -> None:
    process = fleet.start_broker()
    assert stat.S_IMODE(fleet.connection_file.stat().st_mode) == 0o600
    assert read_connection_file(fleet.connection_file) == Connection(fleet.address, process.pid)
    with Peer(fleet.address) as peer:
        peer.send(client_hello())
        assert isinstance(peer.receive(), Welcome)
    process.terminate()
    assert process.wait(PATIENCE_S) == 0
    assert not fleet.connection_file.exists()
    assert [path.name for path in fleet.folder.iterdir()] == ["0-broker.log"]


def test_a_connection_file_that_another_broker_has_taken_over_is_left(fleet: Fleet) -> None:
    process = fleet.start_broker()
    theirs = Connection("tcp://127.0.0.1:1", process.pid + 1)
    write_connection_file(fleet.connection_file, theirs)
    process.terminate()
    assert process.wait(PATIENCE_S) == 0
    assert read_connection_file(fleet.connection_file) == theirs


def test_a_live_ipc_address_is_refused_and_its_broker_goes_on(fleet: Fleet, folder: Path) -> None:
    fleet.address = f"ipc://{folder}/broker"
    first = fleet.start_broker()
    second = fleet.start("broker", "--bind", fleet.address, "--connection-file", str(fleet.connection_file))
    assert second.wait(PATIENCE_S) == 2
    assert f"the broker cannot listen on {fleet.address}: another process listens there" in said(fleet, 1)
    assert read_connection_file(fleet.connection_file).pid == first.pid
    with Peer(fleet.address, client_hello()) as client:
        client.send(Ask())
        assert client.wait_for(Status).report["rows"] == 0
    first.terminate()
    assert first.wait(PATIENCE_S) == 0
    assert list(folder.iterdir()) == []


def test_a_socket_left_by_a_killed_broker_is_taken_over(fleet: Fleet, folder: Path) -> None:
    fleet.address = f"ipc://{folder}/broker"
    first = fleet.start_broker()
    first.kill()
    first.wait()
    assert (folder / "broker").exists()
    fleet.start_broker()
    with Peer(fleet.address, client_hello()) as client:
        client.send(Ask())
        assert client.wait_for(Status)


def test_a_file_that_is_no_socket_is_refused_and_left_alone(fleet: Fleet, folder: Path) -> None:
    path = folder / "broker"
    path.write_text("precious")
    process = fleet.start("broker", "--bind", f"ipc://{path}")
    assert process.wait(PATIENCE_S) == 2
    assert f"the broker cannot listen on ipc://{path}: a file that is no socket stands there" in said(fleet)
    assert path.read_text() == "precious"


def test_a_tcp_port_in_use_is_refused_in_a_sentence(fleet: Fleet) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        process = fleet.start("broker", "--bind", address)
        assert process.wait(PATIENCE_S) == 2
    assert said(fleet) == (
        f"genpool: the broker cannot listen on {address}: another process listens there; "
        "choose another port with --bind, or stop that process\n"
    )


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("ipc:///nonexistent/x", "No such file or directory"),
        ("tcp://192.0.2.1:5555", "Cannot assign requested address"),
    ],
    ids=["a folder that is not there", "another host"],
)
def test_an_address_that_cannot_be_is_refused_with_the_reason_alone(fleet: Fleet, address: str, why: str) -> None:
    assert fleet.start("broker", "--bind", address, "--insecure").wait(PATIENCE_S) == 2
    assert said(fleet).splitlines()[-1] == f"genpool: the broker cannot listen on {address}: {why}"


def start_limited(fleet: Fleet, descriptors: int) -> subprocess.Popen[bytes]:
    """A broker that may have so many files open."""
    host = ["sh", "-c", f'ulimit -n {descriptors} && exec "$@"', "sh"]
    command = ["broker", "--bind", "tcp://127.0.0.1:*", "--connection-file", str(fleet.connection_file)]
    process = fleet.start(*command, host=host)
    until(lambda: fleet.connection_file.exists() or process.poll() is not None, "the broker's start")
    return process


def descriptors(process: subprocess.Popen[bytes]) -> int:
    return len(list(Path(f"/proc/{process.pid}/fd").iterdir()))


def test_a_broker_near_its_limit_on_open_files_turns_peers_away_and_serves_those_that_it_has(fleet: Fleet) -> None:
    broker = start_limited(fleet, 70)  # room for three
    fleet.address = read_connection_file(fleet.connection_file).address
    assert "room for 3 clients and workers" in said(fleet)
    sentence = (
        "this broker has room for 3 clients and workers, and all places are taken: raise the limit on open files that "
        "it is started with (ulimit -n, or LimitNOFILE= in a systemd unit)"
    )
    with Peer(fleet.address, worker_hello(credit=1)) as worker, Peer(fleet.address, client_hello()) as client:
        worker.send(Hold([], [], [], False))
        with Peer(fleet.address, client_hello("leaves")) as leaves:
            full = descriptors(broker)
            tests = {"PYTHONPATH": str(Path(__file__).parents[1])}
            late = fleet.start_worker("late", "--load", "canned:load", environment=tests)
            asks = fleet.start("status", "--broker", fleet.address)
            assert (late.wait(PATIENCE_S), asks.wait(PATIENCE_S)) == (4, 4)
            assert f"refused this worker: {sentence}" in (fleet.folder / "1-worker.log").read_text()
            assert f"refused this client: {sentence}" in (fleet.folder / "2-status.log").read_text()
            until(lambda: descriptors(broker) == full, "the end of the connections of those turned away")
            client.send(submit())
            (run,) = worker.wait_for(Assign).runs
            worker.send(Result([run.first_execution], [Outcome.DONE], 0, 1, [b"answer"]))
            assert client.wait_for(Answer).payloads == [b"answer"]
            leaves.send(Goodbye("done"))
            leaves.send(Ask())
            assert leaves.wait_for(Reset).reason == "say hello first"
        with Peer(fleet.address, client_hello("next")) as another:
            another.send(Ask())
            assert len(another.wait_for(Status).report["clients"]) == 2


def test_a_crowd_many_times_too_large_is_turned_away_to_the_last(fleet: Fleet) -> None:
    start_limited(fleet, 90)
    address = read_connection_file(fleet.connection_file).address
    with ExitStack() as crowd:
        peers = [crowd.enter_context(Peer(address)) for _ in range(60)]
        for number, peer in enumerate(peers):
            peer.send(client_hello(f"client {number}"))
        kinds = Counter(type(peer.receive()) for peer in peers)
    assert kinds == {Welcome: 13, Refuse: 47}


def test_a_limit_on_open_files_that_leaves_no_room_is_told_at_the_start(fleet: Fleet) -> None:
    assert start_limited(fleet, 65).wait(PATIENCE_S) == 2
    assert said(fleet) == (
        "genpool: the limit on open files is 65, which leaves no room for clients and workers: raise it (ulimit -n, "
        "or LimitNOFILE= in a systemd unit)\n"
    )


def test_it_ends_with_its_owner_and_removes_the_folder_of_its_socket(folder: Path) -> None:
    ours, theirs = os.pipe()
    private = folder / "private"
    private.mkdir()
    command = [
        sys.executable,
        "-m",
        "genpool.cli",
        "broker",
        "--bind",
        f"ipc://{private}/broker",
        "--lifeline",
        str(ours),
    ]
    process = subprocess.Popen(command, pass_fds=[ours], stderr=subprocess.DEVNULL)
    os.close(ours)
    try:
        until((private / "broker").exists)
        with Peer(f"ipc://{private}/broker", client_hello()) as client:
            os.write(theirs, b"still here")
            client.send(Ask())
            assert client.wait_for(Status)
            os.close(theirs)
            assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait()
    assert list(folder.iterdir()) == []


def test_the_machine_is_told_of_each_life_of_a_broker(fleet: Fleet) -> None:
    epochs: set[bytes] = set()
    for _ in range(2):
        process = fleet.start_broker()
        with Peer(fleet.address) as peer:
            peer.send(client_hello())
            epochs.add(peer.wait_for(Welcome).epoch)
        process.kill()
        process.wait()
    assert len(epochs) == 2
