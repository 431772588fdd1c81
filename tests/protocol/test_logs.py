"""The two forms of the log, and what they tell of rows."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest

from genpool.protocol.logs import JsonFormatter, bind, configure, is_json, say
from genpool.protocol.messages import (
    Answer,
    Ask,
    Assign,
    AssignRun,
    Hold,
    Message,
    Outcome,
    Ping,
    Release,
    Result,
    Settle,
    Submit,
    SubmitRun,
)
from genpool.protocol.trace import trace
from genpool.worker import secret

KEY = "sk-proj-0123456789"


@contextmanager
def started(form: str, level: str = "info") -> Generator[io.StringIO]:
    """What is written to stderr, with the loggers as at the start of a command; then they are as they were."""
    stream = io.StringIO()
    root, ours = logging.getLogger(), logging.getLogger("genpool")
    handlers, levels, factory = root.handlers[:], (root.level, ours.level), logging.getLogRecordFactory()
    root.handlers[:] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        patch.setattr(sys, "excepthook", sys.excepthook)
        patch.setattr(secret, "_known", secret._Known())
        try:
            configure(level, form)
            yield stream
        finally:
            logging.captureWarnings(False)
            logging.setLogRecordFactory(factory)
            root.handlers[:] = handlers
            root.setLevel(levels[0])
            ours.setLevel(levels[1])


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def formatted(*arguments: Any, **extra: Any) -> str:
    record = logging.LogRecord("genpool.x", logging.WARNING, "", 0, arguments[0], arguments[1:], None)
    record.__dict__.update(extra)
    return JsonFormatter().format(record)


def test_text_is_as_it_was() -> None:
    with started("text") as stderr:
        logging.getLogger("genpool.broker").info("listening on %s", "here", extra={"fields": {"llm": "qwen"}})
        say("done")
        assert not is_json()
        first, second = stderr.getvalue().splitlines()
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO genpool.broker: listening on here", first)
        assert second == "genpool: done"


def test_json_is_one_object_a_line() -> None:
    with started("json") as stderr:
        bind(host="gpu1", llm="qwen")
        logging.getLogger("genpool.worker").warning(
            "it is %s", "so", extra={"fields": {"rows": ["a1"], "llm": "other"}}
        )
        logging.getLogger("httpx").info("every request")
        logging.getLogger("genpool").debug("too fine")
        say("waiting")
        said, sentence = lines(stderr)
        assert is_json()
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", said.pop("time"))
        assert isinstance(said.pop("pid"), int)
        assert said == {
            "level": "warning",
            "logger": "genpool.worker",
            "message": "it is so",
            "host": "gpu1",
            "llm": "other",
            "rows": ["a1"],
        }
        assert (sentence["level"], sentence["logger"], sentence["message"]) == ("info", "genpool", "waiting")


def test_a_sentence_for_who_runs_the_command_is_there_at_every_level() -> None:
    with started("json", "error") as stderr:
        say("12 rows are written")
        assert [line["message"] for line in lines(stderr)] == ["12 rows are written"]


@pytest.mark.parametrize("text", ["a\nb", "a\rb", "\x1b[2J", "\u202eevil", "\ud800", '"}', "\u2028"])
def test_no_text_of_others_forges_a_line(text: str) -> None:
    line = formatted("%s", text, fields={"llm": text})
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["message"] == text
    assert json.loads(line)["llm"].isprintable()


def test_a_field_does_not_stand_in_the_place_of_what_every_line_has() -> None:
    line = json.loads(formatted("said", fields={"level": "x", "message": "x", "other": {1, 2}}))
    assert (line["level"], line["message"], line["other"]) == ("warning", "said", "{1, 2}")


def test_an_exception_has_a_field_of_its_own() -> None:
    with started("json") as stderr:
        try:
            raise ValueError("it broke\nin two lines")
        except ValueError:
            logging.getLogger("genpool.client").exception("a row failed")
        (line,) = lines(stderr)
        assert line["message"] == "a row failed"
        assert line["exception"].startswith("Traceback (most recent call last):\n")
        assert line["exception"].endswith("ValueError: it broke\nin two lines")


def test_a_defect_and_a_warning_are_lines_too() -> None:
    with started("json") as stderr:
        error = KeyError("x")
        sys.excepthook(KeyError, error, None)
        logging.getLogger("py.warnings").warning("%s", "x.py:1: DeprecationWarning: old")
        defect, warning = lines(stderr)
        assert (defect["level"], defect["exception"]) == ("critical", "KeyError: 'x'")
        assert warning["logger"] == "py.warnings"


@pytest.mark.parametrize("form", ["text", "json"])
def test_secrets_are_in_no_form(form: str) -> None:
    with started(form) as stderr:
        secret.redact_logs()
        secret.hide(KEY, 'qu"ote\\d-secret')
        log = logging.getLogger("genpool.worker")
        fields = {"llm": f"llm {KEY}", "rows": [f"row {KEY}"], "deep": {"a": [KEY]}}
        log.warning("401: %s", f'{KEY} qu"ote\\d-secret', extra={"fields": fields})
        try:
            raise ValueError(f"no {KEY}")
        except ValueError:
            log.exception("a row failed")
        assert "[secret]" in stderr.getvalue()
        assert KEY not in stderr.getvalue()
        assert "d-secret" not in stderr.getvalue()


# Rows.

IDS = [bytes([number]) * 16 for number in (0xAB, 0xCD)]
SHORT = ["abababababab", "cdcdcdcdcdcd"]


@pytest.mark.parametrize(
    ("message", "text", "fields"),
    [
        (
            Submit([SubmitRun("qwen", "input", 1, b"", None, False, IDS, [b"", b""])]),
            "sent: Submit of 'qwen': rows abababababab cdcdcdcdcdcd",
            {"rows": SHORT, "llm": "qwen"},
        ),
        (
            Assign([AssignRun("input", 1, b"", None, 0, 7, IDS, [b"", b""])]),
            "sent: Assign: rows abababababab cdcdcdcdcdcd, executions 7 8",
            {"rows": SHORT, "executions": [7, 8]},
        ),
        (
            Result([7, 9], [Outcome.DONE, Outcome.RAISED], 0, 1, [b"", b""]),
            "sent: Result: rows abababababab ?, executions 7 9, outcomes done raised",
            {"rows": [SHORT[0], "?"], "executions": [7, 9], "outcomes": ["done", "raised"]},
        ),
        (
            Answer(IDS, [Outcome.DONE, Outcome.FAILED], [0, 1], [b"", b""]),
            "sent: Answer: rows abababababab cdcdcdcdcdcd, outcomes done failed",
            {"rows": SHORT, "outcomes": ["done", "failed"]},
        ),
        (Release(IDS[:1]), "sent: Release: rows abababababab", {"rows": SHORT[:1]}),
        (
            Hold([7], IDS[:1], [True], False),
            "sent: Hold: rows abababababab, executions 7",
            {"rows": SHORT[:1], "executions": [7]},
        ),
        (Hold([], [], [], False), "sent: Hold: no rows", {}),
        (Settle([8]), "sent: Settle: executions 8", {"executions": [8]}),
    ],
)
def test_a_message_tells_its_rows(
    caplog: pytest.LogCaptureFixture, message: Message, text: str, fields: dict[str, object]
) -> None:
    caplog.set_level("DEBUG", "genpool.x")
    trace(logging.getLogger("genpool.x"), "sent", message, {7: IDS[0]}.get, worker="gpu1:7")
    (record,) = caplog.records
    assert record.getMessage() == text
    assert record.__dict__["fields"] == {"worker": "gpu1:7", **fields}


def test_messages_about_no_rows_are_not_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "genpool.x")
    for message in (Ping(3), Ask()):
        trace(logging.getLogger("genpool.x"), "sent", message)
    assert not caplog.records
