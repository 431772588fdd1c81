"""Types of options that several commands take."""

from __future__ import annotations

from ..protocol.number import FiniteRange
from .seconds import LONGEST_S

SECONDS = FiniteRange(min=0, min_open=True, max=LONGEST_S)
