"""Hodges-Lehmann ratio of paired measurements, with an interval for correlated pairs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from repro.stats.bootstrap import Floats
from repro.stats.estimate import Estimate, supported, unsupported
from repro.stats.mean_ratio import NORMAL

NEEDS_PAIRS = 6
"""With fewer, even the least and the greatest change enclose the centre in under 95%."""


def centre_of_pairs(baseline: Sequence[float], treated: Sequence[float]) -> Estimate:
    """The centre of treated over baseline, pair by pair, with its 95% interval.

    A moment in which something else held the machine counts as one pair, however long it took;
    in a mean it would count by its length.

    Parameters
    ----------
    baseline, treated : sequence of float, of equal length
        One number per pair each, in order of time, above 0, in any one unit.

    Returns
    -------
    Estimate
        `steps` and `needs` count pairs; not supported below `NEEDS_PAIRS`.

    Notes
    -----
    The interval is that of Wilcoxon's signed ranks, by its normal approximation, and wider where a
    pair resembles the one before it. Memory grows with the square of the pairs: 65 MB for 4,000.

    References
    ----------
    Hodges, J. L. and Lehmann, E. L. (1963). Estimates of location based on rank tests. Annals of
    Mathematical Statistics 34.
    """
    change = np.log(np.asarray(treated)) - np.log(np.asarray(baseline))
    pairs = len(change)
    if pairs < NEEDS_PAIRS:
        return unsupported(needs=NEEDS_PAIRS, steps=pairs)
    averages = np.concatenate([change[first:] + change[first] for first in range(pairs)]) / 2
    averages.sort()
    middle = np.median(averages)
    variance = pairs * (pairs + 1) * (2 * pairs + 1) / 24 * _variance_inflation(change - middle)
    beyond = max(0, int((len(averages) - 1) / 2 - NORMAL * np.sqrt(variance)))  # at each end
    value, low, high = np.exp([middle, averages[beyond], averages[-1 - beyond]])
    return supported(value, low, high, needs=NEEDS_PAIRS, steps=pairs)


def _variance_inflation(centred: Floats) -> float:
    """(1 + r) / (1 - r) of the signed ranks' lag-1 correlation r, and 1 where r is negative."""
    ranks = np.sign(centred) * (1 + np.argsort(np.argsort(np.abs(centred))))
    if not ranks.any():
        return 1.0
    lag_one = max(0.0, float((ranks[1:] * ranks[:-1]).sum() / (ranks**2).sum()))
    return (1 + lag_one) / (1 - lag_one)
