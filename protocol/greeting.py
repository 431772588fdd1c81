"""Which security mechanism a ZeroMQ socket speaks, read from its greeting (ZMTP 3.1, ZeroMQ's RFC 37)."""

from __future__ import annotations

import socket
import time

# Signature and version. What stands behind them, the mechanism among it, is held back: the other end, which has said
# all of its own greeting by then, would compare the two and might hang up before its own has left.
_OUR_PART = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x01"

_GREETING_BYTES = 64
_MECHANISM = slice(12, 32)


def mechanism_at(host: str, port: int, timeout_s: float) -> str | None:
    """``NULL``, ``CURVE``, …: what the socket at ``host`` speaks; None if nothing there speaks ZMTP within the time."""
    deadline = time.monotonic() + timeout_s
    greeting = b""
    try:
        with socket.create_connection((host, port), timeout_s) as connection:
            connection.sendall(_OUR_PART)
            while len(greeting) < _GREETING_BYTES:
                connection.settimeout(max(0.001, deadline - time.monotonic()))
                part = connection.recv(_GREETING_BYTES - len(greeting))
                if not part:
                    return None
                greeting += part
    # A name with an empty or too long part is a UnicodeError.
    except (OSError, UnicodeError):
        return None
    if greeting[:1] + greeting[9:10] != b"\xff\x7f":
        return None
    return greeting[_MECHANISM].rstrip(b"\0").decode(errors="replace")
