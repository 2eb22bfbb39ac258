"""Ratio between two neighbours, over many pairs of which a few lie far off."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

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
        `steps` and `needs` count pairs.

    Notes
    -----
    The interval is that of Wilcoxon's signed ranks, by its normal approximation, wider where a pair
    is like the one before it.

    References
    ----------
    Hodges, J. L. and Lehmann, E. L. (1963). Estimates of location based on rank tests. Annals of
    Mathematical Statistics 34.
    """
    change = np.log(np.asarray(treated)) - np.log(np.asarray(baseline))
    pairs = len(change)
    if pairs < NEEDS_PAIRS:
        return unsupported(needs=NEEDS_PAIRS, steps=pairs)
    sums = np.sort(np.concatenate([change[first:] + change[first] for first in range(pairs)]))
    spread = np.sqrt(pairs * (pairs + 1) * (2 * pairs + 1) / 24 * _repetition(change))
    outside = max(0, int(len(sums) / 2 - NORMAL * spread))
    ends = sums[[outside, -1 - outside]]
    value, low, high = np.exp(np.array([np.median(sums), *ends]) / 2)
    return supported(value, low, high, needs=NEEDS_PAIRS, steps=pairs)


def _repetition(change: np.ndarray) -> float:
    """How many pairs say as much as one would if each were independent of the one before."""
    ranks = np.sign(change) * np.argsort(np.argsort(np.abs(change)))
    if not ranks.any():
        return 1.0
    alike = max(0.0, float((ranks[1:] * ranks[:-1]).sum() / (ranks**2).sum()))
    return (1 + alike) / (1 - alike)
