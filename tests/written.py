"""Files that only their owner can read."""

from __future__ import annotations

from pathlib import Path


def written(path: Path, text: str) -> Path:
    """``path``, once it holds ``text`` and only we can read it."""
    path.touch(0o600)
    path.write_text(text)
    return path
