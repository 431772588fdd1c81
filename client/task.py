"""From the words of a command line to the task that renders prompts in the client."""

from __future__ import annotations

from ..protocol.errors import ConfigurationError
from ..tasks.base import TaskLike
from ..tasks.named import named_task
from ..tasks.text_generation import TextGenerationTask

TEXT_GENERATION = "text-generation"


def client_task(spec: str | None, system_prompt: str | None) -> TaskLike | None:
    """The task to render prompts with here, if any: ``text-generation``, or ``package.module:task``.

    The latter is an object, or a class or function that makes one without arguments. A system prompt alone asks for
    text generation.

    Raises:
        ConfigurationError: ``spec`` leads to no task, or to one that takes no system prompt.
    """
    if spec is None and system_prompt is None:
        return None
    if spec is None or spec == TEXT_GENERATION:
        return TextGenerationTask() if system_prompt is None else TextGenerationTask(system_prompt=system_prompt)
    if system_prompt is not None:
        raise ConfigurationError(f"--system-prompt is for text generation; the task {spec} has its own")
    try:
        return named_task(spec)
    except ValueError as error:
        raise ConfigurationError(f"{error}; or say {TEXT_GENERATION}") from error
