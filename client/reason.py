"""Why rows fail: failures that are alike are one reason, and too many of them end a run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..protocol.errors import ConfigurationError

# A run is judged by its share of failures no sooner than this: the first rows may be odd ones.
JUDGED_AFTER_ROWS = 200

# Those of names such as UTF-8 stay.
_NUMBER = re.compile(r"(?<![A-Z]-)\d+")

_MOST_REASONS = 100
_LONGEST = 160
OTHER = "other reasons"


def reason_of(failure: str) -> str:
    """What failures of one kind have in common: their text without its numbers, and not too long."""
    text = _NUMBER.sub("#", " ".join(failure.split()))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def counted(reasons: Mapping[str, int], reason: str) -> dict[str, int]:
    """``reasons`` with one row more; where there are too many, under ``other reasons``."""
    kept = reason if reason in reasons or len(reasons) < _MOST_REASONS else OTHER
    return {**reasons, kept: reasons.get(kept, 0) + 1}


def by_number(reasons: Mapping[str, int]) -> list[tuple[str, int]]:
    """Reasons with their rows, the most frequent first."""
    return sorted(reasons.items(), key=lambda one: -one[1])


@dataclass(frozen=True, slots=True)
class MaxFailures:
    """How many rows may fail: a number of them, or a ``ratio`` of those that are written."""

    rows: int | None = None
    ratio: float = 1.0

    @classmethod
    def read(cls, text: str) -> MaxFailures:
        """What ``5%`` or ``20`` says. Raises ConfigurationError."""
        number, is_ratio = text.strip().removesuffix("%"), text.strip().endswith("%")
        try:
            if is_ratio and 0 <= float(number) <= 100:
                return cls(ratio=float(number) / 100)
            if not is_ratio and int(number) >= 0:
                return cls(rows=int(number))
        except ValueError:
            pass
        raise ConfigurationError(f"--max-failures is a number of rows, or a share such as 5%, and not {text!r}")

    def are_passed(self, failed: int, rows: int) -> bool:
        """Whether ``failed`` of ``rows`` are too many."""
        if self.rows is not None:
            return failed > self.rows
        return rows >= JUDGED_AFTER_ROWS and failed > self.ratio * rows

    def __str__(self) -> str:
        return f"{self.ratio * 100:g}%" if self.rows is None else str(self.rows)
