from __future__ import annotations

from typing import Any

import pytest

from genpool.tasks.prompt import Prompt, to_wire
from genpool.tasks.rendered import RenderedPromptTask


@pytest.mark.parametrize("prompt", ["text", Prompt("S", "P"), Prompt("", "P"), [{"role": "user", "content": "P"}]])
def test_a_rendered_prompt_comes_out_as_it_went_in(prompt: Any) -> None:
    assert RenderedPromptTask().generate_prompt(prompt=to_wire(prompt)) == prompt


def test_a_completion_stays_text() -> None:
    assert RenderedPromptTask().parse_output(" as it is\n") == " as it is\n"


def test_names() -> None:
    task = RenderedPromptTask()
    assert (task.input_args_names, task.output_args_names, task.system_prompt) == (["prompt"], [], "")
