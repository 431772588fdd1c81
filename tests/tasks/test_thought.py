"""Thoughts before an answer are left out, and nothing else is."""

from __future__ import annotations

import time

import pytest

from genpool.tasks.thought import without_thought

FAR_TOO_LONG_S = 10.0


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("", ""),
        ("An answer.", "An answer."),
        ("<think>\nRating: 4?\n</think>\n\nRating: 2", "\n\nRating: 2"),
        ("\n<thinking>so</thinking>An answer.", "An answer."),
        ("[THINK]so[/THINK]An answer.", "An answer."),
        ("<think></think>An answer.\n</think>\nMore.", "An answer.\n</think>\nMore."),
        ("It is 4, or 2?\n</think>\n\nAn answer.", "\n\nAn answer."),
        ("<think>It is 4. No, it is", ""),
        ("Rationale: it ends with </think>. Rating: 4", "Rationale: it ends with </think>. Rating: 4"),
        ("Rationale: it begins with <think>.", "Rationale: it begins with <think>."),
        ('["think", "</think>"]', '["think", "</think>"]'),
    ],
)
def test_what_is_left_of(text: str, answer: str) -> None:
    assert without_thought(text) == answer


@pytest.mark.parametrize("piece", ["<think>", "</think", " </think>x\n", "\n", " "], ids=range(5))
def test_a_long_text_takes_no_time_for_each_pair_of_its_places(piece: str) -> None:
    begun = time.monotonic()
    without_thought(piece * 200_000)
    assert time.monotonic() - begun < FAR_TOO_LONG_S
