"""Formats against their table, and what travels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genpool.tasks.prompt import Prompt, SupportedFormats, as_prompt, chat_messages, check_format, from_wire, to_wire

PROMPT = Prompt("Be brief.", "Why is the sky blue?")


@dataclass
class ForeignPrompt:
    """Like the class of another library: the same attributes, no relation."""

    system_prompt: str
    formatted_prompt: str


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("default", "Be brief.\nWhy is the sky blue?"),
        ("llama2", "<s>[INST] <<SYS>>\nBe brief.<</SYS>>\n\nWhy is the sky blue? [/INST]"),
        (
            "chatml",
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy is the sky blue?<|im_end|>\n"
            "<|im_start|>assistant\n",
        ),
        ("zephyr", "<|system|>\nBe brief.</s>\n<|user|>\nWhy is the sky blue?</s>\n<|assistant|>\n"),
        ("notus", "<|system|>\nBe brief.</s>\n<|user|>\nWhy is the sky blue?</s>\n<|assistant|>\n"),
    ],
)
def test_text_formats(name: SupportedFormats, text: str) -> None:
    assert PROMPT.format_as(name) == text


def test_openai_format_is_two_messages() -> None:
    assert PROMPT.format_as("openai") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Why is the sky blue?"},
    ]


def test_braces_in_a_prompt_stay() -> None:
    assert Prompt("{user}", "{system} {0}").format_as("default") == "{user}\n{system} {0}"


@pytest.mark.parametrize("refuse", [PROMPT.format_as, check_format])
def test_an_unknown_format_lists_the_known(refuse: Any) -> None:
    with pytest.raises(ValueError, match="'alpaca': use one of default, openai, llama2, chatml, zephyr, notus"):
        refuse("alpaca")


def test_as_prompt_takes_what_resembles_a_prompt() -> None:
    assert as_prompt(ForeignPrompt("S", "P")) == Prompt("S", "P")
    assert as_prompt(PROMPT) is PROMPT


@pytest.mark.parametrize("value", ["text", None, [{"role": "user", "content": "P"}], ForeignPrompt("S", 3)])  # type: ignore[arg-type]
def test_as_prompt_leaves_all_else(value: Any) -> None:
    assert as_prompt(value) is value


@pytest.mark.parametrize(
    ("prompt", "messages"),
    [
        (PROMPT, [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why is the sky blue?"}]),
        (Prompt("", "Hi"), [{"role": "user", "content": "Hi"}]),
        (ForeignPrompt("", "Hi"), [{"role": "user", "content": "Hi"}]),
        ("Hi", [{"role": "user", "content": "Hi"}]),
        ([{"role": "assistant", "content": ""}], [{"role": "assistant", "content": ""}]),
        ([], []),
    ],
)
def test_chat_messages(prompt: Any, messages: list[dict[str, Any]]) -> None:
    assert chat_messages(prompt) == messages


@pytest.mark.parametrize("send", [chat_messages, to_wire])
@pytest.mark.parametrize(("value", "named"), [(7, "int"), (None, "NoneType"), (["a", 1], "a list of int, str")])
def test_what_is_no_prompt_is_named(send: Any, value: Any, named: str) -> None:
    with pytest.raises(TypeError, match=f"not {named}: see what the task's `generate_prompt` returns"):
        send(value)


def test_a_prompt_without_system_prompt_still_travels_as_two_messages() -> None:
    wire = to_wire(Prompt("", "Hi"))
    assert wire == [{"role": "system", "content": ""}, {"role": "user", "content": "Hi"}]


@given(st.builds(Prompt, st.text(), st.text()) | st.text())
def test_wire_and_back(prompt: Prompt | str) -> None:
    assert from_wire(to_wire(prompt)) == prompt


SYSTEM = {"role": "system", "content": "S"}
USER = {"role": "user", "content": "P"}


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [USER],
        [USER, SYSTEM],
        [SYSTEM, USER, USER],
        [SYSTEM, {**USER, "name": "Ada"}],
        [{**SYSTEM, "name": "Ada"}, USER],
        [SYSTEM, {"role": "user", "content": [{"type": "text", "text": "P"}]}],
    ],
)
def test_other_messages_stay_messages(messages: list[dict[str, Any]]) -> None:
    assert from_wire(messages) is messages
    assert to_wire(messages) is messages
