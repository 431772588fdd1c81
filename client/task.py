"""From the words of a command line to the task that renders prompts in the client."""

from __future__ import annotations

from typing import Any, cast

from ..protocol.errors import ConfigurationError
from ..tasks.base import TaskLike
from ..tasks.named import TASKS, named_task

_USUAL = "text-generation"


def client_task(spec: str | None, system_prompt: str | None) -> TaskLike | None:
    """The task to render prompts with here, if any: see ``named_task``.

    A system prompt alone asks for text generation.

    Raises:
        ConfigurationError: ``spec`` leads to no task, or to one that has a system prompt of its own.
    """
    if system_prompt is not None:
        name = spec or _USUAL
        if name not in TASKS:
            raise ConfigurationError(f"--system-prompt is for {', '.join(TASKS)}; the task {spec} has its own")
        return cast(Any, TASKS[name])(system_prompt=system_prompt)
    if spec is None:
        return None
    try:
        return named_task(spec)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
