"""The names of ``formats`` under which ``dataset`` and ``column`` still import them."""

from __future__ import annotations

from .formats.base import STANDARD_STREAM, Line
from .formats.base import Source as AnySource
from .formats.format import JSONL, format_of
from .formats.jsonl import JsonlSource as Source
from .formats.jsonl import encode
from .formats.target import Target
from .formats.target import check_target as check_target_in

__all__ = ["STANDARD_STREAM", "Line", "Source", "Target", "check_target", "encode"]


def check_target(path: str, source: AnySource) -> None:
    """Look whether JSONL can be written to ``path``."""
    check_target_in(path, source, format_of(path, JSONL))
