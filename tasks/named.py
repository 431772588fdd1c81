"""Objects and tasks by the name that a command line gives them: ``package.module:name``."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import types
from pathlib import Path
from typing import Any, cast

from .base import Task, TaskLike, require_task
from .chat import ChatTask
from .preference import PreferenceTask
from .text_generation import TextGenerationTask

# The ready-made tasks that need no more than a name. Each takes a ``system_prompt``.
TASKS: dict[str, type[Task]] = {
    "text-generation": TextGenerationTask,
    "chat": ChatTask,
    "preference": PreferenceTask,
}

_SPEC = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def named_object(spec: str) -> Any:
    """What stands at ``package.module:name``; the current directory is searched first.

    Raises:
        ValueError: ``spec`` is no such name, or leads to nothing; the text says where it ends.
    """
    if not _SPEC.fullmatch(spec):
        raise ValueError(f"a function or task is named as package.module:name, got {spec!r}")
    module_name, _, path = spec.partition(":")
    # Scripts installed by pip do not look in the current directory, and ``python -m`` does.
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{spec}: there is no module {error.name!r}; looked in {here} and in what is installed"
        ) from error
    # A user's module may raise anything.
    except Exception as error:
        raise ValueError(f"{spec}: importing {module_name} raised {type(error).__name__}: {error}") from error
    for name in path.split("."):
        if not hasattr(found, name):
            raise ValueError(f"{spec}: {described(found)} has no {name!r}")
        found = getattr(found, name)
    return found


def named_task(spec: str) -> TaskLike:
    """The ready-made task of that name, or the one at ``package.module:task``.

    The latter is an object, or a class or function that makes one without arguments.

    Raises:
        ValueError: ``spec`` leads to no task.
    """
    if ":" not in spec and spec not in TASKS:
        raise ValueError(f"there is no task {spec!r}: name one of {', '.join(TASKS)}, or yours as package.module:task")
    found = TASKS[spec] if spec in TASKS else named_object(spec)
    if isinstance(found, type) or inspect.isroutine(found):
        try:
            found = found()
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
            raise ValueError(f"{spec} makes no task when called without arguments: {told}") from error
    try:
        require_task(found)
    except TypeError as error:
        raise ValueError(f"{spec} is no task: {error}") from error
    return cast(TaskLike, found)


def described(value: object) -> str:
    """``value`` with its type, short enough for a sentence."""
    if isinstance(value, types.ModuleType):
        return f"the module {value.__name__}"
    return "None" if value is None else f"{type(value).__name__} {value!r:.80}"
