"""A scripted LLM for real workers, and the commands that are run on a fleet of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fleet import until

# Answers in capitals. "fail" is refused, "surrogate" answered with half a character, and "hold" is answered once
# somebody has opened the gate, a named pipe.
ECHO = """
import os
from genpool import LLM, TextGenerationTask
from genpool.protocol.errors import RowError

class Echo(LLM):
    @property
    def model_name(self):
        return os.environ["MODEL"]

    def _generate(self, inputs, num_generations=1):
        return [[self.answer(row) for _ in range(num_generations)] for row in inputs]

    def answer(self, row):
        prompt = row.get("input", row.get("prompt"))
        text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        if text == "fail":
            raise RowError("this row is bad")
        if text == "hold":
            with open(os.environ["GATE"]) as gate:
                gate.read()
        raw = "half \\ud800" if text == "surrogate" else text.upper()
        parsed = self.task.parse_output(raw)
        return {"model_name": self.model_name, "prompt_used": prompt, "raw_output": raw, "parsed_output": parsed}

def load():
    return Echo(TextGenerationTask())
"""


@dataclass(frozen=True)
class Gate:
    """Lets go of the rows that say "hold"."""

    path: Path

    def open(self) -> None:
        until(self.try_to_open, "a row held at the gate")

    def try_to_open(self) -> bool:
        """Whether somebody was let through, or is about to be."""
        try:
            os.close(os.open(self.path, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            return False  # nobody reads it yet
        return True


# What the fixtures of those names give: each runs or starts `genpool ARGUMENTS` on the fleet.
Genpool = Callable[..., "subprocess.CompletedProcess[str]"]
Start = Callable[..., "subprocess.Popen[str]"]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "genpool.cli", *arguments]
