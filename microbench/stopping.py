"""When to stop sampling: small objects fed one sample at a time, after nvbench's stdrel criterion.

Cycles read in the kernel do not know the clock, wall time does: the rule wants both steady, and gives a GPU whose clock
still settles a bounded time to do so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

# Cycles of one probe repeat to 0.1 % on an idle GPU; half a per cent of spread means that something else ran.
CYCLES_SPREAD = 0.005
# Standard error of the mean wall time, the figure that a second run should reproduce.
WALL_STANDARD_ERROR = 0.005
MIN_SAMPLES = 16
MAX_SAMPLES = 200


def spread(values: Sequence[float]) -> float:
    """(90th - 10th percentile) / median, the project's one measure of noise; 0 for a single value."""
    low, middle, high = np.percentile(np.asarray(values, dtype=float), (10, 50, 90))
    return float((high - low) / middle)


@dataclass
class StoppingRule:
    """Done when cycles and wall time are steady, or when the budget is spent. ``budget_s``: seconds of samples."""

    budget_s: float
    min_samples: int = MIN_SAMPLES
    cycles: list[float] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)

    def add(self, cycles: float, wall_s: float) -> None:
        self.cycles.append(cycles)
        self.wall_s.append(wall_s)

    @property
    def window(self) -> int:
        """How many of the last samples count: half of them, so that a clock which settles first is left behind."""
        return max(self.min_samples, len(self.cycles) // 2)

    @property
    def steady(self) -> bool:
        if len(self.cycles) < self.min_samples:
            return False
        wall = np.asarray(self.wall_s[-self.window :])
        standard_error = float(wall.std(ddof=1) / wall.mean()) / len(wall) ** 0.5
        return spread(self.cycles[-self.window :]) <= CYCLES_SPREAD and standard_error <= WALL_STANDARD_ERROR

    @property
    def done(self) -> bool:
        out_of_budget = len(self.cycles) >= MAX_SAMPLES or sum(self.wall_s) >= self.budget_s
        return self.steady or (out_of_budget and len(self.cycles) >= self.min_samples)
