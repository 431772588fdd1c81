"""What many values look like at once, where nearly all look as they should."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def are_lists(values: Sequence[Any], length: int) -> bool:
    """Whether all of ``values`` are plain lists of that length."""
    return not ([True for one in values if type(one) is not list] or [True for one in values if len(one) != length])
