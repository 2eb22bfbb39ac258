"""Linear trend with an autocorrelation-robust interval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from repro.stats.ratios import student

BLOCKS = 20
"""Neighbouring values resemble each other; the means of a few long blocks far less."""

HOUR_NS = 3_600_000_000_000


@dataclass(frozen=True, kw_only=True)
class Trend:
    """A slope with its 95% interval.

    Attributes
    ----------
    level : float
        The mean over the blocks, in the unit of the values.
    per_hour, low, high : float
        The slope and its bounds, in that unit an hour.
    """

    level: float
    per_hour: float
    low: float
    high: float

    def relative(self) -> tuple[float, float, float]:
        """Slope and bounds as shares of the level, an hour."""
        return self.per_hour / self.level, self.low / self.level, self.high / self.level


def trend(
    t_ns: npt.ArrayLike, values: npt.ArrayLike, *, blocks: int = BLOCKS, median: bool = False
) -> Trend:
    """The straight line through the means of blocks of equal time.

    Parameters
    ----------
    t_ns, values : (n,) arrays
        In any order.
    blocks : int
        Those without a value are left out.
    median : bool
        Take each block's median, which single long steps do not move.

    Raises
    ------
    ValueError
        If fewer than three blocks hold a value.
    """
    t, value = np.asarray(t_ns, dtype=np.float64), np.asarray(values, dtype=np.float64)
    edges = np.linspace(t.min(), t.max(), blocks + 1) if len(t) else np.zeros(blocks + 1)
    block = np.clip(np.searchsorted(edges, t, side="right") - 1, 0, blocks - 1)
    held = np.unique(block)
    if len(held) < 3:
        raise ValueError(f"{len(held)} of {blocks} blocks hold a value: record for longer")
    middle = np.array([t[block == number].mean() for number in held]) / HOUR_NS
    average = np.median if median else np.mean
    level = np.array([average(value[block == number]) for number in held])
    away = middle - middle.mean()
    slope = float(away @ level / (away @ away))
    left = level - level.mean() - slope * away
    freedom = len(held) - 2
    width = student(freedom) * float(np.sqrt(left @ left / freedom / (away @ away)))
    return Trend(level=float(level.mean()), per_hour=slope, low=slope - width, high=slope + width)
