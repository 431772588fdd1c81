"""What can go wrong, as a tree with one root: a branch for each thing that a caller can do about it."""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any


class GenpoolError(Exception):
    """The root of every error that genpool raises on purpose."""


class ConfigurationError(GenpoolError, ValueError):
    """Raised when an option or an argument given by the user cannot be used: correct it and call again."""


class DecodeError(GenpoolError):
    """Raised when bytes from a peer are no message of this protocol; the text says what was wrong."""


class NoBroker(GenpoolError, ConnectionError):
    """Raised when no broker answered at the address within the time given."""


class Refused(GenpoolError, ConnectionError):
    """Raised when the broker will not talk to this peer (its version, say): trying again does not help."""


class UnknownLLM(GenpoolError, LookupError):
    """Raised when nobody has announced an LLM of that name within the time given; the text lists who has."""


class LLMLost(GenpoolError):
    """Raised for a row whose LLM nobody has served for the call's ``lost_after_s``; the text says what was missing."""


class Expired(GenpoolError, TimeoutError):
    """Raised when a row had no answer within the call's ``timeout``."""


class WorkerLost(GenpoolError):
    """Raised for a row that ended the worker processes which ran it, the last time alone."""


class Closed(GenpoolError, RuntimeError):
    """Raised when an LLM or a pool is used after its ``teardown()``."""


class RowError(GenpoolError, ValueError):
    """Raised by an engine for a deterministic fault of one row (bad input, context too long): never tried again."""


class EngineUnwell(GenpoolError):
    """Raised by an engine when its server, key or quota is at fault and no row is: rows are handed back uncharged."""


class EngineDead(GenpoolError):
    """Raised by an engine that cannot go on: its process must end, and a supervisor may start it anew."""


class RemoteError(GenpoolError):
    """One row's failure, as told by the worker, the broker or the client itself.

    Attributes:
        type_name, message, traceback: of the exception, as text. No class is made from a name that came from a peer.
            The traceback is empty where the worker keeps it to its log (see ``genpool worker --expose-tracebacks``).
        kind: the nearest built-in exception (or, for a failure in this process, genpool error) that it was.
        llm, worker, host: whose failure it was; empty where nobody ran the row.
        attempts: how many executions of the row were charged, the last included.
        others: further failures of the same input, in other LLMs' shares.
    """

    def __init__(
        self,
        type_name: str,
        message: str,
        *,
        kind: type[BaseException] = Exception,
        traceback: str = "",
        llm: str = "",
        worker: str = "",
        host: str = "",
        attempts: int = 0,
    ) -> None:
        super().__init__(type_name, message)
        self.type_name, self.message, self.kind, self.traceback = type_name, message, kind, traceback
        self.llm, self.worker, self.host, self.attempts = llm, worker, host, attempts
        self.others: list[RemoteError] = []

    def __str__(self) -> str:
        where = f" (LLM {self.llm!r}" if self.llm else ""
        where += f", worker {self.host}:{self.worker}" if where and self.worker else ""
        where += f", after {self.attempts} attempts" if where and self.attempts > 1 else ""
        where += "; see the worker's log" if where and self.worker and not self.traceback else ""
        return f"{self.type_name}: {self.message}{where + ')' if where else ''}"


class GenerationError(GenpoolError):
    """Raised when rows of a call have failed; what was finished is not lost.

    Where all failures are of one type, the error is an instance of that type as well: of the built-in that a remote
    exception was (``ValueError``, say), or of the genpool error that ended the rows here (``UnknownLLM``).

    Attributes:
        failures: index of the input -> its RemoteError.
        partial: for each input, the outputs that were finished, in order (all of them where nothing failed).
    """

    def __init__(self, failures: Mapping[int, RemoteError], partial: Sequence[Sequence[Any]]) -> None:
        first = failures[min(failures)]
        count = f"{len(failures)} of {len(partial)} rows failed; row {min(failures)}: "
        text = (count if len(partial) > 1 else "") + str(first)
        try:
            super().__init__(text)
        except TypeError:  # what is mixed in wants more, as UnicodeDecodeError does
            Exception.__init__(self, text)
        self.failures = dict(failures)
        self.partial = [list(outputs) for outputs in partial]

    def __str__(self) -> str:
        return str(self.args[0])

    def __reduce__(self) -> tuple[Any, ...]:
        return generation_error, (self.failures, self.partial)


def generation_error(failures: Mapping[int, RemoteError], partial: Sequence[Sequence[Any]]) -> GenerationError:
    """The GenerationError for these failures, also of their common type where they have one."""
    every = [one for error in failures.values() for one in (error, *error.others)]
    kinds = {error.kind for error in every}
    return _generation_error_of(kinds.pop() if len(kinds) == 1 else Exception)(failures, partial)


# The first two end a generator, a coroutine or a loop in silence; a group must hold exceptions.
_NEVER_MIXED_IN = (StopIteration, StopAsyncIteration, ExceptionGroup)


@cache
def _generation_error_of(kind: type[BaseException]) -> type[GenerationError]:
    if issubclass(GenerationError, kind) or not issubclass(kind, Exception) or issubclass(kind, _NEVER_MIXED_IN):
        return GenerationError
    return type("GenerationError", (GenerationError, kind), {"__module__": __name__, "__doc__": kind.__doc__})


_KNOWN_ERRORS: dict[str, type[Exception]] = {
    name: kind for name, kind in vars(builtins).items() if isinstance(kind, type) and issubclass(kind, Exception)
} | {"WorkerLost": WorkerLost}


def known_error(name: str) -> type[Exception]:
    """The built-in exception (or WorkerLost) of that name, from a closed table; Exception for any other name."""
    return _KNOWN_ERRORS.get(name, Exception)
