from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from genpool.protocol.errors import ConfigurationError
from genpool.worker.command import worker
from genpool.worker.setting import FileSettings

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    path = tmp_path / "worker.toml"

    def write(text: str) -> Path:
        path.write_text(text)
        return path

    return write


def parsed(path: Path, *arguments: str) -> dict[str, Any]:
    """What the command gets."""
    given = ["--config", str(path), *arguments]
    return worker.make_context("worker", given, auto_envvar_prefix="GENPOOL_WORKER").params


def test_it_says_what_the_options_say(write: Write) -> None:
    path = write("""
        llm = "qwen"
        broker = "head:5555"
        engine = "openai"
        model = "m"
        rpm = 500
        task = "my:task"
        batch-size = 4
        concurrency = 128
        wait = 2
        heartbeat-timeout = 2.5
        row_timeout = 60
        expose-tracebacks = true
        [set]
        base_url = "http://127.0.0.1:8000/v1"
    """)
    said = parsed(path)
    assert said.pop("config") == FileSettings(path, {"base_url": "http://127.0.0.1:8000/v1"})
    assert {name: value for name, value in said.items() if value is not None} == {
        "llm": "qwen",
        "broker": "head:5555",
        "engine": "openai",
        "model": "m",
        "pairs": (),
        "rpm": 500.0,
        "task": "my:task",
        "batch_size": 4,
        "concurrency": 128,
        "wait": 2.0,
        "heartbeat_timeout": 2.5,
        "row_timeout": 60.0,
        "expose_tracebacks": True,
        "restart": False,
    }


def test_the_command_line_and_the_environment_go_before_it(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write('llm = "a"\nconcurrency = 1\nbatch-size = 2\nbroker = "one:1"')
    monkeypatch.setenv("GENPOOL_WORKER_CONCURRENCY", "5")
    monkeypatch.setenv("GENPOOL_BROKER", "two:2")
    said = parsed(path, "--llm", "b")
    assert (said["llm"], said["concurrency"], said["batch_size"], said["broker"]) == ("b", 5, 2, "two:2")


def test_the_environment_may_name_it(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENPOOL_WORKER_CONFIG", str(write('llm = "a"')))
    assert worker.make_context("worker", [], auto_envvar_prefix="GENPOOL_WORKER").params["llm"] == "a"


def test_tracebacks_are_exposed_only_when_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def said(*arguments: str) -> bool:
        given = ["--llm", "a", *arguments]
        return worker.make_context("worker", given, auto_envvar_prefix="GENPOOL_WORKER").params["expose_tracebacks"]

    assert (said(), said("--expose-tracebacks")) == (False, True)
    monkeypatch.setenv("GENPOOL_WORKER_EXPOSE_TRACEBACKS", "1")
    assert said()


def test_settings_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENPOOL_WORKER_SET", "top_p=0.5 stop=a,b")
    said = worker.make_context("worker", ["--llm", "a"], auto_envvar_prefix="GENPOOL_WORKER").params
    assert said["pairs"] == ("top_p=0.5", "stop=a,b")


def test_what_is_needed_and_missing_is_still_told(write: Write) -> None:
    with pytest.raises(click.MissingParameter):
        parsed(write('engine = "openai"'))


def test_without_one_there_are_no_settings() -> None:
    assert worker.make_context("worker", ["--llm", "a"]).params["config"] is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("colour = 1", "there is no option 'colour': there are batch-size, broker, concurrency,"),
        ("lifeline = 1", "there is no option 'lifeline'"),
        ('config = "other.toml"', "there is no option 'config'"),
        ('concurrency = "4"', "concurrency must be a whole number, got '4'"),
        ("concurrency = 4.0", "concurrency must be a whole number, got 4.0"),
        ("concurrency = true", "concurrency must be a whole number, got True"),
        ("concurrency = 0", "concurrency: 0 is not in the range x>=1"),
        ('wait = "long"', "wait must be a number, got 'long'"),
        ("wait = nan", "wait: nan is not a finite number"),
        ("row-timeout = inf", "row-timeout: inf is not a finite number"),
        ("llm = 7", "llm must be a text, got 7"),
        ('engine = "magic"', "engine: 'magic' is not one of"),
        ('set = "temperature=1"', r"set must be a table of the engine's settings: write \[set\]"),
        ('api_key = "sk-1"', "api_key is a secret"),
        ('[set]\napi_key = "sk-1"', "api_key is a secret"),
        ('[set]\nbase_url = "http://me:sk-1@host/v1"', "base_url has a password in it"),
        ('[set]\nextra_body = {api_key = "sk-1"}', "extra_body.api_key is a secret"),
        ('broker = "tcp://me:sk-1@host:5555"', "broker has a password in it"),
        ('expose-tracebacks = "yes"', "expose-tracebacks must be true or false, got 'yes'"),
        ("expose-tracebacks = 1", "expose-tracebacks must be true or false, got 1"),
        ("llm = ", "is no TOML file: "),
        ("a = 1\na = 2", "is no TOML file: "),
    ],
)
def test_a_mistake_is_told_with_the_file_and_the_key(write: Write, text: str, sentence: str) -> None:
    path = write(text)
    with pytest.raises(ConfigurationError, match=sentence) as raised:
        parsed(path)
    assert str(raised.value).startswith(str(path))
    assert "sk-1" not in str(raised.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"the configuration .*absent\.toml cannot be read: No such file"):
        parsed(tmp_path / "absent.toml")


def test_a_file_that_is_no_text_is_named(write: Write) -> None:
    path = write("")
    path.write_bytes(b"llm = '\xff'")
    with pytest.raises(ConfigurationError, match="is no TOML file"):
        parsed(path)
