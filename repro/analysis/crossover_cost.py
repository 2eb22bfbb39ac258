"""Engine time of a cross-over and of fresh engines for an interval of the same width.

An interval narrows with the square root of the time measured. Engine time times the squared width
is therefore the cost of a design, whatever the length of its runs. The two intervals differ in
scope: fresh engines include the differences between engines, a cross-over holds for one engine.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from repro.analysis.arms import Pair, pairs
from repro.analysis.tails import effect
from repro.dataset import Campaign

SAME_WORK = ["comparable", "load", "model", "client", "executor"]
"""Columns in which two designs must agree to be compared."""

COLUMNS = ["treated", "runs", "engine_s", "ratio", "price_s"]


def crossover_over_fresh(campaign: Campaign, quantile: float = 0.99) -> pd.DataFrame:
    """Engine time of each cross-over over that of fresh engines, for the same width of interval.

    Parameters
    ----------
    campaign : Campaign
    quantile : float
        Of ITL.

    Returns
    -------
    pandas.DataFrame
        One row per cross-over and pair of arms of fresh engines. Of both, suffixed `_crossover`
        and `_fresh`: `treated`, `runs` (of a cross-over: periods), `engine_s` (start-up included),
        `ratio` (`Estimate`), `price_s` (engine time for an interval of width 1 in logarithms).
        Then `time`, below 1 where the cross-over is cheaper. Pairs without a supported effect or
        of older runs, whose engine time is unknown, are left out.
    """
    found = [row for pair in pairs(campaign) if (row := _cost(campaign, pair, quantile))]
    table = pd.DataFrame(found, columns=[*SAME_WORK, "crossover", *COLUMNS])
    each = [table[table["crossover"] == is_one].drop(columns="crossover") for is_one in (1, 0)]
    both = each[0].merge(each[1], on=SAME_WORK, suffixes=("_crossover", "_fresh"))
    both = both.drop(columns=SAME_WORK)
    return both.assign(time=both["price_s_crossover"] / both["price_s_fresh"])


def _cost(campaign: Campaign, pair: Pair, quantile: float) -> dict[str, object] | None:
    runs = campaign.runs[campaign.runs["arm"].isin([pair.baseline, pair.treated])]
    ratio = effect(campaign, pair.baseline, pair.treated, quantile)
    if runs["wall_s"].isna().any() or not ratio.supported:
        return None
    return {name: runs[name].iloc[0] for name in SAME_WORK} | {
        "crossover": int((runs["switch_s"] > 0).all()),
        "treated": pair.treated,
        "runs": len(runs),
        "engine_s": runs["wall_s"].sum(),
        "ratio": ratio,
        "price_s": runs["wall_s"].sum() * np.log(ratio.high / ratio.low) ** 2,
    }
