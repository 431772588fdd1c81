"""A worker process for a client on the same machine: the loader comes over a private socket, not by its name.

The client starts ``main`` in a new session and speaks first: a head (the broker, the LLM's name), then the pickled
task and loader. Afterwards the socket is the lifeline: when it closes, the client is gone and this process ends,
with every process that its engine has started.
"""

from __future__ import annotations

import os
import pickle
import socket
import sys
from contextlib import suppress

from .. import __version__
from ..protocol.content import Failure, pack_failure, unpack
from ..protocol.framed import FAILED, LENGTH, READY, framed
from ..protocol.logs import TEXT, configure, open_standard_streams
from .call import builtin_name, message_of, traceback_of
from .llm import LLM
from .loader import load_user_llm
from .shell import WorkerSettings, run


def main(descriptor: int) -> None:
    """Serve one LLM for the client at the other end of ``descriptor``, and end with it."""
    open_standard_streams()
    configure("warning", os.environ.get("GENPOOL_LOG_FORMAT", TEXT))
    os.set_inheritable(descriptor, False)
    owner = socket.socket(fileno=descriptor)
    head = unpack(_read(owner))
    pickled = _read(owner)
    settings = WorkerSettings(
        llm=head["llm"],
        broker=head["broker"],
        expose_tracebacks=True,
        lifeline=descriptor,
        release=__version__,
    )
    sys.exit(run(settings, lambda: _load(pickled), lambda error: _tell(owner, error)))


def _load(pickled: bytes) -> LLM:
    # From the process that started this one, over a socket that nobody else can reach.
    task, function = pickle.loads(pickled)
    return load_user_llm(function, task)


def _tell(owner: socket.socket, error: BaseException | None) -> None:
    """How loading ended. After a failure the owner ends this process by force."""
    with suppress(Exception):  # it may be closed or full, or there is none; and a loader may have put anything there
        sys.stdout.flush()
    owner.sendall(framed(READY if error is None else FAILED + pack_failure(_failure(error))))


def _failure(error: BaseException) -> Failure:
    kind, trace = type(error).__name__, traceback_of(error)
    return Failure(kind, message_of(error), builtin_name(error), trace, str(os.getpid()), socket.gethostname())


def _read(owner: socket.socket) -> bytes:
    """One framed content. Ends the process when the client went away in the middle of it."""
    (length,) = LENGTH.unpack(_read_exactly(owner, LENGTH.size))
    return _read_exactly(owner, length)


def _read_exactly(owner: socket.socket, length: int) -> bytes:
    content = bytearray()
    while len(content) < length:
        part = owner.recv(min(length - len(content), 1 << 20))
        if not part:
            sys.exit(0)
        content += part
    return bytes(content)
