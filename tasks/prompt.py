"""A prompt, the text formats it can take, and the form in which it travels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

SupportedFormats = Literal["default", "openai", "llama2", "chatml", "zephyr", "notus"]

_TEMPLATES = {
    "default": "{system}\n{user}",
    "llama2": "<s>[INST] <<SYS>>\n{system}<</SYS>>\n\n{user} [/INST]",
    "chatml": "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n",
    "zephyr": "<|system|>\n{system}</s>\n<|user|>\n{user}</s>\n<|assistant|>\n",
    "notus": "<|system|>\n{system}</s>\n<|user|>\n{user}</s>\n<|assistant|>\n",
}


@dataclass
class Prompt:
    """What a task asks an LLM: the system prompt, and the input put into words.

    Attributes:
        system_prompt: how the model shall behave; may be empty.
        formatted_prompt: the user's turn.
    """

    system_prompt: str
    formatted_prompt: str

    def format_as(self, format: SupportedFormats) -> str | list[dict[str, Any]]:
        """The prompt as one text, or for ``openai`` as a list of two chat messages.

        Raises:
            ValueError: no such format; the sentence lists those that exist.
        """
        check_format(format)
        if format == "openai":
            return [_message("system", self.system_prompt), _message("user", self.formatted_prompt)]
        return _TEMPLATES[format].format(system=self.system_prompt, user=self.formatted_prompt)


def check_format(name: str) -> None:
    """Refuses the name of a prompt format that does not exist.

    Raises:
        ValueError: lists the formats that exist.
    """
    known = get_args(SupportedFormats)
    if name not in known:
        raise ValueError(
            f"There is no prompt format {name!r}: use one of {', '.join(known)}, or give a `prompt_formatting_fn`."
        )


def as_prompt(value: Any) -> Any:
    """``value`` as a ``Prompt`` where it is something like one (distilabel's own class, say), else unchanged."""
    if isinstance(value, Prompt):
        return value
    system, user = getattr(value, "system_prompt", None), getattr(value, "formatted_prompt", None)
    return Prompt(system, user) if isinstance(system, str) and isinstance(user, str) else value


def chat_messages(prompt: Prompt | str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a chat engine sends for ``prompt``: a list of messages with ``role`` and ``content``.

    An empty system prompt is left out, a text is one user message, a list stays as it is.

    Raises:
        TypeError: ``prompt`` is none of the three.
    """
    wire = to_wire(prompt)
    if isinstance(wire, str):
        return [_message("user", wire)]
    is_silent = isinstance(from_wire(wire), Prompt) and not wire[0]["content"]
    return wire[1:] if is_silent else wire


def to_wire(prompt: Prompt | str | list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """The form in which a rendered prompt travels: a text, or chat messages (always two for a ``Prompt``).

    Raises:
        TypeError: ``prompt`` is none of the three.
    """
    prompt = as_prompt(prompt)
    if isinstance(prompt, Prompt):
        return [_message("system", prompt.system_prompt), _message("user", prompt.formatted_prompt)]
    if isinstance(prompt, str) or _is_messages(prompt):
        return prompt
    raise TypeError(
        f"A prompt must be a Prompt, a text or a list of chat messages (dicts), not {_described(prompt)}: "
        "see what the task's `generate_prompt` returns."
    )


def from_wire(content: str | list[dict[str, Any]]) -> Prompt | str | list[dict[str, Any]]:
    """The prompt that ``to_wire`` made: a system and a user message are a ``Prompt``, all else is unchanged."""
    match content:
        case [{"role": "system", "content": str(system), **one}, {"role": "user", "content": str(user), **other}] if (
            not one and not other
        ):
            return Prompt(system, user)
        case _:
            return content


def _message(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def _is_messages(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(message, dict) for message in cast(list[object], value))


def _described(value: object) -> str:
    if isinstance(value, list):
        kinds = sorted({type(one).__name__ for one in cast(list[object], value)})
        return f"a list of {', '.join(kinds)}"
    return type(value).__name__
