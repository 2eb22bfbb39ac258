"""Triggers and costs of collections by load, heap and policy: the data of figures and tables."""

from __future__ import annotations

import numpy as np
import pandas as pd

from repro.analysis.gc_cost import gc_time
from repro.analysis.tails import tail_table
from repro.dataset import Campaign

PROCESS_POLICIES = ["policy", "engine_policy", "frontend_policy"]


def others_stock(runs: pd.DataFrame) -> pd.Series:
    """Whether engine core and front end are as vLLM has them, of each run or arm."""
    return (runs[PROCESS_POLICIES[1:]] == "stock").all(axis=1)


def untouched(runs: pd.DataFrame) -> pd.Series:
    """Whether every process is as vLLM has it, of each run or arm."""
    return others_stock(runs) & (runs["policy"] == "stock")


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
    """Tail, throughput and lost time of each arm, one row per arm.

    Returns
    -------
    pandas.DataFrame
        Index arm: `PROCESS_POLICIES`, `ms_per_1000_steps` (all processes), `tokens_per_s` (mean),
        `p99_ms`, `p999_ms` (ITL; NaN where not supported) each with `_low` and `_high`.
    """
    runs = campaign.runs
    table = runs.drop_duplicates("arm").set_index("arm")[PROCESS_POLICIES]
    table = table.assign(
        ms_per_1000_steps=gc_time(campaign).groupby("arm")["ms_per_1000_steps"].sum(min_count=1),
        tokens_per_s=runs.groupby("arm")["tokens_per_s"].mean(),
    )
    tail = tail_table(campaign)
    tail = tail[tail["supported"]]
    for value, suffix in (("value_ms", ""), ("low_ms", "_low"), ("high_ms", "_high")):
        quantiles = tail.pivot_table(value, "arm", "quantile")
        for name, quantile in (("p99_ms", 0.99), ("p999_ms", 0.999)):
            table[name + suffix] = quantiles.get(quantile, np.nan)
    return table


def garbage_left(campaign: Campaign) -> pd.DataFrame:
    """Objects in unreachable cycles that a worker still held at its end, by arm.

    Returns
    -------
    pandas.DataFrame
        `arm`, `since` and `since_bytes` (made since the freeze, or since warm-up),
        `kept` and `kept_bytes` (kept by the freeze): the maximum over the arm's runs.
    """
    census = campaign.census[campaign.census["garbage"].notna()]
    rows = []
    for arm, runs in campaign.runs.groupby("arm")["run"]:
        own = census[census["run"].isin(runs)]
        since, kept = (own[own["point"] == point] for point in ("shutdown", "thawed"))
        if kept.empty:
            continue
        rows.append(
            {
                "arm": arm,
                "since": since["garbage"].max(),
                "since_bytes": since["garbage_bytes"].max(),
                "kept": kept["garbage"].max(),
                "kept_bytes": kept["garbage_bytes"].max(),
            }
        )
    return pd.DataFrame(rows, columns=["arm", "since", "since_bytes", "kept", "kept_bytes"])
