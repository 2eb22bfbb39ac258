"""Mean of one ratio measured in several settings, by random effects."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from repro.stats.estimate import Estimate, supported
from repro.stats.ratios import student

NORMAL = 1.96
"""Half the width of a 95% interval, in standard errors."""

NEEDS_SETTINGS = 3


def mean_ratio(ratios: Sequence[Estimate]) -> Estimate:
    """The geometric mean over settings, which may truly differ, with its 95% interval.

    Parameters
    ----------
    ratios : sequence of Estimate
        Independent, supported, at least `NEEDS_SETTINGS`.

    Returns
    -------
    Estimate
        `steps` and `needs` count settings.

    Notes
    -----
    A setting weighs as its interval is narrow. Intervals in logarithms count as symmetric. The
    mean's own interval is Student's on the spread that the settings show, and never narrower than
    their intervals imply.

    References
    ----------
    DerSimonian, R. and Laird, N. (1986). Meta-analysis in clinical trials. Controlled Clinical
    Trials 7. Röver, C., Knapp, G. and Friede, T. (2015). Hartung-Knapp-Sidik-Jonkman approach and
    its modification for random-effects meta-analysis with few studies. BMC Medical Research
    Methodology 15.
    """
    logs = np.log([[ratio.value, ratio.low, ratio.high] for ratio in ratios])
    effects, freedom = logs[:, 0], len(logs) - 1
    variances = ((logs[:, 2] - logs[:, 1]) / (2 * NORMAL)) ** 2
    weights = 1 / variances
    excess = _spread(effects, weights) - freedom
    between = max(0.0, excess / (weights.sum() - (weights**2).sum() / weights.sum()))
    weights = 1 / (variances + between)
    middle = np.average(effects, weights=weights)
    inflation = max(1.0, _spread(effects, weights) / freedom)
    reach = student(freedom) * np.sqrt(inflation / weights.sum())
    value, low, high = np.exp([middle, middle - reach, middle + reach])
    return supported(value, low, high, needs=NEEDS_SETTINGS, steps=len(logs))


def _spread(effects: np.ndarray, weights: np.ndarray) -> float:
    """Weighted sum of squared distances from the weighted mean (Cochran's Q)."""
    middle = np.average(effects, weights=weights)
    return float((weights * (effects - middle) ** 2).sum())
