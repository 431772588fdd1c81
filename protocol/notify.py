"""What the service manager is told, where there is one: sd_notify(3), a datagram to $NOTIFY_SOCKET for each news."""

from __future__ import annotations

import os
import socket
from enum import Enum, auto

from .printable import printable

# Of the environment: for this process alone, so that no child speaks in its name.
VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")

# While it starts, a service has the time that its unit gives it, or so long from when it last asked for more. A larger
# value notices later that it hangs with the interpreter's lock held; a smaller one ends a model that loads so.
_EXTENSION_S = 120.0
_EXTEND_EVERY_S = 10.0

# Signs of life come so often within the time that the watchdog allows.
_SIGNS_PER_TIMEOUT = 4

_STATUS_EVERY_S = 2.0
_LONGEST_STATUS = 500


class Phase(Enum):
    """Where the life of a service stands."""

    STARTING = auto()
    SERVING = auto()
    STOPPING = auto()


class Notifier:
    """Tells the manager at ``address``; ``watchdog_s`` is how long it may hear nothing, None for ever.

    It never blocks: what cannot be sent is tried again at the next tick.
    """

    def __init__(self, address: str, watchdog_s: float | None) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._watchdog_s = watchdog_s
        self._phase = Phase.STARTING
        self._status = ""
        self._next_sign = self._next_extension = self._next_status = float("-inf")
        self._unsent: dict[str, str] = {}

    def tick(self, now: float, phase: Phase, status: str, *, is_healthy: bool = True) -> None:
        """Time has passed. Call it many times a second; ``status`` is a line for people."""
        news = self._unsent
        if phase is not self._phase:
            self._phase = phase
            news["STOPPING" if phase is Phase.STOPPING else "READY"] = "1"
            self._next_status = now
        if phase is Phase.STARTING and is_healthy and now >= self._next_extension:
            self._next_extension = now + _EXTEND_EVERY_S
            news["EXTEND_TIMEOUT_USEC"] = str(int(_EXTENSION_S * 1e6))
        if status != self._status and now >= self._next_status:
            self._next_status = now + _STATUS_EVERY_S
            self._status = status
            news["STATUS"] = printable(status)[:_LONGEST_STATUS]
        if self._watchdog_s is not None and is_healthy and now >= self._next_sign:
            self._next_sign = now + self._watchdog_s / _SIGNS_PER_TIMEOUT
            news["WATCHDOG"] = "1"
        if news:
            self._send()

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()

    def _send(self) -> None:
        text = "\n".join(f"{name}={value}" for name, value in self._unsent.items())
        try:
            self._socket.sendto(text.encode(), self._address)
        except OSError:
            return  # the manager is busy, or being replaced
        self._unsent.clear()


def notifier() -> Notifier | None:
    """The one for this process, if it has a manager that listens. From then on no child finds the way to it."""
    address, watchdog_us, watchdog_pid = (os.environ.pop(name, "") for name in VARIABLES)
    if not address.startswith(("/", "@")):
        return None
    is_watched = watchdog_us.isdecimal() and int(watchdog_us) > 0 and watchdog_pid in ("", str(os.getpid()))
    return Notifier(address, int(watchdog_us) / 1e6 if is_watched else None)
