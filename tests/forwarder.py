"""A TCP forwarder that stands between a peer and the broker, and breaks connections on demand."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress
from typing import Literal

Direction = Literal["up", "down", "both"]

# SO_LINGER with zero seconds: closing sends a reset and throws away what is buffered.
_RESET = struct.pack("ii", 1, 0)


class Forwarder:
    """Forwards to ``target`` (``tcp://host:port``) from an address of its own.

    ``cut_after(bytes, direction)`` breaks the next connection that carries so many bytes that way; several cuts
    happen one after the other, each on the connection that is there then.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.removeprefix("tcp://").rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()
        self._cuts: list[tuple[int, Direction]] = []
        self._carried = 0
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self.connections = 0
        self.cuts_made = 0
        self._is_closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_after(self, carried: int, direction: Direction) -> None:
        """Plan one more cut, when ``carried`` more bytes have gone in ``direction`` since the last cut."""
        with self._lock:
            self._cuts.append((carried, direction))

    def cut(self) -> None:
        """Break all connections now."""
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            self._break(pair)

    def close(self) -> None:
        self._is_closed = True
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while not self._is_closed:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target, timeout=5.0)
            except OSError:
                continue
            far.settimeout(None)
            for sock in (near, far):
                # Small parts would otherwise wait for the other side's delayed acknowledgement.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self.connections += 1
                self._pairs.add((near, far))
            for source, sink, direction in ((near, far, "up"), (far, near, "down")):
                arguments = ((near, far), source, sink, direction)
                threading.Thread(target=self._carry, args=arguments, daemon=True).start()

    def _carry(
        self, pair: tuple[socket.socket, socket.socket], source: socket.socket, sink: socket.socket, direction: str
    ) -> None:
        with suppress(OSError):
            while part := source.recv(16_384):
                if self._is_due(len(part), direction):
                    # Half of the last part still passes, so that the cut is inside a message.
                    sink.sendall(part[: len(part) // 2])
                    break
                sink.sendall(part)
        self._break(pair)

    def _is_due(self, size: int, direction: str) -> bool:
        with self._lock:
            if not self._cuts or self._cuts[0][1] not in (direction, "both"):
                return False
            self._carried += size
            if self._carried < self._cuts[0][0]:
                return False
            self._carried = 0
            del self._cuts[0]
            self.cuts_made += 1
            return True

    def _break(self, pair: tuple[socket.socket, socket.socket]) -> None:
        with self._lock:
            if pair not in self._pairs:
                return
            self._pairs.remove(pair)
        for sock in pair:
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
