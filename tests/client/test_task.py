"""Tasks by the words of a command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from genpool import ChatTask, PreferenceTask, TextGenerationTask
from genpool.client.task import client_task
from genpool.protocol.errors import ConfigurationError

MODULE = """
from genpool import TextGenerationTask

class Mine(TextGenerationTask):
    pass

task = Mine("mine")
number = 3

def broken():
    raise RuntimeError("no such thing")
"""


def test_without_words_the_task_is_the_llms_own() -> None:
    assert client_task(None, None) is None


def test_a_system_prompt_asks_for_text_generation() -> None:
    assert client_task("text-generation", None) == TextGenerationTask()
    assert client_task(None, "Be brief.") == TextGenerationTask(system_prompt="Be brief.")
    assert client_task("text-generation", "") == TextGenerationTask(system_prompt="")


def test_ready_made_tasks_have_names_and_take_a_system_prompt() -> None:
    assert client_task("chat", None) == ChatTask()
    assert client_task("preference", None) == PreferenceTask()
    assert client_task("chat", "Be brief.") == ChatTask(system_prompt="Be brief.")
    assert client_task("preference", "Be strict.") == PreferenceTask(system_prompt="Be strict.")


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "tasks_of_a_test.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return "tasks_of_a_test"


def test_a_task_of_ones_own_is_an_object_or_makes_one(module: str) -> None:
    found = client_task(f"{module}:task", None)
    assert type(found).__name__ == "Mine"
    assert type(client_task(f"{module}:Mine", None)).__name__ == "Mine"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (":nothing", "has no 'nothing'"),
        (":number", "int has not"),
        (":broken", "RuntimeError: no such thing"),
        ("_not_there:task", "there is no module"),
        ("", "no task '.*': name one of text-generation, chat, preference, or yours as package.module:task"),
        (":not a name", "named as package.module:name, got "),
    ],
)
def test_what_is_no_task_says_so(module: str, name: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        client_task(module + name, None)


def test_a_system_prompt_is_not_for_another_task(module: str) -> None:
    with pytest.raises(ConfigurationError, match="has its own"):
        client_task(f"{module}:task", "Be brief.")
