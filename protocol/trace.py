"""Messages in the log at the level debug: which rows are in them, so that a row can be followed over all processes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from .messages import (
    Answer,
    Assign,
    Await,
    Busy,
    Hold,
    Message,
    Missing,
    Outcome,
    Release,
    Resend,
    Result,
    Settle,
    Submit,
)

# Of the 32 hexadecimal digits of a row's id. Who knows a whole id could claim the row; of a million rows, 12 digits
# are different for all.
_DIGITS = 12

# Whose row an execution is, where that is known.
RowOf = Callable[[int], bytes | None]


def short(row_id: bytes) -> str:
    """A row's id as logs have it."""
    return row_id.hex()[:_DIGITS]


def trace(log: logging.Logger, way: str, message: Message, row_of: RowOf | None = None, **fields: object) -> None:
    """Log a message that carries or names rows. Ask ``log.isEnabledFor(DEBUG)`` first: this takes time for each row.

    ``way`` says whence it comes or where it goes; ``fields`` are of the peer.
    """
    rows: list[str] = []
    executions: list[int] = []
    outcomes: list[str] = []
    llms: list[str] = []
    match message:
        case Submit():
            rows = [short(row_id) for run in message.runs for row_id in run.ids]
            llms = sorted({run.llm for run in message.runs})
        case Assign():
            rows = [short(row_id) for run in message.runs for row_id in run.ids]
            executions = [run.first_execution + at for run in message.runs for at in range(len(run.ids))]
        case Answer():
            rows = [short(row_id) for row_id in message.ids]
            outcomes = _named(message.outcomes)
        case Result():
            executions, outcomes = message.executions, _named(message.outcomes)
        case Hold():
            rows, executions = [short(row_id) for row_id in message.ids], message.executions
        case Settle() | Resend():
            executions = message.executions
        case Release() | Await() | Missing() | Busy():
            rows = [short(row_id) for row_id in message.ids]
        case _:
            return
    if not rows and row_of is not None:
        found = [row_of(number) for number in executions]
        if any(found):
            rows = ["?" if row_id is None else short(row_id) for row_id in found]
    columns = {"rows": rows, "executions": executions, "outcomes": outcomes}
    fields |= {name: column for name, column in columns.items() if column}
    if len(llms) == 1:
        fields["llm"] = llms[0]
    told = ", ".join(f"{name} {_joined(column)}" for name, column in columns.items() if column) or "no rows"
    of = f" of {', '.join(map(repr, llms))}" if llms else ""
    log.debug("%s: %s%s: %s", way, type(message).__name__, of, told, extra={"fields": fields})


def _named(outcomes: Iterable[int]) -> list[str]:
    return [Outcome(outcome).name.lower() for outcome in outcomes]


def _joined(column: Iterable[object]) -> str:
    return " ".join(map(str, column))
