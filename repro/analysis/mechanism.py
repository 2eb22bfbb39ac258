"""What triggers collections and what they cost, run by run: the points of figures and tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from repro.analysis.arms import is_frozen
from repro.analysis.gc_cost import full_collections, gc_time
from repro.analysis.memory import garbage_left, resident
from repro.analysis.tails import tail_table
from repro.dataset import Campaign, under_load

POLICIES = ["policy", "engine_policy", "frontend_policy"]
COMING_INTO_BEING = ("imported", "loaded", "profiled", "captured", "ready")
"""Points of a worker's life before load, in order; the first of each, if there are more."""


def collections_by_load(campaign: Campaign) -> pd.DataFrame:
    """Collections of the workers, by arm, with the requests in flight.

    Returns
    -------
    pandas.DataFrame
        One row an arm and generation: the columns of `gc_time`, `policy`, `concurrency` and
        `unusual`, see `repro.dataset.Campaign`.
    """
    found = gc_time(campaign)
    arms = campaign.runs.drop_duplicates("arm")[["arm", "policy", "concurrency", "unusual"]]
    return found[found["role"] == "worker"].merge(arms, on="arm")


def pause_by_objects(campaign: Campaign) -> pd.DataFrame:
    """How long full collections take under load, against the objects they see.

    Returns
    -------
    pandas.DataFrame
        One row a process and run that made one in the window: `run`, `arm`, `role`, `rank`,
        `frozen`, `objects` (tracked under load; before load too, where nothing is frozen, as the
        mean of both), `median_ms`, `collections`.
    """
    campaign = under_load(campaign)
    key = ["run", "role", "rank", "pid"]
    counted = campaign.census.set_index(key)
    ends = counted[counted["point"] == "window-end"]
    starts = counted[counted["point"] == "window-start"]
    frozen = is_frozen(ends)
    # A frozen heap holds next to nothing before load, and that is not what the window saw.
    objects = ends["tracked"].where(frozen, (ends["tracked"] + starts["tracked"]) / 2)
    full = full_collections(campaign)
    durations = full.groupby(["arm", *key], observed=True)["duration_ns"]
    table = durations.agg(median_ns="median", collections="size").reset_index()
    seen = pd.DataFrame({"objects": objects, "frozen": frozen}).reset_index()
    table = table.merge(seen, on=key).assign(median_ms=lambda t: t["median_ns"] / 1e6)
    return table.drop(columns="median_ns")


def objects_from(campaign: Campaign) -> pd.DataFrame:
    """What each stage of a worker's start adds to its heap, in objects, by arm (mean over runs).

    Returns
    -------
    pandas.DataFrame
        Index arm, one column a point of `COMING_INTO_BEING` that was counted; empty if none was.
    """
    census = campaign.census[campaign.census["role"] == "worker"]
    census = census.assign(objects=census["tracked"] + census["frozen"])
    arms = campaign.runs.set_index("run")["arm"].to_dict()
    census = census.assign(arm=census["run"].map(arms).astype(object))
    census = census.sort_values("t_ns").drop_duplicates(["run", "rank", "point"])
    heap = census.pivot_table("objects", "arm", "point", "mean", observed=True)
    points = [point for point in COMING_INTO_BEING if point in heap]
    if "imported" not in points:
        return pd.DataFrame()
    return heap[points].diff(axis=1).fillna({points[0]: heap[points[0]]})


def policies_table(campaign: Campaign) -> pd.DataFrame:
    """What each arm's policies do, in one row: pauses, time lost, tail, throughput, memory.

    Returns
    -------
    pandas.DataFrame
        Index arm: `policy`, `engine_policy`, `frontend_policy`, `longest_ms` (of any process),
        `ms_per_1000_steps` (all processes), `p99_ms`, `p999_ms` (ITL; NaN where not supported),
        `tokens_per_s` (mean), `rss_growth_bytes` (all processes, over the window, the most of
        the arm's runs), and the columns of `garbage_left`, NaN where it was not counted.
    """
    lost = gc_time(campaign).groupby("arm")[["max_ms", "ms_per_1000_steps"]]
    tail = tail_table(campaign)
    tail = tail[tail["supported"]].pivot_table("value_ms", "arm", "quantile")
    runs = campaign.runs
    table = runs.drop_duplicates("arm").set_index("arm")[POLICIES]
    grown = resident(campaign).groupby("run")["growth_bytes"].sum(min_count=1)
    return table.assign(
        longest_ms=lost.max()["max_ms"].fillna(0),
        ms_per_1000_steps=lost.sum()["ms_per_1000_steps"],
        p99_ms=tail.get(0.99, np.nan),
        p999_ms=tail.get(0.999, np.nan),
        tokens_per_s=runs.groupby("arm")["tokens_per_s"].mean(),
        rss_growth_bytes=grown.groupby(runs.set_index("run")["arm"]).max(),
    ).join(garbage_left(campaign).set_index("arm"))


def policies_of(row: Mapping[str, Any]) -> str:
    """What else sets an arm apart, then its policies: one word if all processes have the same.

    Parameters
    ----------
    row : mapping
        `arm` and `POLICIES`, as rows of `policies_table` have them.
    """
    worker, engine, frontend = (row[name] for name in POLICIES)
    setting = str(row["arm"]).removesuffix(worker).removesuffix(": ")
    for others in ("all", f"engine {engine}, front end {frontend}"):
        setting = setting.strip().removesuffix(others).strip()
    names = "all " + worker if worker == engine == frontend else f"{worker} / {engine} / {frontend}"
    return f"{setting} {names}".strip()
