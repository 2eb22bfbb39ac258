"""Triggers and costs of collections by load, heap and policy: the data of figures and tables."""

from __future__ import annotations

import numpy as np
import pandas as pd

from repro.analysis.arms import is_frozen
from repro.analysis.gc_cost import full_collections, gc_time
from repro.analysis.memory import garbage_left, resident
from repro.analysis.tails import tail_table
from repro.dataset import Campaign, under_load
from repro.dataset.schema import NS_PER_MS

PROCESS_POLICIES = ["policy", "engine_policy", "frontend_policy"]

START_UP_POINTS = ("imported", "loaded", "profiled", "captured", "ready")
"""Points of the census before load, in order."""


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


def pause_by_objects(campaign: Campaign) -> pd.DataFrame:
    """Length of full collections under load against the objects they visit.

    Returns
    -------
    pandas.DataFrame
        One row per process and run with a full collection in the window: `run`, `arm`, `role`,
        `rank`, `frozen`, `objects` (tracked under load; where nothing is frozen, the mean of
        before and under load), `median_ms`, `collections`.
    """
    campaign = under_load(campaign)
    key = ["run", "role", "rank", "pid"]
    counted = campaign.census.set_index(key)
    ends = counted[counted["point"] == "window-end"]
    starts = counted[counted["point"] == "window-start"]
    frozen = is_frozen(ends)
    # A frozen heap tracks almost nothing before load, which is not what the window met.
    objects = ends["tracked"].where(frozen, (ends["tracked"] + starts["tracked"]) / 2)
    full = full_collections(campaign)
    durations = full.groupby(["arm", *key], observed=True)["duration_ns"]
    table = durations.agg(median_ns="median", collections="size").reset_index()
    seen = pd.DataFrame({"objects": objects, "frozen": frozen}).reset_index()
    table = table.merge(seen, on=key).assign(median_ms=lambda t: t["median_ns"] / NS_PER_MS)
    return table.drop(columns="median_ns")


def objects_added(campaign: Campaign) -> pd.DataFrame:
    """Objects that each stage of a worker's start-up adds to its heap, by arm (mean over runs).

    Returns
    -------
    pandas.DataFrame
        Index arm, one column per point of `START_UP_POINTS` that was counted; empty if none was.
    """
    census = campaign.census[campaign.census["role"] == "worker"]
    census = census.assign(objects=census["tracked"] + census["frozen"])
    arms = campaign.runs.set_index("run")["arm"].to_dict()
    census = census.assign(arm=census["run"].map(arms).astype(object))
    census = census.sort_values("t_ns").drop_duplicates(["run", "rank", "point"])
    heap = census.pivot_table("objects", "arm", "point", "mean", observed=True)
    points = [point for point in START_UP_POINTS if point in heap]
    if "imported" not in points:
        return pd.DataFrame()
    return heap[points].diff(axis=1).fillna({points[0]: heap[points[0]]})


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
