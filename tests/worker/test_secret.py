from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest

from genpool.protocol.secret import has_login
from genpool.worker import secret as module
from genpool.worker.secret import hide, hide_environment, hide_login, redact_logs, redacted

KEY = "sk-proj-0123456789"


@pytest.fixture(autouse=True)
def _own_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test hides is no secret of the others."""
    monkeypatch.setattr(module, "_known", module._Known())


def test_what_is_hidden_is_found_wherever_it_stands() -> None:
    assert redacted(f"no {KEY}") == f"no {KEY}"
    hide(KEY)
    assert redacted(f'401 {{"key": "Bearer {KEY}"}} ({KEY})') == '401 {"key": "Bearer [secret]"} ([secret])'


def test_a_secret_that_begins_like_another_leaves_nothing_of_it() -> None:
    hide("12345678")
    hide("12345678-and-more")
    assert redacted("a 12345678-and-more b 12345678 c") == "a [secret] b [secret] c"


def test_a_secret_is_found_as_it_stands_in_an_address() -> None:
    hide("p+ss/w=rd?")
    assert redacted("https://x/?key=p%2Bss%2Fw%3Drd%3F&n=1") == "https://x/?key=[secret]&n=1"


@pytest.mark.parametrize("word", ["", "none", "EMPTY", "x"])
def test_a_word_that_stands_for_a_key_hides_nothing(word: str) -> None:
    hide(word)
    assert redacted("none EMPTY x") == "none EMPTY x"


def test_the_environment_has_secrets_by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["SOME_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "client_secret"]
    for name in names:
        monkeypatch.setenv(name, f"value of {name}")
    monkeypatch.setenv("KEYBOARD", "value of KEYBOARD")
    hide_environment()
    assert {redacted(f"value of {name}") for name in names} == {"[secret]"}
    assert redacted("value of KEYBOARD") == "value of KEYBOARD"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:pw@host/v1", "http://[secret]@host/v1"),
        ("POST 'https://me:p:w@[::1]:80/v1' now", "POST 'https://[secret]@[::1]:80/v1' now"),
        ("http://me:p@w@host", "http://[secret]@host"),
        ("(http://:pw@host)", "(http://[secret]@host)"),
    ],
)
def test_a_login_in_an_address_is_seen_without_being_known(text: str, shown: str) -> None:
    assert has_login(text)
    assert redacted(text) == shown


@pytest.mark.parametrize(
    "text", ["http://host:80/v1", "http://host/a:b@c", "http://me@host/", "qwen:7b@sha256:0", "http://host/?a=x:y@z"]
)
def test_what_only_looks_like_a_login_stays(text: str) -> None:
    assert not has_login(text)
    assert redacted(text) == text


def test_a_password_is_hidden_on_its_own_and_as_a_request_carries_it() -> None:
    hide_login("http://me:pass%40word@host:80/v1")
    hide_login("http://me@host")
    assert redacted("pass@word pass%40word Basic bWU6cGFzc0B3b3Jk me") == "[secret] [secret] Basic [secret] me"


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """What a handler of somebody's own writes."""
    stream, factory = io.StringIO(), logging.getLogRecordFactory()
    handler = logging.StreamHandler(stream)
    log = logging.getLogger("somebody")
    log.addHandler(handler)
    yield stream
    log.removeHandler(handler)
    logging.setLogRecordFactory(factory)


def test_logs_have_secrets_neither_in_their_lines_nor_in_tracebacks(
    logged: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", KEY)
    redact_logs()
    try:
        raise ValueError(f"refused {KEY}")
    except ValueError:
        logging.getLogger("somebody").exception("with %s at %s", KEY, "http://me:pw@host")
    lines = logged.getvalue().splitlines()
    assert lines[:2] == ["with [secret] at http://[secret]@host", "Traceback (most recent call last):"]
    assert lines[-1] == "ValueError: refused [secret]"
