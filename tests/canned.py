"""An LLM whose answers distilabel's tasks can read, here and in an environment that has distilabel."""

from __future__ import annotations

import os
import re
from typing import Any

from genpool import LLM, LLMOutput, TextGenerationTask

SELF_INSTRUCT = "1. Name a town.\n2. Name a river.\n"
EVOL_INSTRUCT = "Name a town by a river."


def answer(prompt: str) -> str:
    """What is said to ``prompt``, by the kind of task that it is of."""
    if "#### Output for Text" in prompt:
        texts = re.findall(r"^<text (\d+)> (.*)$", prompt.rpartition("### Input")[2], re.MULTILINE)
        return "\n\n".join(f"#### Output for Text {n}\nRating: {len(text)}\nRationale: so long" for n, text in texts)
    if "I want you to act as a Prompt" in prompt:
        return EVOL_INSTRUCT
    return SELF_INSTRUCT if "# AI Application" in prompt else prompt.rpartition("\n")[2].upper()


class Canned(LLM):
    """Knows no more than an LLM of distilabel's does."""

    @property
    def model_name(self) -> str:
        return os.environ.get("MODEL", "local")

    def _generate(self, inputs: list[dict[str, Any]], num_generations: int = 1) -> list[list[LLMOutput]]:
        prompts = self._generate_prompts(inputs, default_format="default")
        return [[self._output(prompt) for _ in range(num_generations)] for prompt in prompts]

    def _output(self, prompt: str | list[dict[str, Any]]) -> LLMOutput:
        text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        raw = answer(text)
        parsed = self.task.parse_output(raw)
        return LLMOutput(model_name=self.model_name, prompt_used=prompt, raw_output=raw, parsed_output=parsed)


def load(task: Any = None) -> LLM:
    return Canned(TextGenerationTask() if task is None else task)
