"""Peers that do what no genpool does, over real sockets, beside others that must not notice."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import zmq
from fleet import PATIENCE_S, Fleet, until
from noted import environment
from wire import Peer, client_hello, worker_hello

from genpool import ProcessLLM
from genpool.broker.settings import BrokerSettings
from genpool.protocol.address import read_connection_file
from genpool.protocol.messages import Await, Busy, Goodbye, Ping, Refuse, Release, Reset, Submit, SubmitRun, Welcome

HELLO_S = "0.5"
MEBI = 1 << 20


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(tmp_path) as fleet:
        yield fleet


def serve(fleet: Fleet, *arguments: str) -> None:
    """A broker and a worker of the LLM ``noted``."""
    fleet.start_broker(*arguments)
    fleet.start_worker("noted", "--load", "noted:load", environment=environment(fleet.folder, concurrency=2))
    fleet.wait_for(lambda report: any(llm["capacity"] for llm in report["llms"]))


def work(fleet: Fleet, name: str, rows: int = 50) -> None:
    """Have a client's rows done."""
    llm = ProcessLLM.connect("noted", broker=fleet.address)
    try:
        outputs = llm.generate([{"input": f"quick {name}{number}"} for number in range(rows)], timeout=50).result()
    finally:
        llm.teardown()
    assert len(outputs) == rows


def tcp(fleet: Fleet) -> socket.socket:
    host, _, port = fleet.address.removeprefix("tcp://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE_S)


def is_ended(sock: socket.socket) -> bool:
    """Whether the broker ends the connection: what it says before that is dropped."""
    try:
        while sock.recv(4096):
            pass
    except ConnectionResetError:
        pass
    return True


def broken(peer: Peer) -> zmq.Socket[bytes]:
    """Becomes readable when the peer's connection breaks."""
    return peer.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)


def said(fleet: Fleet) -> str:
    return (fleet.folder / "0-broker.log").read_text()


