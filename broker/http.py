"""A small HTTP server in threads beside the loop. It knows of no broker: it has a table of paths and handlers."""

from __future__ import annotations

import logging
import re
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import Any

from ..protocol.address import host_of, is_loopback
from ..protocol.errors import ConfigurationError
from ..protocol.printable import printable

log = logging.getLogger("genpool.broker.http")

# How many are answered at a time; who comes beyond is hung up on. Each takes a thread and an open file of the broker's.
_MOST_REQUESTS = 16

# How long somebody may take to ask, or to read a piece of the answer.
_PATIENCE_S = 10.0

# How soon the server notices that it shall end.
_POLL_S = 0.2

# A browser runs and asks for nothing but what comes from here, and shows it to no other site.
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

# Of a Host header, and of no IPv6 address, which has brackets there.
_PORT = re.compile(r":\d*$")


@dataclass(frozen=True, slots=True)
class Page:
    """An answer."""

    status: int
    content_type: str
    body: bytes


Handler = Callable[[], Page]


@contextmanager
def serving(address: str, handlers: Mapping[str, Handler]) -> Generator[str]:
    """Serve ``handlers``, by their paths, on ``tcp://HOST:PORT``. Gives the URL, with the port that was taken.

    Raises:
        ConfigurationError: when the address cannot be listened on.
    """
    host, port = host_of(address), address.rpartition(":")[2]
    wanted = ("0.0.0.0" if host == "*" else host, 0 if port == "*" else int(port))
    try:
        family, _, _, _, place = socket.getaddrinfo(*wanted, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        server = _Server(family, place, handlers, host)
    except OSError as error:
        raise ConfigurationError(
            f"the broker cannot serve HTTP on {host}:{port}: {error.strerror or error}; choose another address with "
            "--http, or stop who listens there"
        ) from None
    thread = threading.Thread(target=server.serve_forever, args=(_POLL_S,), name="genpool-http", daemon=True)
    thread.start()
    try:
        host, port = server.socket.getsockname()[:2]
        yield f"http://{f'[{host}]' if ':' in host else host}:{port}"
    finally:
        server.shutdown()
        server.server_close()


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Not HTTPServer, which looks up this host's name at its start and may wait for that."""

    allow_reuse_address = True
    request_queue_size = _MOST_REQUESTS
    # Nobody who reads slowly keeps the broker from its end.
    daemon_threads = True
    block_on_close = False

    def __init__(self, family: int, place: Any, handlers: Mapping[str, Handler], host: str) -> None:
        self.address_family = family
        self.handlers = handlers
        self._host = host.lower()
        self._is_private = is_loopback(f"tcp://{place[0]}:0")
        self._places = threading.BoundedSemaphore(_MOST_REQUESTS)
        super().__init__(place, _Request)

    def is_addressed(self, host: str | None) -> bool:
        """Whether who asks ``host`` (the header) meant this server.

        A page from elsewhere can make a browser look up its name as 127.0.0.1 and then read what only this machine
        may (DNS rebinding). Its name stays in the header. The port may be another one, that of a tunnel's near end.
        """
        if host is None or not self._is_private:
            return True
        name = _PORT.sub("", host).lower()
        return name == self._host or is_loopback(f"tcp://{name}:0")

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread can be started, which would have given the place back
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Who asks and is gone before the answer is no event. As a rule it is this.
        log.debug("a request of %s was not answered: %s", client_address, sys.exc_info()[1])


class _Request(BaseHTTPRequestHandler):
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]
    server_version = "genpool"
    sys_version = ""
    timeout = _PATIENCE_S

    def do_GET(self) -> None:
        self._answer(self._page())

    def do_HEAD(self) -> None:
        self._answer(self._page(), has_body=False)

    def log_message(self, format: str, *args: Any) -> None:
        log.debug("%s %s", self.address_string(), printable(format % args))

    def _page(self) -> Page:
        if not self.server.is_addressed(self.headers["Host"]):
            sentence = b"this server answers who calls it by localhost or its own address, and by no other name\n"
            return Page(421, "text/plain; charset=utf-8", sentence)
        path = self.path.partition("?")[0]
        handler = self.server.handlers.get(path)
        if handler is None:
            known = ", ".join(self.server.handlers)
            return Page(404, "text/plain; charset=utf-8", f"there is no such page; there are {known}\n".encode())
        try:
            return handler()
        except Exception:
            log.exception("the page %s could not be made", path)
            return Page(500, "text/plain; charset=utf-8", b"the page could not be made; the broker's log says why\n")

    def _answer(self, page: Page, *, has_body: bool = True) -> None:
        self.send_response(page.status)
        self.send_header("Content-Type", page.content_type)
        self.send_header("Content-Length", str(len(page.body)))
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        if has_body:
            self.wfile.write(page.body)
