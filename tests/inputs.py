"""Rows as a call takes them."""

from __future__ import annotations

from typing import Any


def inputs(*texts: str) -> list[dict[str, Any]]:
    """An input of text generation for each of ``texts``."""
    return [{"input": text} for text in texts]
