"""Times that a caller gives, in seconds."""

from __future__ import annotations

from numbers import Real
from typing import Any, cast

from ..protocol.errors import ConfigurationError
from ..protocol.limits import LONGEST_S


def checked_seconds(name: str, value: Any) -> float:
    """``value`` as a float, ``LONGEST_S`` at most. Raises ConfigurationError where it is no positive number."""
    is_number = not isinstance(value, bool) and isinstance(value, Real)
    seconds = cast(float, value)
    if not is_number or not seconds > 0:  # which NaN is not
        raise ConfigurationError(f"`{name}` must be a positive number of seconds, and is {value!r}")
    return float(min(seconds, LONGEST_S))
