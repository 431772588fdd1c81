"""What the service manager hears, with the time as an argument."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from genpool.protocol.notify import VARIABLES, Notifier, Phase, notifier

STARTING, SERVING, STOPPING = Phase


class Manager:
    """The other end, at a path or, with "@", an abstract name."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.bind(address.replace("@", "\0", 1))

    def heard(self) -> list[str]:
        heard: list[str] = []
        while True:
            try:
                heard += self.socket.recv(4096).decode().split("\n")
            except BlockingIOError:
                return heard


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(str(tmp_path / "notify"))
    yield manager
    manager.socket.close()


@pytest.fixture
def told(manager: Manager) -> Iterator[Notifier]:
    told = Notifier(manager.address, 8.0)
    yield told
    told.close()


def test_ready_is_said_once_and_only_when_it_serves(manager: Manager, told: Notifier) -> None:
    told.tick(0.0, STARTING, "loading")
    assert manager.heard() == ["EXTEND_TIMEOUT_USEC=120000000", "STATUS=loading", "WATCHDOG=1"]
    told.tick(0.1, STARTING, "loading")
    assert manager.heard() == []
    told.tick(0.2, SERVING, "ready")
    assert manager.heard() == ["READY=1", "STATUS=ready"]
    told.tick(1.9, SERVING, "ready")
    assert manager.heard() == []
    told.tick(1.95, STOPPING, "draining")
    assert manager.heard() == ["STOPPING=1", "STATUS=draining"]
    told.tick(2.0, STOPPING, "draining")
    assert manager.heard() == ["WATCHDOG=1"]


def test_more_time_is_asked_for_until_it_serves_while_it_is_healthy(manager: Manager, told: Notifier) -> None:
    more = "EXTEND_TIMEOUT_USEC=120000000"
    times = [number / 10 for number in range(300)]
    heard: list[float] = []
    for now in times:
        told.tick(now, STARTING, "", is_healthy=now < 25)
        if more in manager.heard():
            heard.append(now)
    assert heard == [0.0, 10.0, 20.0]


def test_signs_of_life_come_within_half_the_time_while_it_is_healthy(manager: Manager, told: Notifier) -> None:
    heard: list[float] = []
    for number in range(200):
        told.tick(number / 10, SERVING, "", is_healthy=number <= 100)
        if "WATCHDOG=1" in manager.heard():
            heard.append(number / 10)
    assert heard == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]


def test_without_a_watchdog_there_are_no_signs(manager: Manager) -> None:
    told = Notifier(manager.address, None)
    told.tick(0.0, SERVING, "")
    assert manager.heard() == ["READY=1"]
    told.close()


def test_the_status_is_told_now_and_then(manager: Manager) -> None:
    told = Notifier(manager.address, None)
    for number in range(50):
        told.tick(number / 10, SERVING, f"{number} rows")
    assert manager.heard() == ["READY=1", "STATUS=0 rows", "STATUS=20 rows", "STATUS=40 rows"]
    told.close()


def test_no_status_forges_other_news(manager: Manager) -> None:
    told = Notifier(manager.address, None)
    told.tick(0.0, STARTING, "no\nREADY=1\ud800" + "x" * 1000)
    (_, status) = manager.heard()
    assert status.startswith("STATUS=no\\nREADY=1\\ud800xx")
    assert len(status) < 600
    told.close()


def test_what_cannot_be_sent_is_sent_later(tmp_path: Path) -> None:
    told = Notifier(str(tmp_path / "notify"), None)
    told.tick(0.0, SERVING, "")
    told.tick(0.1, SERVING, "more")
    manager = Manager(str(tmp_path / "notify"))
    told.tick(0.2, SERVING, "more")
    assert manager.heard() == ["READY=1", "STATUS=more"]
    # Nobody reads: it does not wait, and loses nothing that matters.
    for number in range(1000):
        told.tick(1.0 + number * 10, SERVING, str(number))
    assert manager.heard()[-1] != "STATUS=999"
    told.tick(20_000.0, STOPPING, "bye")
    assert manager.heard() == ["STATUS=bye", "STOPPING=1"]
    told.close()
    manager.socket.close()


def given(monkeypatch: pytest.MonkeyPatch, **environment: str) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def test_without_a_manager_there_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch)
    assert notifier() is None
    given(monkeypatch, NOTIFY_SOCKET="vsock:2:1", WATCHDOG_USEC="1")
    assert notifier() is None


@pytest.mark.parametrize(
    ("watchdog", "signs"),
    [
        ({}, False),
        ({"WATCHDOG_USEC": "1000000"}, True),
        ({"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": str(os.getpid())}, True),
        ({"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}, False),
        ({"WATCHDOG_USEC": "soon"}, False),
        ({"WATCHDOG_USEC": "0"}, False),
    ],
)
def test_the_environment_is_for_this_process_alone(
    monkeypatch: pytest.MonkeyPatch, watchdog: dict[str, str], signs: bool
) -> None:
    manager = Manager(f"@genpool-{os.urandom(8).hex()}")
    given(monkeypatch, NOTIFY_SOCKET=manager.address, **watchdog)
    told = notifier()
    assert told is not None
    assert not os.environ.keys() & set(VARIABLES)
    told.tick(0.0, SERVING, "")
    assert manager.heard() == ["READY=1", *(["WATCHDOG=1"] if signs else [])]
    told.close()
    manager.socket.close()
