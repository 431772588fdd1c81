"""Measuring on a machine that others use too: each figure between two of a baseline, as a ratio to them."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from rich.progress import track

from .report import err, rate


@dataclass(frozen=True)
class Paired:
    """Measurements in turn: a baseline, what is measured, the baseline again, and so on."""

    baseline: list[float]
    measured: list[float]

    @property
    def ratios(self) -> list[float]:
        """Each measurement over the mean of the baselines before and after it."""
        means = [(before + after) / 2 for before, after in zip(self.baseline, self.baseline[1:], strict=False)]
        return [value / mean for value, mean in zip(self.measured, means, strict=True)]

    @property
    def ratio(self) -> float:
        """The median ratio."""
        return statistics.median(self.ratios)

    @property
    def cells(self) -> tuple[str, ...]:
        """For a table: both medians, the median ratio, the smallest and the largest."""
        rates = (rate(statistics.median(one)) for one in (self.measured, self.baseline))
        return (*rates, *(f"{one:.2f}" for one in (self.ratio, min(self.ratios), max(self.ratios))))


def paired(what: str, baseline: Callable[[], float], measured: Callable[[], float], repeat: int) -> Paired:
    """Measure ``repeat`` times, with the baseline before and after each. Shows a bar that says ``what``."""
    result = Paired([baseline()], [])
    for _ in track(range(repeat), f"Measuring {what}", console=err, transient=True):
        result.measured.append(measured())
        result.baseline.append(baseline())
    return result
