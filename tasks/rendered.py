"""The task of a prompt that was rendered elsewhere: it goes to the model as it is, and so does the text come back."""

from __future__ import annotations

from typing import Any

from .base import Task
from .prompt import Prompt, from_wire


class RenderedPromptTask(Task):
    """Passes on prompts in wire form, and completions unparsed.

    A plain LLM gets it in place of its own task when a client with a task of its own sends rendered prompts.
    """

    system_prompt = ""
    task_description = "passes a rendered prompt on"

    @property
    def input_args_names(self) -> list[str]:
        return ["prompt"]

    @property
    def output_args_names(self) -> list[str]:
        return []

    def generate_prompt(self, prompt: str | list[dict[str, Any]], **_: Any) -> Prompt | str | list[dict[str, Any]]:
        return from_wire(prompt)

    def parse_output(self, output: str) -> str:
        return output
