"""The small HTTP server, with handlers of the test's own."""

from __future__ import annotations

import logging
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.message import Message

import pytest
from fleet import PATIENCE_S, until

from genpool.broker import http as module
from genpool.broker.http import Page, serving
from genpool.protocol.errors import ConfigurationError

LET_GO = threading.Event()


def hello() -> Page:
    return Page(200, "text/plain", b"hello")


def slow() -> Page:
    LET_GO.wait(PATIENCE_S)
    return hello()


def broken() -> Page:
    raise ValueError("a bug")


HANDLERS = {"/": hello, "/slow": slow, "/broken": broken, "/away": lambda: Page(503, "text/plain", b"not now")}


@pytest.fixture
def url() -> Iterator[str]:
    LET_GO.clear()
    with serving("tcp://127.0.0.1:*", HANDLERS) as address:
        yield address
    LET_GO.set()


def get(url: str, method: str = "GET", host: str = "") -> tuple[int, bytes, Message]:
    request = urllib.request.Request(url, method=method, headers={"Host": host} if host else {})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            return answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), error.headers


def test_a_path_is_answered_by_its_handler(url: str) -> None:
    status, body, headers = get(f"{url}/?some=thing")
    assert (status, body) == (200, b"hello")
    assert (headers["Content-Type"], headers["Content-Length"]) == ("text/plain", "5")
    assert get(f"{url}/away")[:2] == (503, b"not now")


def test_a_head_has_no_body(url: str) -> None:
    status, body, headers = get(url, "HEAD")
    assert (status, body, headers["Content-Length"]) == (200, b"", "5")


def test_an_unknown_path_is_told_which_there_are(url: str) -> None:
    status, body, _ = get(f"{url}/nothing")
    assert (status, body) == (404, b"there is no such page; there are /, /slow, /broken, /away\n")


def test_another_method_is_refused(url: str) -> None:
    assert get(url, "POST")[0] == 501


def test_a_handler_that_raises_is_an_error_of_the_server(url: str, caplog: pytest.LogCaptureFixture) -> None:
    assert get(f"{url}/broken")[:2] == (500, b"the page could not be made; the broker's log says why\n")
    assert "a bug" in caplog.text


def test_a_browser_is_told_to_run_and_ask_nothing_from_elsewhere(url: str) -> None:
    for path in ("/", "/away", "/nothing"):
        headers = get(f"{url}{path}")[2]
        rules = dict(rule.split(" ", 1) for rule in headers["Content-Security-Policy"].split("; "))
        assert rules["default-src"] == rules["frame-ancestors"] == rules["base-uri"] == "'none'"
        assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"


# Of a tunnel, the near end may have another port.
@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "127.9.9.9", "[::1]:9464", "[::1]"])
def test_who_calls_it_by_a_name_of_this_machine_is_answered(url: str, host: str) -> None:
    assert get(url, host=host)[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:9464", "127.0.0.1.evil.example", "10.0.0.1", "localhost.", "[", ":1"]
)
def test_who_calls_it_by_another_name_is_not(url: str, host: str) -> None:
    assert get(url, host=host)[:2] == (
        421,
        b"this server answers who calls it by localhost or its own address, and by no other name\n",
    )


def test_a_server_that_others_reach_may_have_any_name() -> None:
    with serving("tcp://*:*", HANDLERS) as url:
        assert get(url.replace("0.0.0.0", "127.0.0.1"), host="broker.example")[0] == 200


def test_the_name_that_it_was_given_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.socket, "getaddrinfo", lambda *_, **__: [(socket.AF_INET, 0, 0, "", ("127.0.0.1", 0))])
    with serving("tcp://Desk:*", HANDLERS) as url:
        monkeypatch.undo()
        assert get(url, host="desk:80")[0] == 200
        assert get(url, host="tesk:80")[0] == 421


def test_who_waits_keeps_nobody_else_from_an_answer(url: str) -> None:
    with _asking(url, "/slow"):
        assert get(url)[0] == 200


def test_so_many_are_answered_at_a_time_and_the_others_are_hung_up_on(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = [_asking(url, "/slow") for _ in range(module._MOST_REQUESTS)]
    try:
        until(lambda: _is_hung_up_on(url))
    finally:
        for one in waiting:
            one.close()
    LET_GO.set()
    until(lambda: not _is_hung_up_on(url))


def test_who_hangs_up_or_sends_garbage_is_no_trouble(url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for said in (b"", b"GET", b"\x00\xff" * 100 + b"\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"):
        with _connected(url) as connection:
            connection.sendall(said)
    assert get(url)[0] == 200
    assert not caplog.records


def test_who_finds_no_thread_takes_nobodys_place(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where memory, or the number of tasks, is short for a while."""

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    for _ in range(module._MOST_REQUESTS):
        assert _is_hung_up_on(url)
    monkeypatch.undo()
    assert get(url)[0] == 200


def test_its_end_waits_for_nobody() -> None:
    LET_GO.clear()
    with serving("tcp://127.0.0.1:0", HANDLERS) as url:
        asking = _asking(url, "/slow")
    with asking:
        pass
    LET_GO.set()
    with pytest.raises(OSError, match="refused"):
        _connected(url)


def test_an_address_that_is_taken_is_said_in_a_sentence(url: str) -> None:
    address = url.replace("http", "tcp")
    said = r"cannot serve HTTP on 127\.0\.0\.1:\d+: Address already in use"
    with pytest.raises(ConfigurationError, match=said), serving(address, HANDLERS):
        pass


def test_a_host_that_is_not_ours_is_said_in_a_sentence() -> None:
    said = r"cannot serve HTTP on no-such-host\.invalid:0"
    with pytest.raises(ConfigurationError, match=said), serving("tcp://no-such-host.invalid:0", HANDLERS):
        pass


def _connected(url: str) -> socket.socket:
    host, _, port = url.removeprefix("http://").rpartition(":")
    return socket.create_connection((host, int(port)), PATIENCE_S)


def _asking(url: str, path: str) -> socket.socket:
    connection = _connected(url)
    connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
    return connection


def _is_hung_up_on(url: str) -> bool:
    with _asking(url, "/") as connection:
        try:
            return connection.recv(100) == b""
        except ConnectionError:
            return True
