"""The task of going on with a chat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from .base import Task

_ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass
class ChatTask(Task):
    """Answers ``messages`` with the next one.

    ``messages`` is a list of ``{"role": …, "content": …}``; ``parse_output`` gives
    ``{"generations": {"role": "assistant", "content": text}}``.

    Attributes:
        system_prompt: put in front of chats that have no system message of their own; nothing is where it is empty.

    Raises:
        TypeError: the system prompt is no text.
    """

    system_prompt: str = ""

    def __post_init__(self) -> None:
        if not isinstance(cast(object, self.system_prompt), str):
            raise TypeError(f"`system_prompt` must be a text, not {type(self.system_prompt).__name__}.")

    @property
    def input_args_names(self) -> list[str]:
        return ["messages"]

    @property
    def output_args_names(self) -> list[str]:
        return ["generations"]

    def generate_prompt(self, messages: Sequence[Mapping[str, Any]], **_: Any) -> list[dict[str, Any]]:
        """The chat as it goes to the model.

        Raises:
            TypeError: ``messages`` is no list of dicts.
            ValueError: there are none, or one has a role that does not exist, or no content.
        """
        _check(messages)
        chat = [dict(message) for message in messages]
        if self.system_prompt and chat[0]["role"] not in ("system", "developer"):
            chat.insert(0, {"role": "system", "content": self.system_prompt})
        return chat

    def parse_output(self, output: str) -> dict[str, dict[str, str]]:
        return {"generations": {"role": "assistant", "content": output}}


def _check(messages: object) -> None:
    if isinstance(messages, str) or not isinstance(messages, Sequence):
        raise TypeError(f"`messages` must be a list of dicts with role and content, not {type(messages).__name__}.")
    if not messages:
        raise ValueError("`messages` must hold at least one message, and is empty.")
    for at, message in enumerate(cast(Sequence[object], messages)):
        _check_message(at, message)


def _check_message(at: int, message: object) -> None:
    if not isinstance(message, Mapping):
        raise TypeError(f"`messages` must hold dicts with role and content, and the one at {at} is {_kind(message)}.")
    said = cast(Mapping[str, Any], message)
    if said.get("role") not in _ROLES:
        raise ValueError(
            f"The message at {at} has the role {said.get('role')!r}: use one of {', '.join(map(repr, _ROLES))}."
        )
    # An assistant that calls tools need not say anything; images and the like come as a list of parts.
    content = said.get("content")
    if not isinstance(content, (str, list)) and not said.get("tool_calls"):
        raise ValueError(
            f"The message at {at} must have a `content` that is a text or a list of parts, not {_kind(content)}."
        )


def _kind(value: object) -> str:
    return "None" if value is None else type(value).__name__
