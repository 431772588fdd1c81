"""An LLM for ``genpool worker --load judging:load`` that answers, and judges answers by the number of their words."""

from __future__ import annotations

import os
import re
from typing import Any

from genpool import LLM, LLMOutput, TextGenerationTask
from genpool.tasks.output import parsed_output
from genpool.tasks.prompt import chat_messages

_SHOWN = re.compile(r"<output (\d+)>\n(.*?)\n</output \1>", re.DOTALL)


def words(text: str) -> int:
    """The rating that a text gets."""
    return len(text.split())


class Judging(LLM):
    """Answers a question with its last word, once more in each further generation.

    Of outputs that it is shown, each is rated by its words; where the instruction holds "tie" all are rated alike,
    and where it holds "mumble" nothing can be read.
    """

    @property
    def model_name(self) -> str:
        return os.environ["MODEL"]

    def _generate(self, inputs: list[dict[str, Any]], num_generations: int = 1) -> list[list[LLMOutput]]:
        chats = [chat_messages(prompt) for prompt in self._generate_prompts(inputs, default_format="openai")]
        return [
            [self._output(given, chat, number) for number in range(num_generations)]
            for given, chat in zip(inputs, chats, strict=True)
        ]

    def _output(self, given: dict[str, Any], chat: list[dict[str, Any]], number: int) -> LLMOutput:
        raw = self._answer(chat[-1]["content"], number)
        parsed = parsed_output(self.task, raw, given)
        return LLMOutput(model_name=self.model_name, prompt_used=chat, raw_output=raw, parsed_output=parsed)

    def _answer(self, text: str, number: int) -> str:
        shown = _SHOWN.findall(text)
        if not shown:
            return " ".join(text.split()[-1:] * (number + 1))
        if "mumble" in text:
            return "They are all fine."
        rated = [(at, 3 if "tie" in text else words(output)) for at, output in shown]
        return "\n\n".join(f"Output {at}:\nRating: {rating}\nRationale: It has {rating}." for at, rating in rated)


def load(task: Any = None) -> LLM:
    return Judging(TextGenerationTask() if task is None else task)
