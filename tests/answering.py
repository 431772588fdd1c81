"""A server with an API like OpenAI's that answers as a test says."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# How many completions the real server makes at once.
SLOTS = 2


@dataclass
class Reply:
    """What the scripted server answers: a status, and a body that is sent as JSON unless it is text."""

    body: Any
    status: int = 200
    type: str = "application/json"
    headers: dict[str, str] = field(default_factory=lambda: {"Retry-After-Ms": "1"})


def completion(*contents: str | None, **more: Any) -> Reply:
    choices = [
        {"index": index, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
        for index, content in enumerate(contents)
    ]
    return Reply({"object": "chat.completion", "choices": choices, **more})


def plain_completion(*contents: str) -> Reply:
    choices = [{"index": index, "text": content, "finish_reason": "length"} for index, content in enumerate(contents)]
    return Reply({"object": "text_completion", "choices": choices})


def error(status: int, sentence: str, **more: str) -> Reply:
    return Reply({"error": {"message": sentence, **more}}, status)


def refusing_first(count: int) -> Callable[[dict[str, Any]], Reply]:
    """An answer that refuses the key of the first ``count`` requests, once all of them are there."""
    together, arrived = threading.Barrier(count), itertools.count()

    def answer(body: dict[str, Any]) -> Reply:
        if next(arrived) >= count:
            return completion("in")
        together.wait(10)
        return error(401, "no")

    return answer


@dataclass
class Scripted:
    """An HTTP server that answers chat requests by ``answer``, and lists the models in ``models``.

    Where ``answer`` says None, the connection is cut.
    """

    answer: Callable[[dict[str, Any]], Reply | None]
    models: Reply = field(default_factory=lambda: Reply({"data": [{"id": "m"}]}))
    requests: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    paths: list[str] = field(default_factory=list[str])
    keys: list[str | None] = field(default_factory=list[str | None])
    held: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    left: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    url: str = ""

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        self.keys.append(handler.headers["Authorization"])
        if handler.command == "GET":
            return self._send(handler, self.models)
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        self.requests.append(body)
        self.paths.append(handler.path)
        if "messages" in body and body["messages"][-1]["content"] == "hold":
            self.held.release()
            # Nothing more is sent on this connection: what comes is its end.
            assert handler.connection.recv(1) == b""
            handler.close_connection = True
            self.left.release()
            return None
        reply = self.answer(body)
        if reply is not None:
            return self._send(handler, reply)
        handler.close_connection = True
        return None

    def _send(self, handler: BaseHTTPRequestHandler, reply: Reply) -> None:
        content = reply.body.encode() if isinstance(reply.body, str) else json.dumps(reply.body).encode()
        handler.send_response(reply.status)
        handler.send_header("Content-Type", reply.type)
        handler.send_header("Content-Length", str(len(content)))
        for name, value in reply.headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content)


@contextmanager
def scripted_server() -> Generator[Scripted]:
    """Answers every chat request with "text" until the test says otherwise."""
    script = Scripted(lambda body: completion("text"))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            script.handle(self)

        def do_POST(self) -> None:
            script.handle(self)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, name="scripted-server", kwargs={"poll_interval": 0.02})
    thread.start()
    script.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    yield script
    server.shutdown()
    thread.join()
    server.server_close()
