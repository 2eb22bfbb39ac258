"""A number with its 95% interval."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One number with its 95% interval; an observation is a step, and for ratios of runs a run."""

    value: float  # in the unit of the sample, or a ratio; NaN where not supported
    low: float
    high: float
    supported: bool  # whether the sample has the observations that the number needs
    needs: int  # observations
    steps: int  # observations available (of a ratio: in the smaller sample)

    @property
    def clear(self) -> bool:
        """Whether the interval of a ratio excludes 1."""
        return self.supported and (self.high < 1 or self.low > 1)


def unsupported(*, needs: int, steps: int) -> Estimate:
    """The estimate of a sample that is too small."""
    nan = math.nan
    return Estimate(value=nan, low=nan, high=nan, supported=False, needs=needs, steps=steps)


def supported(value: float, low: float, high: float, *, needs: int, steps: int) -> Estimate:
    """The estimate of a sample that has what it needs; of one that has not, no number."""
    if steps < needs:
        return unsupported(needs=needs, steps=steps)
    numbers = {"value": float(value), "low": float(low), "high": float(high)}
    return Estimate(**numbers, supported=True, needs=needs, steps=steps)
