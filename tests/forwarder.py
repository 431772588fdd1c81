"""A TCP forwarder that stands between a peer and the broker, and breaks connections or falls silent on demand."""

from __future__ import annotations

import socket
import struct
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

Direction = Literal["up", "down", "both"]

# SO_LINGER with zero seconds: closing sends a reset and throws away what is buffered.
_RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class _Trouble:
    """What happens when ``carried`` bytes have gone in ``direction``: a cut, or a black hole for ``hole_s``."""

    carried: int
    direction: Direction
    hole_s: float | None = None


class Forwarder:
    """Forwards to ``target`` (``tcp://host:port``) from an address of its own.

    ``cut_after(bytes, direction)`` breaks the next connection that carries so many bytes that way; several cuts
    happen one after the other, each on the connection that is there then.

    A black hole accepts connections and carries nothing, not even their end, as a network does that lost its way:
    what was sent into it arrives when it is healed, on connections that both ends may have given up meanwhile.

    A slow link carries ``bytes_per_s`` each way.
    """

    def __init__(self, target: str, bytes_per_s: float = float("inf")) -> None:
        host, _, port = target.removeprefix("tcp://").rpartition(":")
        self._target = (host, int(port))
        self._bytes_per_s = bytes_per_s
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()
        self._healed = threading.Condition(self._lock)
        self._holes: dict[str, float] = {}  # by direction: until when
        self._troubles: list[_Trouble] = []
        self._carried = 0
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self.connections = 0
        self.cuts_made = 0
        self.holes_made = 0
        self._is_closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_after(self, carried: int, direction: Direction) -> None:
        """Plan one more cut, when ``carried`` more bytes have gone in ``direction`` since the last cut."""
        with self._lock:
            self._troubles.append(_Trouble(carried, direction))

    def hole_after(self, carried: int, direction: Direction, hole_s: float) -> None:
        """Plan one more black hole of both directions, ``hole_s`` long, in the same line as the cuts."""
        with self._lock:
            self._troubles.append(_Trouble(carried, direction, hole_s))

    def hole(self, direction: Direction = "both", hole_s: float = float("inf")) -> None:
        """From now on carry nothing in ``direction``, for so long or until healed."""
        with self._lock:
            self._dig(direction, hole_s)

    def heal(self) -> None:
        """End all black holes."""
        with self._lock:
            self._holes.clear()
            self._healed.notify_all()

    def cut(self) -> None:
        """Break all connections now."""
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            self._break(pair)

    def close(self) -> None:
        self._is_closed = True
        self._listener.close()
        self.heal()
        self.cut()

    def _accept(self) -> None:
        while not self._is_closed:
            try:
                near, _ = self._listener.accept()
            except OSError:
                continue
            try:
                far = socket.create_connection(self._target, timeout=5.0)
            except OSError:
                near.close()  # a peer that found nobody is not left to wait
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
            while part := self._take(source, direction):
                if self._is_due(len(part), direction):
                    # Half of the last part still passes, so that the cut is inside a message.
                    sink.sendall(part[: len(part) // 2])
                    break
                sink.sendall(part)
        self._break(pair)

    def _take(self, source: socket.socket, direction: str) -> bytes:
        """The next part, or the end, when there is no black hole any more."""
        part = source.recv(16_384)
        time.sleep(len(part) / self._bytes_per_s)
        with self._healed:
            while (left_s := self._holes.get(direction, 0.0) - time.monotonic()) > 0:
                self._healed.wait(min(left_s, 3600.0))
        return part

    def _is_due(self, size: int, direction: str) -> bool:
        """Whether a cut is; a black hole that is due swallows what comes behind this part."""
        with self._lock:
            trouble = self._troubles[0] if self._troubles else None
            if trouble is None or trouble.direction not in (direction, "both"):
                return False
            self._carried += size
            if self._carried < trouble.carried:
                return False
            self._carried = 0
            del self._troubles[0]
            if trouble.hole_s is not None:
                self.holes_made += 1
                self._dig("both", trouble.hole_s)
                return False
            self.cuts_made += 1
            return True

    def _dig(self, direction: Direction, hole_s: float) -> None:
        for one in ("up", "down") if direction == "both" else (direction,):
            self._holes[one] = time.monotonic() + hole_s

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
