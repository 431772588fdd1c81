"""From the words of a command line to the task that renders prompts in the client."""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

from ..protocol.errors import ConfigurationError
from ..tasks.base import TaskLike, require_task
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
    return _task_at(spec)


def _task_at(spec: str) -> TaskLike:
    task = _found(spec)
    try:
        if isinstance(task, type) or inspect.isroutine(task):
            task = task()
        require_task(task)
    # A user's module may raise anything.
    except Exception as error:
        raise ConfigurationError(f"{spec} is no task: {type(error).__name__}: {error}") from error
    return task


def _found(spec: str) -> Any:
    module, _, path = spec.partition(":")
    if not module or not path:
        raise ConfigurationError(f"a task is {TEXT_GENERATION} or package.module:task, and {spec!r} is neither")
    # Scripts installed by pip do not look in the current directory, and ``python -m`` does.
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
        for name in path.split("."):
            found = getattr(found, name)
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
        raise ConfigurationError(f"{spec} cannot be loaded from {here} or sys.path: {told}") from error
    return found
