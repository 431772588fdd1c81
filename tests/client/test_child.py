"""The supervisor of one process, on small programs."""

from __future__ import annotations

import queue
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fleet import until
from process import is_alive

from genpool.client import child as module
from genpool.client.child import Child
from genpool.protocol.lifeline import describe_exit

LIMIT_S = 30.0
SAY = """import os, signal, socket, struct
sock = socket.socket(fileno={descriptor})
say = lambda text: sock.sendall(struct.pack('!Q', len(text)) + text)
"""
READ_ALL = """
heard, length = bytearray(), 2 * 8 + 1_000_003
while len(heard) < length:
    heard += sock.recv(length)
say(bytes(heard[8:11]))
say(bytes(heard[19:]))
"""


class Family:
    """Children, with what they said and the codes with which they ended."""

    def __init__(self) -> None:
        self.heard: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.codes: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.made: list[Child] = []

    def start(
        self, code: str, greeting: list[bytes] | None = None, restart: Callable[[int], bool] = lambda _: False
    ) -> Child:
        def ended(code: int) -> bool:
            self.codes.put(code)
            return restart(code)

        self.made.append(Child("a child", SAY + code, greeting or [], self.heard.put, ended))
        return self.made[-1]


@pytest.fixture
def family() -> Iterator[Family]:
    family = Family()
    yield family
    for one in family.made:
        one.stop()


def test_another_child_may_be_stopped_in_the_midst_of_a_start(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    other = family.start("sock.recv(1)")

    class Collecting(subprocess.Popen[bytes]):
        """While it is started, the garbage collector finds the other child."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            other.ask_to_stop()
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(module.subprocess, "Popen", Collecting)
    family.start("say(b'up')")
    assert family.heard.get(timeout=LIMIT_S) == b"up"
    until(lambda: not is_alive(other.pid))


def test_greeting_is_read_and_what_is_said_is_heard(family: Family) -> None:
    text = b"x" * 1_000_000
    family.start(READ_ALL, [b"one", text])
    assert family.heard.get(timeout=LIMIT_S) == b"one"
    assert family.heard.get(timeout=LIMIT_S) == text
    assert family.codes.get(timeout=LIMIT_S) == 0


def test_child_that_ends_is_started_again_while_that_is_asked_for(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FIRST_BACKOFF_S", 0.001)
    codes: list[int] = []
    family.start("say(b'up'); os._exit(3)", restart=lambda code: codes.append(code) or len(codes) < 3)
    assert [family.heard.get(timeout=LIMIT_S) for _ in range(3)] == [b"up"] * 3
    until(lambda: len(codes) == 3, "the third end")
    assert codes == [3, 3, 3]
    family.made[0].stop()
    assert family.heard.empty()


@pytest.mark.parametrize("comes_up", [False, True])
def test_restarts_are_delayed_ever_longer_whether_it_comes_up_or_not(
    family: Family, monkeypatch: pytest.MonkeyPatch, comes_up: bool
) -> None:
    monkeypatch.setattr(module, "_FIRST_BACKOFF_S", 0.001)
    ends: list[float] = []
    made = threading.Event()

    def again(_: int) -> bool:
        assert made.wait(LIMIT_S)
        ends.append(child._backoff._next_s)
        if comes_up:
            child.came_up()
        return len(ends) < 4

    child = family.start("os._exit(3)", restart=again)
    made.set()
    until(lambda: len(ends) == 4, "the fourth end")
    assert ends == [0.001, 0.002, 0.004, 0.008]


def test_a_child_that_ran_for_long_is_started_again_without_delay(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FIRST_BACKOFF_S", 0.001)
    monkeypatch.setattr(module, "_LONGEST_BACKOFF_S", -1.0)  # any run is as long
    ends: list[float] = []
    made = threading.Event()

    def again(_: int) -> bool:
        assert made.wait(LIMIT_S)
        child._backoff._next_s = 3600.0
        ends.append(child._backoff._next_s)
        return len(ends) < 3

    child = family.start("os._exit(3)", restart=again)
    made.set()
    until(lambda: len(ends) == 3, "the third end")


def test_stop_while_a_restart_is_delayed_starts_nothing(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_BACKOFF_S", 3600.0)
    child = family.start("say(b'up')", restart=lambda _: True)
    assert family.codes.get(timeout=LIMIT_S) == 0
    pid = child.pid
    child.stop()
    assert child.pid == pid
    assert not is_alive(pid)
    assert not child._supervisor.is_alive()


def test_child_that_cannot_be_started_again_is_tried_again(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_BACKOFF_S", 0.001)
    popen, failures = subprocess.Popen, [OSError("no more processes"), OSError("still none")]

    def scarce(*args: Any, **kwargs: Any) -> Any:
        if failures:
            raise failures.pop()
        return popen(*args, **kwargs)

    def again(_: int) -> bool:
        monkeypatch.setattr(subprocess, "Popen", scarce)
        return family.codes.qsize() < 2

    family.start("say(b'up')", restart=again)
    assert [family.heard.get(timeout=LIMIT_S) for _ in range(2)] == [b"up", b"up"]
    assert not failures


def test_child_that_will_not_end_is_killed(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE_S", 0.05)
    code = "signal.signal(signal.SIGTERM, signal.SIG_IGN); say(b'deaf'); signal.pause()"
    child = family.start(code)
    assert family.heard.get(timeout=LIMIT_S) == b"deaf"
    child.stop()
    assert not is_alive(child.pid)


def test_processes_of_a_child_end_with_it(family: Family) -> None:
    code = "pid = os.fork()\nif pid: say(str(pid).encode()); os._exit(0)\nsignal.pause()"
    family.start(code)
    grandchild = int(family.heard.get(timeout=LIMIT_S))
    assert family.codes.get(timeout=LIMIT_S) == 0
    until(lambda: not is_alive(grandchild), "the grandchild's end")


def test_kill_ends_it_as_any_other_death(family: Family) -> None:
    child = family.start("say(b'up'); signal.pause()")
    assert family.heard.get(timeout=LIMIT_S) == b"up"
    child.kill()
    assert family.codes.get(timeout=LIMIT_S) == -signal.SIGKILL


def test_last_words_are_heard_even_if_a_grandchild_holds_the_socket(family: Family) -> None:
    code = "pid = os.fork()\nif pid: say(b'last words'); os._exit(5)\nsignal.pause()"
    family.start(code)
    assert family.heard.get(timeout=LIMIT_S) == b"last words"
    assert family.codes.get(timeout=LIMIT_S) == 5


def test_exits_in_words() -> None:
    assert describe_exit(70) == "exit code 70"
    assert describe_exit(-9) == "SIGKILL"
    assert describe_exit(-1000) == "signal 1000"
