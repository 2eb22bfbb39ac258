"""Triggers and costs of collections by load, heap and policy: the data of figures and tables."""

from __future__ import annotations

import numpy as np
import pandas as pd

from repro.analysis.gc_cost import gc_time
from repro.analysis.memory import garbage_left, resident
from repro.analysis.tails import tail_table
from repro.dataset import Campaign

PROCESS_POLICIES = ["policy", "engine_policy", "frontend_policy"]


def collections_by_load(campaign: Campaign) -> pd.DataFrame:
    """Collections of the workers by arm, with the requests in flight.

    Returns
    -------
    pandas.DataFrame
        One row per arm and generation: the columns of `gc_time`, `policy`, `concurrency` and
        `unusual`, see `repro.dataset.Campaign`.
    """
    found = gc_time(campaign)
    arms = campaign.runs.drop_duplicates("arm")[["arm", "policy", "concurrency", "unusual"]]
    return found[found["role"] == "worker"].merge(arms, on="arm")


def policies_table(campaign: Campaign) -> pd.DataFrame:
    """Pauses, lost time, tail, throughput and memory of each arm, one row per arm.

    Returns
    -------
    pandas.DataFrame
        Index arm: `PROCESS_POLICIES`, `longest_ms` (of any process), `ms_per_1000_steps` (all
        processes), `p99_ms`, `p999_ms` (ITL; NaN where not supported) each with `_low` and
        `_high`, `tokens_per_s` (mean), `rss_growth_bytes` (all processes, over the window, the
        maximum over the arm's runs), and the columns of `garbage_left`, NaN where not counted.
    """
    lost = gc_time(campaign).groupby("arm")[["max_ms", "ms_per_1000_steps"]]
    runs = campaign.runs
    table = runs.drop_duplicates("arm").set_index("arm")[PROCESS_POLICIES]
    grown = resident(campaign).groupby("run")["growth_bytes"].sum(min_count=1)
    table = table.assign(
        longest_ms=lost.max()["max_ms"].fillna(0),
        ms_per_1000_steps=lost.sum()["ms_per_1000_steps"],
        tokens_per_s=runs.groupby("arm")["tokens_per_s"].mean(),
        rss_growth_bytes=grown.groupby(runs.set_index("run")["arm"]).max(),
    )
    tail = tail_table(campaign)
    tail = tail[tail["supported"]]
    for value, suffix in (("value_ms", ""), ("low_ms", "_low"), ("high_ms", "_high")):
        quantiles = tail.pivot_table(value, "arm", "quantile")
        for name, quantile in (("p99_ms", 0.99), ("p999_ms", 0.999)):
            table[name + suffix] = quantiles.get(quantile, np.nan)
    return table.join(garbage_left(campaign).set_index("arm"))
