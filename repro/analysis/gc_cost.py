"""Time lost to collections per 1,000 steps, and a list of all full collections."""

from __future__ import annotations

import numpy as np
import pandas as pd

from repro.dataset import Campaign, in_window
from repro.dataset.schema import NS_PER_MS
from repro.stats.bootstrap import Integers
from repro.theory.cpython_rule import FULL

GENERATIONS = (0, 1, FULL)

_TIME_COLUMNS = [
    *("arm", "role", "generation", "steps", "pauses"),
    *("per_1000_steps", "ms_per_1000_steps", "max_ms", "median_ms"),
]


def gc_time(campaign: Campaign) -> pd.DataFrame:
    """Time lost to collections in the measured windows, by arm, role and generation.

    Returns
    -------
    pandas.DataFrame
        `arm`, `role`, `generation` (all three for each role that recorded anything in the arm),
        `steps` (total over the role's processes), `pauses`, `per_1000_steps`, `ms_per_1000_steps`
        (both for one process of the role), `max_ms`, `median_ms` (of one pause; NaN where there
        was none).
    """
    arms = campaign.runs.set_index("run")["arm"]
    steps = _steps_taken(campaign)
    # Ramp and start-up included: a role without a single pause in the window still counts.
    processes = campaign.pauses[["run", "role", "rank"]].drop_duplicates()
    processes = processes.assign(arm=_of_run(processes, arms), steps=_of_run(processes, steps))
    pauses = in_window(campaign, campaign.pauses)
    pauses = pauses.assign(arm=_of_run(pauses, arms))
    table = []
    for (arm, role), group in processes.groupby(["arm", "role"]):
        of_role = pauses[(pauses["arm"] == arm) & (pauses["role"] == role)]
        for generation in GENERATIONS:
            lost = of_role.loc[of_role["generation"] == generation, "duration_ns"] / NS_PER_MS
            thousands = group["steps"].sum() / 1000 or np.nan
            table.append(
                {
                    "arm": arm,
                    "role": role,
                    "generation": generation,
                    "steps": group["steps"].sum(),
                    "pauses": len(lost),
                    "per_1000_steps": len(lost) / thousands,
                    "ms_per_1000_steps": lost.sum() / thousands,
                    "max_ms": lost.max(),
                    "median_ms": lost.median(),
                }
            )
    return pd.DataFrame(table, columns=_TIME_COLUMNS)


def full_collections(campaign: Campaign) -> pd.DataFrame:
    """All full collections in the measured windows, with the steps since the previous one.

    Returns
    -------
    pandas.DataFrame
        `run`, `arm`, `role`, `rank`, `pid`, `start_ns`, `duration_ns`, `step`
        (steps entered by then of the process's own rank, or of rank 0 where it took none),
        `period_steps` (since the process's previous one in the window; NaN for its first).
        Ascending in time within a process.
    """
    full = in_window(campaign, campaign.pauses)
    full = full[full["generation"] == FULL].sort_values(["run", "role", "rank", "start_ns"])
    entries = {
        key: np.sort(group["start_ns"].to_numpy("int64"))
        for key, group in campaign.steps.groupby(["run", "rank"], observed=True)
    }
    nothing: Integers = np.zeros(0, dtype=np.int64)
    step = pd.Series(0, index=full.index, dtype="int64")
    for (run, rank), group in full.groupby(["run", "rank"], observed=True):
        own = entries.get((run, rank), entries.get((run, 0), nothing))
        step[group.index] = np.searchsorted(own, group["start_ns"].to_numpy("int64"), side="right")
    full = full.assign(arm=_of_run(full, campaign.runs.set_index("run")["arm"]), step=step)
    period = full.groupby(["run", "role", "rank", "pid"], observed=True)["step"].diff()
    columns = ["run", "arm", "role", "rank", "pid", "start_ns", "duration_ns", "step"]
    return full[columns].assign(period_steps=period).reset_index(drop=True)


def _steps_taken(campaign: Campaign) -> pd.Series:
    """Steps in the window of each run, the mean over its ranks."""
    inside = in_window(campaign, campaign.steps)
    per_rank = inside.groupby(["run", "rank"], observed=True).size()
    taken = per_rank.groupby("run", observed=True).mean()
    return taken.reindex(campaign.runs["run"], fill_value=0).round().astype("int64")


def _of_run(table: pd.DataFrame, values: pd.Series) -> pd.Series:
    """The value of each row's run, by the run's name."""
    return table["run"].astype(values.index.dtype).map(values)
