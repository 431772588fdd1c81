"""Numbers that are given as options."""

from __future__ import annotations

import math
from typing import Any

import click

from .limits import LONGEST_S

_MOST = 10**9


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


# What the next two take at the most is no ``max`` of theirs, which would stand in the help of every such option.


class _Seconds(FiniteRange):
    """A time that every timer takes."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds = super().convert(value, param, ctx)
        if seconds > LONGEST_S:
            self.fail(f"{seconds:g} is more than {LONGEST_S:.0f} seconds, which are three years.", param, ctx)
        return seconds


class _Count(click.IntRange):
    """How many: a number that can be carried, and what is computed of two of them, too."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        count = super().convert(value, param, ctx)
        if count > _MOST:
            self.fail(f"{count} is more than {_MOST}, a billion.", param, ctx)
        return count


SECONDS = _Seconds(0)
POSITIVE_SECONDS = _Seconds(0, min_open=True)
COUNT = _Count(1)
