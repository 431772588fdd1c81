"""What an engine has told of an output's tokens and cost. A user's engine may say anything."""

from __future__ import annotations

import math
from typing import Any, cast


def told(usage: Any, name: str) -> int | float:
    """The number that ``usage`` has under ``name``; 0 where it is none that can be added up."""
    value: Any = cast(dict[str, Any], usage).get(name) if isinstance(usage, dict) else None
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if is_number and math.isfinite(value) and value >= 0 else 0
