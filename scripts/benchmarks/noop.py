"""An LLM that does nothing, at once: what is left is what the pool costs.

Served with ``--load benchmarks.noop:load``. NOOP_OUTPUT_BYTES is the length of each output.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genpool import LLM, LLMOutput, TextGenerationTask

OUTPUT_BYTES = 600
INPUT_CHARACTERS = 170


class Noop(LLM):
    """Answers every row with the same text."""

    def __init__(self, output_bytes: int) -> None:
        super().__init__(TextGenerationTask())
        self._text = "o" * output_bytes

    @property
    def model_name(self) -> str:
        return "noop"

    def _generate(self, inputs: Sequence[dict[str, Any]], num_generations: int = 1) -> list[list[LLMOutput]]:
        output = LLMOutput(model_name="noop", prompt_used=None, raw_output=self._text, parsed_output=None)
        return [[output] * num_generations for _ in inputs]


def load() -> LLM:
    return Noop(int(os.environ.get("NOOP_OUTPUT_BYTES", OUTPUT_BYTES)))


def environment(output_bytes: int = OUTPUT_BYTES) -> dict[str, str]:
    """For a worker that serves this LLM."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]))
    return {"NOOP_OUTPUT_BYTES": str(output_bytes), "PYTHONPATH": path}


def inputs(count: int, characters: int = INPUT_CHARACTERS) -> list[dict[str, str]]:
    """So many inputs of so many characters each."""
    return [{"input": f"{number:09d} " + "i" * (characters - 10)} for number in range(count)]
