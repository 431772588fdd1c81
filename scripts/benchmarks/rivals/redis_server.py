"""A Redis of a rival's own, on a free port of the loopback interface, that keeps nothing on disk, and its workers."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager

from commands import until

# The variable in which workers find the server.
REDIS = "RIVAL_REDIS"


@contextmanager
def running_workers(redis: str, *arguments: str) -> Generator[None]:
    """``python -m ARGUMENTS``, told to stop at the end of the block. It finds ``redis`` in its environment."""
    process = subprocess.Popen([sys.executable, "-m", *arguments], env={**os.environ, REDIS: redis})
    try:
        yield
    finally:
        process.terminate()
        process.wait()


@contextmanager
def running_redis() -> Generator[str]:
    """The server's URL. The server ends with the block."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    options = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no"]
    process = subprocess.Popen(["redis-server", *options], stdin=subprocess.DEVNULL)
    try:
        until(lambda: _listens(port) or process.poll() is not None, "redis-server")
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0
