"""What an LLM returns for one generation of one input."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict, cast

from .base import TaskLike, text_of

log = logging.getLogger("genpool.tasks")

# More than any request brings. Counts up to it can be added up and carried as 64 bits; a larger bound lets a server
# that tells nonsense hold up a worker with ``tpm`` for longer.
_MOST_TOKENS = 10**9


class LLMOutput(TypedDict):
    """One generation.

    Attributes:
        model_name: the model that made it.
        prompt_used: the prompt as the model got it: a text or a list of chat messages.
        raw_output: the completion's text.
        parsed_output: what the task read in it; None where it could not be read, or msgpack cannot carry what was.
        usage: ``prompt_tokens`` and ``completion_tokens``, where the engine counts them, and what they ``cost`` in US
            dollars, where it knows.
        finish_reason: why the completion ended (``stop``, ``length``, …), where the engine tells.
        error: why there is no completion, where an error was filled in for it.
    """

    model_name: str
    prompt_used: Any
    raw_output: Any
    parsed_output: Any
    usage: NotRequired[dict[str, float]]
    finish_reason: NotRequired[str]
    error: NotRequired[str]


def empty_output(model_name: str) -> LLMOutput:
    """The output that stands where nothing was generated."""
    return LLMOutput(model_name=model_name, prompt_used=None, raw_output=None, parsed_output=None)


def token_count(told: object) -> int | None:
    """``told`` where it can be a count of tokens, else None: servers and users' engines may tell anything."""
    return told if type(told) is int and 0 <= told <= _MOST_TOKENS else None


def tokens_told(usage: object, name: str) -> int:
    """How many tokens a ``usage`` tells under ``name``; 0 where it tells none."""
    return token_count(cast(dict[str, Any], usage).get(name)) or 0 if isinstance(usage, dict) else 0


def parsed_output(task: TaskLike, raw: Any, given: Any = None) -> Any:
    """What ``task`` reads in the completion ``raw``; None, and a line in the log, where it raises.

    ``given`` are the row's arguments, where they are known: some tasks read by them.
    """
    try:
        read = getattr(task, "parse_output_of", None)
        return task.parse_output(raw) if read is None or not isinstance(given, Mapping) else read(given, raw)
    except Exception as error:
        log.warning(
            "%s.parse_output raised %s: %s; the output keeps its text and has no parsed part",
            type(task).__name__,
            type(error).__name__,
            text_of(error),
        )
        return None
