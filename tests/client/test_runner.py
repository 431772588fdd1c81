"""What a run adds up of what its outputs tell."""

from __future__ import annotations

from typing import Any

import pytest

from genpool.client.runner import _made_of
from genpool.client.standing import Made
from genpool.tasks.output import LLMOutput


@pytest.mark.parametrize(
    ("usage", "made"),
    [
        ({"prompt_tokens": 3, "completion_tokens": 5, "cost": 0.25}, Made(1, 3, 5, 0.25)),
        ({"prompt_tokens": None, "completion_tokens": float("nan"), "cost": float("inf")}, Made(1)),
        ({"cost": 10**400}, Made(1)),
        ({"cost": -1.0}, Made(1)),
        ({"cost": True}, Made(1)),
        ("5", Made(1)),
    ],
    ids=repr,
)
def test_what_cannot_be_added_up_counts_for_nothing(usage: Any, made: Made) -> None:
    output = LLMOutput(model_name="m", prompt_used="p", raw_output="r", parsed_output=None, usage=usage)
    assert _made_of(output) == made
