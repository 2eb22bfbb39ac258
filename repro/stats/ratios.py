"""Ratios between two arms of quantities that each run gives once, such as a capture's time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from repro.stats.estimate import Estimate, supported, unsupported

NEEDS_RUNS = 2

STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 8: 2.306, 10: 2.228}
STUDENT |= {12: 2.179, 15: 2.131, 20: 2.086, 30: 2.042, 60: 2.000, 120: 1.980}
"""Degrees of freedom -> the 97.5% quantile of Student's t. Between two entries the smaller number
of degrees applies, which gives the wider interval. A table avoids a dependency on SciPy."""


def ratio_of_runs(baseline: Sequence[float], treated: Sequence[float]) -> Estimate:
    """The treated arm's geometric mean over the baseline's, with Welch's interval on logarithms.

    Three to five runs per arm are too few to resample: a bootstrap interval would be too narrow.

    Parameters
    ----------
    baseline, treated : sequence of float
        One number per run, above 0, in any one unit.

    Returns
    -------
    Estimate
        `steps` and `needs` count runs of the smaller arm; not supported below two runs per arm.

    References
    ----------
    Welch, B. L. (1947). The generalization of "Student's" problem when several different
    population variances are involved. Biometrika 34.
    """
    before, after = np.log(np.asarray(baseline)), np.log(np.asarray(treated))
    runs = min(len(before), len(after))
    if runs < NEEDS_RUNS:
        return unsupported(needs=NEEDS_RUNS, steps=runs)
    variances = np.array([after.var(ddof=1) / len(after), before.var(ddof=1) / len(before)])
    freedom = 1.0
    if variances.sum() > 0:  # else every run of an arm gave the very same number
        freedom = variances.sum() ** 2 / (variances**2 / (len(after) - 1, len(before) - 1)).sum()
    return _from_logs(after.mean() - before.mean(), np.sqrt(variances.sum()), freedom, runs)


def ratio_of_pairs(baseline: Sequence[float], treated: Sequence[float]) -> Estimate:
    """The geometric mean of treated over baseline, paired by run, with Student's interval.

    Parameters
    ----------
    baseline, treated : sequence of float, of equal length
        One number per run each, above 0, in any one unit.

    Returns
    -------
    Estimate
        `steps` and `needs` count runs; not supported below two.
    """
    change = np.log(np.asarray(treated)) - np.log(np.asarray(baseline))
    runs = len(change)
    if runs < NEEDS_RUNS:
        return unsupported(needs=NEEDS_RUNS, steps=runs)
    return _from_logs(change.mean(), change.std(ddof=1) / np.sqrt(runs), runs - 1, runs)


def _from_logs(middle: float, error: float, freedom: float, runs: int) -> Estimate:
    """A ratio from the mean of logarithms, its standard error and its degrees of freedom."""
    width = student(freedom) * error
    value, low, high = np.exp([middle, middle - width, middle + width])
    return supported(value, low, high, needs=NEEDS_RUNS, steps=runs)


def student(freedom: float) -> float:
    """The 97.5% quantile of Student's t, or that of the next fewer degrees of freedom known."""
    return STUDENT[max(known for known in STUDENT if known <= freedom + 1e-9)]
