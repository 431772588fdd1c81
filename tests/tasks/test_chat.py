"""Going on with a chat."""

from __future__ import annotations

from typing import Any

import pytest

from genpool import ChatTask
from genpool.tasks.prompt import chat_messages, to_wire

USER = {"role": "user", "content": "Hello."}
SYSTEM = {"role": "system", "content": "Be brief."}
ASSISTANT = {"role": "assistant", "content": "Hi."}


def test_names_and_output() -> None:
    task = ChatTask()
    assert (task.input_args_names, task.output_args_names) == (["messages"], ["generations"])
    assert task.parse_output("Hi.") == {"generations": ASSISTANT}


@pytest.mark.parametrize(
    "chat",
    [
        [USER],
        [USER, ASSISTANT, USER],
        [SYSTEM, USER],
        [{"role": "user", "content": [{"type": "text", "text": "Hello."}], "name": "Ann"}],
        [USER, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}, {"role": "tool", "content": "7"}],
    ],
)
def test_a_chat_goes_to_the_model_as_it_is(chat: list[dict[str, Any]]) -> None:
    made = ChatTask().generate_prompt(messages=chat, more="ignored")
    assert made == chat
    assert made is not chat
    assert chat_messages(to_wire(made)) == chat


def test_a_system_prompt_goes_in_front_of_chats_that_have_none() -> None:
    task = ChatTask("Be kind.")
    assert task.generate_prompt([USER]) == [{"role": "system", "content": "Be kind."}, USER]
    assert task.generate_prompt([SYSTEM, USER]) == [SYSTEM, USER]
    developer = {"role": "developer", "content": "Be brief."}
    assert task.generate_prompt([developer, USER]) == [developer, USER]


@pytest.mark.parametrize(
    ("messages", "error", "sentence"),
    [
        ("Hello.", TypeError, "`messages` must be a list of dicts with role and content, not str"),
        (None, TypeError, "not NoneType"),
        ([], ValueError, "must hold at least one message, and is empty"),
        ([USER, "Hi."], TypeError, "the one at 1 is str"),
        ([{"content": "Hi."}], ValueError, "The message at 0 has the role None: use one of 'system', "),
        ([{"role": "bot", "content": "Hi."}], ValueError, "The message at 0 has the role 'bot'"),
        ([USER, {"role": "assistant"}], ValueError, "The message at 1 must have a `content` that is a text or a list"),
        ([{"role": "user", "content": 7}], ValueError, "not int"),
    ],
)
def test_what_is_no_chat(messages: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        ChatTask().generate_prompt(messages)


def test_a_system_prompt_is_a_text() -> None:
    with pytest.raises(TypeError, match="`system_prompt` must be a text, not NoneType"):
        ChatTask(None)  # type: ignore[arg-type]
