"""LLMs for ``genpool worker --load served:…``, with a task of their own. Settings come from the environment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from genpool import LLM, LLMOutput, Prompt, Task
from genpool.tasks.output import parsed_output
from genpool.worker.llm import RowCall


class Question(Task):
    """Takes a ``question`` and nothing else."""

    system_prompt = "Answer."

    @property
    def input_args_names(self) -> list[str]:
        return ["question"]

    @property
    def output_args_names(self) -> list[str]:
        return ["answer"]

    def generate_prompt(self, question: str) -> Prompt:
        return Prompt(self.system_prompt, question)

    def parse_output(self, output: str) -> dict[str, str]:
        return {"answer": output.lower()}


class Plain(LLM):
    """As the seed's LLMs are: ``_generate`` and no more. Says its prompt in capitals.

    "fail" raises, and "pid" is answered with the process's id.
    """

    @property
    def model_name(self) -> str:
        return os.environ["MODEL"]

    def _generate(self, inputs: list[dict[str, Any]], num_generations: int = 1) -> list[list[LLMOutput]]:
        prompts = self._generate_prompts(inputs, default_format="default")
        return [[self._output(prompt) for _ in range(num_generations)] for prompt in prompts]

    def _output(self, prompt: str) -> LLMOutput:
        text = prompt.rpartition("\n")[2]
        if text == "fail":
            raise ArithmeticError("this one fails")
        raw = str(os.getpid()) if text == "pid" else prompt.upper()
        return LLMOutput(
            model_name=self.model_name,
            prompt_used=prompt,
            raw_output=raw,
            parsed_output=parsed_output(self.task, raw),
        )


class Held(LLM):
    """Answers row by row, and waits with each until there is a file ``TEXT.go`` or the row is cancelled.

    Leaves ``TEXT.started`` and ``TEXT.cancelled`` behind. The answer tells of the options and the seed.
    """

    option_names = frozenset({"temperature", "top_p"})

    def __init__(self, task: Any, folder: Path) -> None:
        super().__init__(task)
        self._folder = folder

    @property
    def model_name(self) -> str:
        return "held"

    def _generate(self, inputs: list[dict[str, Any]], num_generations: int = 1) -> list[list[LLMOutput]]:
        raise NotImplementedError

    def generate_row(self, call: RowCall) -> list[LLMOutput]:
        text = self.prompt_of(call).formatted_prompt
        (self._folder / f"{text}.started").touch()
        while not (self._folder / f"{text}.go").exists():
            if call.cancelled.wait(0.01):
                (self._folder / f"{text}.cancelled").touch()
                return []
        raw = f"{text} {dict(call.options)} {call.seed}"
        output = LLMOutput(model_name="held", prompt_used=text, raw_output=raw, parsed_output=raw)
        return [output.copy() for _ in range(call.num_generations)]


def plain() -> LLM:
    return Plain(Question())


def chatml() -> LLM:
    return Plain(Question(), prompt_format="chatml")


def held() -> LLM:
    return Held(Question(), Path(os.environ["HELD"]))
