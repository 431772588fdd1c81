"""Messages in the log at the level debug: which rows are in them, so that a row can be followed over all processes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, cast

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

_COLUMNS = ("rows", "executions", "outcomes")

# Whose row an execution is, where that is known.
RowOf = Callable[[int], bytes | None]


def short(row_id: bytes) -> str:
    """A row's id as logs have it."""
    return row_id.hex()[:_DIGITS]


def trace(log: logging.Logger, way: str, message: Message, row_of: RowOf | None = None, **fields: object) -> None:
    """Log a message that carries or names rows. Ask ``log.isEnabledFor(DEBUG)`` first: this takes time for each row.

    ``way`` says whence it comes or where it goes; ``fields`` are of the peer.
    """
    columns = _columns(message)
    if columns is None:
        return
    if not columns.get("rows") and row_of is not None:
        found = [row_of(cast(int, number)) for number in columns.get("executions", ())]
        if any(found):
            columns["rows"] = ["?" if row_id is None else short(row_id) for row_id in found]
    told = {name: columns[name] for name in _COLUMNS if columns.get(name)}
    text = ", ".join(f"{name} {' '.join(map(str, column))}" for name, column in told.items()) or "no rows"
    llms = {run.llm for run in message.runs} if isinstance(message, Submit) else set[str]()
    of = f" of {', '.join(map(repr, sorted(llms)))}" if llms else ""
    if len(llms) == 1:
        fields["llm"] = llms.pop()
    log.debug("%s: %s%s: %s", way, type(message).__name__, of, text, extra={"fields": {**fields, **told}})


def _columns(message: Message) -> dict[str, Sequence[object]] | None:
    """What the message says of each row; None where it is not about rows."""
    match message:
        case Submit():
            return {"rows": _rows(message.runs)}
        case Assign():
            runs = message.runs
            return {
                "rows": _rows(runs),
                "executions": [run.first_execution + at for run in runs for at in range(len(run.ids))],
            }
        case Answer():
            return {"rows": _rows([message]), "outcomes": _named(message.outcomes)}
        case Result():
            return {"executions": message.executions, "outcomes": _named(message.outcomes)}
        case Hold():
            return {"rows": _rows([message]), "executions": message.executions}
        case Settle() | Resend():
            return {"executions": message.executions}
        case Release() | Await() | Missing() | Busy():
            return {"rows": _rows([message])}
        case _:
            return None


class _HasIds(Protocol):
    ids: list[bytes]


def _rows(records: Sequence[_HasIds]) -> list[str]:
    return [short(row_id) for record in records for row_id in record.ids]


def _named(outcomes: Iterable[int]) -> list[str]:
    return [Outcome(outcome).name.lower() for outcome in outcomes]
