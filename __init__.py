"""genpool: split the generations of every prompt over several LLMs, each a process of its own, on any host.

The public names are imported when they are first used, so that ``import genpool`` is quick and a broker never loads
the client's code (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client.pool import LLMPool as LLMPool
    from .client.process_llm import ProcessLLM as ProcessLLM
    from .client.table import generate_dataset as generate_dataset
    from .protocol import errors as errors
    from .tasks.base import Task as Task
    from .tasks.chat import ChatTask as ChatTask
    from .tasks.output import LLMOutput as LLMOutput
    from .tasks.preference import PreferenceTask as PreferenceTask
    from .tasks.prompt import Prompt as Prompt
    from .tasks.structured import StructuredTask as StructuredTask
    from .tasks.text_generation import TextGenerationTask as TextGenerationTask
    from .worker.llm import LLM as LLM

__version__ = "0.1.0"

_PUBLIC = {
    "ChatTask": ".tasks.chat",
    "LLM": ".worker.llm",
    "LLMOutput": ".tasks.output",
    "LLMPool": ".client.pool",
    "PreferenceTask": ".tasks.preference",
    "ProcessLLM": ".client.process_llm",
    "Prompt": ".tasks.prompt",
    "StructuredTask": ".tasks.structured",
    "Task": ".tasks.base",
    "TextGenerationTask": ".tasks.text_generation",
    "generate_dataset": ".client.table",
}

__all__ = [
    "LLM",
    "ChatTask",
    "LLMOutput",
    "LLMPool",
    "PreferenceTask",
    "ProcessLLM",
    "Prompt",
    "StructuredTask",
    "Task",
    "TextGenerationTask",
    "errors",
    "generate_dataset",
]


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module(".protocol.errors", __name__)
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
