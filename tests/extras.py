"""Packages that only some tests need: models, and the heavy extras that `scripts/test --all` installs."""

from __future__ import annotations

import importlib.util
import os

import pytest


def require(package: str) -> None:
    """Skip the calling module (or test) where ``package`` is not installed; where CI is set, that is a failure."""
    if importlib.util.find_spec(package) is not None:
        return
    reason = f"{package} is not installed: ./scripts/test --all installs all that tests need"
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason, allow_module_level=True)
