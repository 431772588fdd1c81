"""What a broker says to anybody holds nothing of its host, and nothing by which another's rows could be claimed."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
from fleet import PATIENCE_S, Fleet
from wire import Peer, client_hello, worker_hello

from genpool.broker.machine import Broker
from genpool.broker.outgoing import Send
from genpool.broker.settings import BrokerSettings
from genpool.protocol.codec import decode, encode
from genpool.protocol.content import pack_row
from genpool.protocol.messages import (
    Answer,
    Ask,
    Assign,
    Await,
    Goodbye,
    Hello,
    Hold,
    Message,
    Missing,
    Outcome,
    Ping,
    Refuse,
    Reset,
    Result,
    Status,
    Submit,
    SubmitRun,
    Welcome,
)

T = TypeVar("T", bound=Message)

PATH = re.compile(rb"(?<![\w.:/])/[\w.-]+/[\w./-]+")

# The values of the environment that could stand in a sentence by chance are shorter.
_SHORTEST = 6


class Listener(Peer):
    """A peer that keeps all that it is sent. Its instance is as random as those of real ones."""

    def __init__(self, address: str, hello: Hello | None = None) -> None:
        super().__init__(address)
        self.heard: list[bytes] = []
        self.instance = secrets.token_bytes(16)
        if hello is not None:
            hello.instance = self.instance
            self.send(hello)

    def hear(self, kind: type[T]) -> T:
        """The next message of this kind; what comes before it is kept, too."""
        while True:
            frames = self.socket.recv_multipart()
            self.heard += frames
            message = decode(frames)
            if isinstance(message, kind):
                return message


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    monkeypatch.setenv("SOME_API_KEY", "value-of-a-secret")
    with Fleet(tmp_path) as fleet:
        fleet.start_broker("--max-attempts", "1", "--worker-grace", "0", "--settle", "0")
        yield fleet


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def submit(llm: str, ids: list[bytes], seconds_left: float | None = None) -> Submit:
    return Submit([SubmitRun(llm, "input", 1, b"", seconds_left, False, ids, [pack_row("x", None)] * len(ids))])


def test_nothing_of_the_host_and_nothing_of_another_is_told(fleet: Fleet, stack: ExitStack) -> None:
    listeners: list[Listener] = []

    def listener(hello: Hello | None = None) -> Listener:
        listeners.append(stack.enter_context(Listener(fleet.address, hello)))
        return listeners[-1]

    ids = [secrets.token_bytes(16) for _ in range(4)]
    watcher = listener(client_hello("watcher"))
    watcher.send(Await([], False))
    owner = listener(client_hello("owner"))
    worker = listener(worker_hello("worker", credit=8, concurrency=8))
    worker.send(Hold([], [], [], False))

    # Every way in which rows end.
    owner.send(Await(ids[3:], False))
    assert owner.hear(Missing).ids == ids[3:]
    owner.send(submit("llm", ids[2:3], 0.0))
    assert owner.hear(Answer).outcomes == [Outcome.EXPIRED]
    owner.send(submit("llm", ids[:2]))
    (run,) = worker.hear(Assign).runs
    worker.send(Result([run.first_execution], [Outcome.FAILED], 0, 8, [b"a failure"]))
    assert owner.hear(Answer).payloads == [b"a failure"]

    # Every refusal.
    refused = listener(Hello(version=99))
    assert "version 99" in refused.hear(Refuse).reason
    assert "say hello first" in sent(listener(), Ask()).reason
    assert "another process" in sent(listener(client_hello()), client_hello("another")).reason
    assert "is not for a client" in sent(listener(client_hello()), Hold([], [], [], False)).reason
    assert "I know 0" in sent(listener(client_hello()), Ping(7)).reason
    assert "what you hold" in sent(listener(worker_hello("late")), Ping(None)).reason
    odd = listener(client_hello())
    odd.hear(Welcome)
    odd.send_frames(b"\xff")
    assert "unknown kind" in odd.hear(Reset).reason

    # The last row ends its worker, which leaves a verdict and an entry among the lost.
    worker.close()
    assert owner.hear(Answer).outcomes == [Outcome.FAILED]
    watcher.send(Ask())
    report = watcher.hear(Status).report
    assert [one["host"] for one in report["lost"]] == ["worker"]
    assert {one["host"] for one in report["clients"]} >= {"owner", "watcher"}

    fleet.processes[0].terminate()
    for one in (watcher, owner):
        one.hear(Goodbye)
    assert fleet.processes[0].wait(PATIENCE_S) == 0

    every = [(one, frame) for one in listeners for frame in one.heard]
    assert [frame for _, frame in every if PATH.search(frame)] == []
    environment = [value.encode() for value in os.environ.values() if len(value) >= _SHORTEST]
    assert [frame for _, frame in every if any(value in frame for value in environment)] == []
    for instance in (one.instance for one in listeners):
        assert not any(stands_in(instance, frame) for _, frame in every)
    for row_id in ids:
        assert {one for one, frame in every if stands_in(row_id, frame)} <= {owner, worker}


def sent(peer: Listener, message: Message) -> Reset:
    """What the broker says to ``message``."""
    peer.send(message)
    return peer.hear(Reset)


def stands_in(name: bytes, frame: bytes) -> bool:
    return name in frame or name.hex().encode() in frame


def test_who_is_turned_away_hears_nothing_of_the_host() -> None:
    broker = Broker(replace(BrokerSettings(), max_peers=0), bytes(16), 0.0)
    broker.received(b"peer", client_hello(), 0.0)
    (refusal,) = [effect.message for effect in broker.flush(0.0) if isinstance(effect, Send)]
    assert isinstance(refusal, Refuse)
    assert not any(PATH.search(bytes(frame)) for frame in encode(refusal, 1 << 20))
