"""Engine time of a cross-over and of fresh engines for an interval of the same width.

An interval narrows with the square root of the time measured. Engine time times the squared width
is therefore the cost of a design, whatever the length of its runs. The two intervals differ in
scope: fresh engines include the differences between engines, a cross-over holds for one engine.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from repro.analysis.arms import pairs
from repro.analysis.tails import effect
from repro.dataset import Campaign

FRESH, CROSSOVER = "fresh engines", "cross-over"

SAME_WORK = ["comparable", "load", "model", "client", "executor"]
"""What two designs must share to be compared."""


def interval_costs(campaign: Campaign, quantile: float = 0.99) -> pd.DataFrame:
    """The engine time of each design, and the interval of the freeze's effect it bought.

    Parameters
    ----------
    campaign : Campaign
    quantile : float
        Of ITL.

    Returns
    -------
    pandas.DataFrame
        One row per pair of arms with a supported effect and known engine time: `SAME_WORK`,
        `design`, `baseline`, `treated`, `runs` (of a cross-over: periods), `engine_s` (start-up
        included),
        `ratio` (`Estimate`), `width` (of its interval, in logarithms), `price_s` (engine time for
        an interval of width 1).
    """
    rows = []
    for pair in pairs(campaign):
        runs = campaign.runs[campaign.runs["arm"].isin([pair.baseline, pair.treated])]
        if runs["wall_s"].isna().any():
            continue
        ratio = effect(campaign, pair.baseline, pair.treated, quantile)
        if not ratio.supported:
            continue
        engine_s, width = runs["wall_s"].sum(), np.log(ratio.high / ratio.low)
        rows.append(
            {name: runs[name].iloc[0] for name in SAME_WORK}
            | {
                "design": CROSSOVER if (runs["switch_s"] > 0).all() else FRESH,
                "baseline": pair.baseline,
                "treated": pair.treated,
                "runs": len(runs),
                "engine_s": engine_s,
                "ratio": ratio,
                "width": width,
                "price_s": engine_s * width**2,
            }
        )
    columns = [*SAME_WORK, "design", "baseline", "treated", "runs", "engine_s", "ratio", "width"]
    return pd.DataFrame(rows, columns=[*columns, "price_s"])


def crossover_over_fresh(found: pd.DataFrame) -> pd.DataFrame:
    """Engine time of each cross-over over that of fresh engines, for the same width.

    Parameters
    ----------
    found : pandas.DataFrame
        From `interval_costs`.

    Returns
    -------
    pandas.DataFrame
        One row per cross-over and pair of arms of fresh engines: the columns of `interval_costs`
        without `SAME_WORK` and `design`, suffixed `_crossover` and `_fresh`; `time`, below 1 where
        the cross-over is cheaper.
    """
    each = [found[found["design"] == name].drop(columns="design") for name in (CROSSOVER, FRESH)]
    both = (
        each[0]
        .merge(each[1], on=SAME_WORK, suffixes=("_crossover", "_fresh"))
        .drop(columns=SAME_WORK)
    )
    return both.assign(time=both["price_s_crossover"] / both["price_s_fresh"])
