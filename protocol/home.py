"""Paths as users write them."""

from __future__ import annotations

from pathlib import Path


def expanded(path: str | Path) -> Path:
    """``path`` with the home folder in the place of a ``~``, as a shell would; the ``~`` of an unknown user stays."""
    try:
        return Path(path).expanduser()
    except (RuntimeError, ValueError):  # the latter of a name that no user can have
        return Path(path)
