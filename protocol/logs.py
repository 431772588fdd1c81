"""The log of a command, on stderr: lines for people, or one JSON object a line for programs."""

from __future__ import annotations

import logging
import os
import sys
import time
from types import TracebackType
from typing import cast

import click

from .printable import printable

TEXT, JSON = "text", "json"

_STDERR = 2

_TEXT_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def open_standard_streams() -> None:
    """Those that are closed lead nowhere from now on. To be called before any file is opened, which would have the
    number of one: what an engine writes would go into a socket of ours, and no process that we start could be given it.
    """
    while (opened := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        os.set_inheritable(opened, True)
    os.close(opened)


def configure(level: str, form: str) -> None:
    """Write genpool's log to stderr in ``form``, "text" or "json"; ``level`` is a name of logging.

    Libraries log every request at the level info; of theirs, only what needs attention is shown.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == JSON else logging.Formatter(_TEXT_FORMAT))
    libraries = level if level in ("debug", "error") else "warning"
    logging.basicConfig(level=libraries.upper(), handlers=[handler])
    logging.getLogger("genpool").setLevel(level.upper())
    if form == JSON:
        logging.captureWarnings(True)
        sys.excepthook = _log_defect


def bind(**fields: object) -> None:
    """Have every line of this process tell these, where lines are JSON: what it serves, and where."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, JsonFormatter):
            handler.formatter.bound.update(fields)


def is_json() -> bool:
    """Whether the log of this process is JSON."""
    return any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger().handlers)


def say(text: str, level: int = logging.INFO, *, lead: str = "genpool: ") -> None:
    """A sentence for whoever runs the command, on stderr whatever the level of the log; in JSON where the log is.

    ``lead`` stands before it in text alone.
    """
    if not is_json():
        click.echo(f"{lead}{text}", err=True)
        return
    record = logging.getLogger("genpool").makeRecord("genpool", level, "", 0, "%s", (text,), None)
    for handler in logging.getLogger().handlers:
        handler.handle(record)


class JsonFormatter(logging.Formatter):
    """A record as a JSON object on one line.

    It has ``time`` (ISO 8601, UTC), ``level``, ``logger``, ``message`` and ``pid``, what is ``bound`` to this process,
    what the event has as ``extra={"fields": {...}}``, and an ``exception`` where there is one. All that is no visible
    ASCII is escaped, so that no text of another process forges a line.
    """

    def __init__(self) -> None:
        super().__init__()
        # Imported by who has JSON lines: a start of a command is measured.
        from json import JSONEncoder

        self._encode = JSONEncoder(default=str, ensure_ascii=True).encode
        self.bound: dict[str, object] = {}

    def format(self, record: logging.LogRecord) -> str:
        said = cast("dict[str, object]", getattr(record, "fields", None) or {})
        line: dict[str, object] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
        }
        for name, value in (*said.items(), *self.bound.items()):
            line.setdefault(name, printable(value) if isinstance(value, str) else value)
        if record.exc_info and record.exc_info[0] is not None:
            # A process with secrets has put it there without them: see worker/secret.py.
            line["exception"] = record.exc_text or self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        return self._encode(line)


def _log_defect(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        logging.getLogger("genpool").critical("this process ends by a defect", exc_info=(kind, error, trace))