def rss(fleet: Fleet) -> int:
    lines = Path(f"/proc/{fleet.processes[0].pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def wait_for(peer: Peer, monitor: zmq.Socket[bytes]) -> None:
    assert monitor.poll(int(PATIENCE_S * 1000)), "the connection stays"
    peer.socket.disable_monitor()
    monitor.close()


# An id that is not its own.


def test_the_next_routing_id_of_the_broker_cannot_be_guessed(fleet: Fleet) -> None:
    """With the first ones taken that libzmq gives where nobody has seeded it, the next connection would end it."""
    serve(fleet)
    first = struct.unpack(">I", b"\x6b\x8b\x45\x67")[0]
    with ExitStack() as stack:
        for number in range(20):
            routing_id = b"\0" + struct.pack(">I", first + number)
            stack.enter_context(Peer(fleet.address, client_hello(f"thief{number}"), routing_id=routing_id))
        for number in range(20):
            stack.enter_context(Peer(fleet.address, client_hello(f"other{number}")))
        work(fleet, "beside")


def test_strangers_that_come_and_go_have_nobody_pinged(fleet: Fleet) -> None:
    fleet.start_broker()
    with Peer(fleet.address, client_hello()) as peer:
        peer.wait_for(Ping)
        began = time.monotonic()
        strangers = pings = 0
        while time.monotonic() < began + 3.0:
            tcp(fleet).close()
            strangers += 1
            pings += peer.socket.poll(50) and isinstance(peer.receive(), Ping)
        passed_s = time.monotonic() - began
    assert strangers > 20
    assert pings <= passed_s / BrokerSettings().ping_interval_s + 1


# A hello that never comes.


def test_who_says_no_hello_or_has_said_goodbye_may_not_stay_and_who_has_said_it_may(fleet: Fleet) -> None:
    fleet.start_broker("--hello-timeout", HELLO_S)
    with ExitStack() as stack:
        client = stack.enter_context(Peer(fleet.address, client_hello()))
        worker = stack.enter_context(Peer(fleet.address, worker_hello()))
        stays = [broken(one) for one in (client, worker)]
        silent, left, foreign = (stack.enter_context(Peer(fleet.address)) for _ in range(3))
        monitors = [(one, broken(one)) for one in (silent, left, foreign)]
        left.send(client_hello("left"))
        left.wait_for(Welcome)
        left.send(Goodbye("done"))
        foreign.send(client_hello("foreign"))
        foreign.send_frames(b"H\x81\xa7version\x63")
        only_tcp = stack.enter_context(tcp(fleet))
        half = stack.enter_context(tcp(fleet))
        half.send(b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\x03")
        assert is_ended(only_tcp)
        assert is_ended(half)
        for peer, monitor in monitors[:2]:
            wait_for(peer, monitor)
        foreign.wait_for(Refuse)
        assert [monitor.poll(0) for monitor in stays] == [0, 0]
        for one, monitor in zip((client, worker, foreign), (*stays, monitors[2][1]), strict=True):
            one.socket.disable_monitor()
            monitor.close()
    assert "connections that were no client's or worker's" in said(fleet)


def test_a_thousand_half_open_connections_keep_nobody_out_for_longer_than_their_time(fleet: Fleet) -> None:
    host = ["sh", "-c", 'ulimit -n 300 && exec "$@"', "sh"]
    command = ["broker", "--bind", "tcp://127.0.0.1:*", "--connection-file", str(fleet.connection_file)]
    fleet.start(*command, host=host)
    until(fleet.connection_file.exists, "the broker's start")
    fleet.address = read_connection_file(fleet.connection_file).address
    fleet.start_worker("noted", "--load", "noted:load", environment=environment(fleet.folder, concurrency=2))
    fleet.wait_for(lambda report: any(llm["capacity"] for llm in report["llms"]))
    with ExitStack() as stack:
        opened = [stack.enter_context(socket.socket()) for _ in range(1000)]
        target = fleet.address.removeprefix("tcp://").rpartition(":")
        for sock in opened:
            sock.setblocking(False)
            sock.connect_ex((target[0], int(target[2])))
        work(fleet, "late")
        work(fleet, "later")
    assert "Traceback" not in said(fleet)


# What is announced and never comes.


def zmtp(fleet: Fleet) -> socket.socket:
    """A connection that has shaken hands as a DEALER, by hand."""
    sock = tcp(fleet)
    sock.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" + bytes(31))
    ready = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
    sock.sendall(bytes([4, len(ready)]) + ready)
    assert sock.recv(64)
    return sock


def test_a_huge_frame_that_is_announced_ends_its_connection_and_takes_no_memory(fleet: Fleet) -> None:
    serve(fleet)
    before = rss(fleet)
    for length in (9 * MEBI, 1 << 40, (1 << 63) - 1, (1 << 64) - 1):
        with zmtp(fleet) as sock:
            sock.sendall(b"\x02" + struct.pack(">Q", length) + bytes(100))
            assert is_ended(sock)
    assert rss(fleet) < before + 8 * MEBI
    work(fleet, "after")


def test_a_message_of_very_many_frames_is_not_read_to_its_end_at_once(fleet: Fleet) -> None:
    serve(fleet)
    frames = 1_000_000
    with zmtp(fleet) as sock:
        sock.sendall(b"\x01\x01Q" + b"\x01\x00" * (frames - 2) + b"\x00\x00" + b"\x00\x01?")
        until(lambda: "an unknown peer sent something unusable: a message of the unknown kind" in said(fleet))
    assert "an unknown peer sent something unusable: a message of more than 4096 frames" in said(fleet)
    assert said(fleet).count("unusable") == 2
    work(fleet, "after")


def nested(levels: int) -> bytes:
    return b"\x91" * levels


def test_deep_nesting_and_long_lengths_that_are_announced_take_no_memory(fleet: Fleet) -> None:
    serve(fleet)
    before = rss(fleet)
    array, mapping, text = b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff"
    heads = [array, mapping, text, nested(1000), nested(3_000_000), array * 1000, (b"\xdc\x0f\xff" * 1000), mapping * 9]
    with Peer(fleet.address, client_hello()) as peer:
        for head in heads:
            peer.send_frames(b"S\x81\xa4runs" + head)
            assert peer.wait_for(Reset).reason.startswith("Submit: ")
    assert rss(fleet) < before + 32 * MEBI
    work(fleet, "after")


def test_a_row_longer_than_is_taken_is_unusable(fleet: Fleet) -> None:
    fleet.start_broker("--max-client-queued", "2")
    with Peer(fleet.address, client_hello()) as peer:
        peer.send_frames(b"S\x81\xa4runs\x90", *[bytes(MEBI)] * 7)
        assert peer.wait_for(Reset).reason == f"a message of {7 * MEBI + 8} bytes, more than {6 * MEBI}"


def test_what_a_peer_says_of_itself_forges_no_line_and_commands_no_terminal(fleet: Fleet) -> None:
    fleet.start_broker()
    hello = replace(worker_hello(), host="gpu\x1b[2J\n2026-01-01 INFO forged", llm="name\x1b]0;title\x07")
    with Peer(fleet.address, hello):
        fleet.wait_for(lambda report: report["llms"])
        fleet.start("status", "--broker", fleet.address).wait(PATIENCE_S)
    for log in (said(fleet), (fleet.folder / "1-status.log").read_text()):
        assert "gpu\\x1b[2J\\n2026" in log
        assert "\x1b" not in log
        assert "\n2026-01-01 INFO forged" not in log


# Over a limit.


def row_ids(first: int, count: int) -> list[bytes]:
    return [number.to_bytes(16) for number in range(first, first + count)]


def submit(ids: list[bytes], size: int) -> Submit:
    return Submit([SubmitRun("noted", "input", 1, b"", None, False, ids, [bytes(size)] * len(ids))])


def test_a_client_far_over_its_limits_is_told_to_come_back_and_the_others_work_on(fleet: Fleet) -> None:
    serve(fleet, "--max-client-rows", "1000", "--max-client-queued", "1")
    with Peer(fleet.address, client_hello()) as greedy:
        greedy.send(Await([], False))
        greedy.send(submit(row_ids(0, 500), 4096))
        busy = greedy.wait_for(Busy)
        assert busy.ids == row_ids(256, 244)
        assert busy.seconds == pytest.approx(0.5)
        work(fleet, "beside")
        for number in range(1, 200):  # 400 MB in all
            greedy.send(submit(row_ids(1000 * number, 500), 4096))
        assert greedy.wait_for(Reset).reason == "you have 1500 rows here, and this broker takes 1000 of one client"
        work(fleet, "still")
        assert fleet.report()["rows"] <= 256


def test_a_client_that_takes_its_rows_home_may_come_back(fleet: Fleet) -> None:
    fleet.start_broker("--max-rows", "3")
    with Peer(fleet.address, client_hello()) as client:
        client.send(Await([], False), submit(row_ids(0, 5), 10))
        assert client.wait_for(Busy).ids == row_ids(3, 2)
        client.send(Release(row_ids(3, 2)), Release(row_ids(0, 2)), submit(row_ids(3, 2), 10), submit(row_ids(9, 1), 1))
        assert client.wait_for(Busy).ids == row_ids(9, 1)


def test_ordinary_clients_of_a_broker_with_little_room_get_all_done(fleet: Fleet) -> None:
    serve(fleet, "--max-rows", "30", "--max-client-rows", "25")
    clients = [ProcessLLM.connect("noted", broker=fleet.address) for _ in range(2)]
    with Peer(fleet.address, client_hello()) as hog:
        hog.send(Await([], False), submit(row_ids(0, 25), 0))
        try:
            rows = [{"input": f"quick {number}"} for number in range(20)]
            futures = [client.generate(rows, timeout=50) for client in clients]
            assert [len(future.result()) for future in futures] == [20, 20]
        finally:
            for client in clients:
                client.teardown()


# Garbage.


def test_a_flood_of_unusable_messages_costs_its_sender_the_connection_and_nobody_else_anything(fleet: Fleet) -> None:
    serve(fleet)
    with Peer(fleet.address, client_hello("bad")) as bad, Peer(fleet.address) as stranger:
        monitors = [(one, broken(one)) for one in (bad, stranger)]
        for _ in range(20_000):
            for one in (bad, stranger):
                one.socket.send_multipart([os.urandom(20)], zmq.NOBLOCK if one.socket.poll(0, zmq.POLLOUT) else 0)
            if all(monitor.poll(0) for _, monitor in monitors):
                break
        assert "more than 10 unusable messages a minute" in bad.wait_for(Refuse).reason
        assert "more than 10 unusable messages a minute" in stranger.wait_for(Refuse).reason
        work(fleet, "beside")
        for one, monitor in monitors:
            wait_for(one, monitor)
    with Peer(fleet.address) as again:
        again.send(client_hello("bad"))
        assert "is kept out for" in again.wait_for(Reset).reason
    work(fleet, "after")
    assert len(said(fleet).splitlines()) < 60
