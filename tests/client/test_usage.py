"""What engines tell of tokens, and what cannot be added up."""

from __future__ import annotations

from typing import Any

import pytest

from genpool.client.usage import told


@pytest.mark.parametrize(
    ("usage", "count"),
    [
        ({"n": 5}, 5),
        ({"n": 0.25}, 0.25),
        ({"n": 2**80}, 2**80),
        ({"n": None}, 0),
        ({"n": "5"}, 0),
        ({"n": True}, 0),
        ({"n": -1}, 0),
        ({"n": float("nan")}, 0),
        ({"n": float("inf")}, 0),
        ({}, 0),
        (None, 0),
        ([5], 0),
    ],
    ids=repr,
)
def test_what_can_be_added_up_counts(usage: Any, count: float) -> None:
    assert told(usage, "n") == count
