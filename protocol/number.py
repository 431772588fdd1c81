"""Numbers that are given as options."""

from __future__ import annotations

import math
from typing import Any

import click


class FiniteRange(click.FloatRange):
    """A number within bounds, for options of commands.

    Of click's ranges each has room for NaN, and one without a maximum for infinity; here neither is let through.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = super().convert(value, param, ctx)
        except OverflowError:  # an integer of a TOML file, which has no bounds
            number = math.inf
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number.", param, ctx)
        return number
