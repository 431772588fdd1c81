"""A server with OpenAI's chat completions in the test's own hands: it can go away, come back, and be unwell."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

# What it answers while it is unwell, as OpenAI does: a status and an error.
QUOTA = (429, {"message": "You exceeded your current quota.", "code": "insufficient_quota"})
NO_MODEL = (404, {"message": "The model `m` does not exist.", "code": "model_not_found"})
WRONG_KEY = (401, {"message": "Incorrect API key provided.", "code": "invalid_api_key"})


class _Listener(ThreadingHTTPServer):
    """Knows its connections, so that they can be ended with it."""

    daemon_threads = True

    def __init__(self, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", port), handler)
        self.connections: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a connection that went away

    def leave(self) -> None:
        self.shutdown()
        self.server_close()
        for connection in list(self.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class ChatServer:
    """Answers a prompt with its capitals. One that begins with "hold" is not answered while ``holds``: ``held`` has it
    and then, when the client has closed the connection, ``left``.

    ``fault`` is what chat requests are answered with instead, ``key`` the one that every request must bring, if any.
    """

    def __init__(self) -> None:
        self.fault: tuple[int, dict[str, str]] | None = None
        self.key: str | None = None
        self.holds = True
        self.prompts: list[str] = []
        self.held: list[str] = []
        self.left: list[str] = []
        self._port = 0
        self._listener: _Listener | None = None

    def __enter__(self) -> Self:
        self.come()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.go()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def come(self) -> None:
        """Listen, at the port of the first time."""
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server._answer(self, {"data": [{"id": "m"}]})

            def do_POST(self) -> None:
                server._complete(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        listener = self._listener = _Listener(self._port, Handler)
        self._port = listener.server_address[1]
        threading.Thread(target=listener.serve_forever, args=(0.02,), name="chat-server", daemon=True).start()

    def go(self) -> None:
        """End every connection, and refuse new ones."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.leave()

    def _complete(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        prompt = body["messages"][-1]["content"]
        self.prompts.append(prompt)
        if self.fault is not None:
            status, error = self.fault
            self._answer(handler, {"error": error}, status)
        elif self.holds and prompt.startswith("hold"):
            self.held.append(prompt)
            handler.close_connection = True
            with suppress(OSError):
                handler.connection.recv(1)
            self.left.append(prompt)
        else:
            message = {"role": "assistant", "content": prompt.upper()}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            self._answer(handler, {"object": "chat.completion", "choices": [choice]})

    def _answer(self, handler: BaseHTTPRequestHandler, body: dict[str, Any], status: int = 200) -> None:
        if self.key is not None and handler.headers["Authorization"] != f"Bearer {self.key}":
            status, error = WRONG_KEY
            body = {"error": error}
        content = json.dumps(body).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)
