"""A chat server that answers nobody until a crowd waits for it, and then all of them at once."""

from __future__ import annotations

import asyncio
import json
import threading
from types import TracebackType
from typing import Any, Self


class Gathering:
    """Repeats the last message of every request, ``size`` requests at a time. ``most`` had it open at once."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.most = 0
        self.url = ""
        self._waiting: list[asyncio.Event] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gathering", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        listening = asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=2 * self.size)
        self._server = asyncio.run_coroutine_threadsafe(listening, self._loop).result(10)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                content = json.dumps(await self._answer(head, reader)).encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n")
                writer.write(b"Content-Length: %d\r\n\r\n%b" % (len(content), content))
                await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, head: bytes, reader: asyncio.StreamReader) -> dict[str, Any]:
        headers = dict(line.lower().split(": ", 1) for line in head.decode().split("\r\n")[1:] if line)
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if head.startswith(b"GET"):
            return {"data": [{"id": "m"}]}
        await self._gather()
        message = {"role": "assistant", "content": json.loads(body)["messages"][-1]["content"]}
        return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}

    async def _gather(self) -> None:
        """Return when ``size`` requests wait here."""
        here = asyncio.Event()
        self._waiting.append(here)
        self.most = max(self.most, len(self._waiting))
        if len(self._waiting) == self.size:
            for one in self._waiting:
                one.set()
            self._waiting = []
        await here.wait()
