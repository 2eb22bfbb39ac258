"""Memory cost of a policy: resident memory, and garbage that is never reclaimed."""

from __future__ import annotations

import pandas as pd

from repro.dataset import Campaign, in_window, under_load

NEVER_RECLAIMED = ["since", "since_bytes", "kept", "kept_bytes"]


def resident(campaign: Campaign) -> pd.DataFrame:
    """Resident memory of every process before load and after the measured window.

    Returns
    -------
    pandas.DataFrame
        Index `run`, `role`, `rank`, `pid`; `start_bytes` and `growth_bytes`.
    """
    census = campaign.census
    key = ["run", "role", "rank", "pid"]
    start, end = (
        census[census["point"] == point].set_index(key)["rss_bytes"]
        for point in ("window-start", "window-end")
    )
    return pd.DataFrame({"start_bytes": start, "growth_bytes": end - start})


def resident_by_arm(campaign: Campaign) -> pd.DataFrame:
    """Resident memory that processes gain under load, with the steps of the window.

    The gain includes the ramp, so it is not a rate of growth.

    Returns
    -------
    pandas.DataFrame
        One row per arm and role of the runs under load: `arm`, `role`, `runs`, `steps` (of the
        measured window), `start_bytes`, `growth_bytes`, each the mean over runs and ranks.
    """
    campaign = under_load(campaign)
    steps = in_window(campaign, campaign.steps).groupby(["run", "rank"]).size().groupby("run").max()
    found = resident(campaign).reset_index()
    found["steps"] = found["run"].astype(object).map(steps)
    found["arm"] = found["run"].astype(object).map(campaign.runs.set_index("run")["arm"])
    means = found.groupby(["arm", "role"], observed=True, sort=False)
    table = means[["steps", "start_bytes", "growth_bytes"]].mean()
    return table.assign(runs=means["run"].nunique()).reset_index()


def garbage_left(campaign: Campaign) -> pd.DataFrame:
    """Objects in unreachable cycles that a worker still held at its end, by arm.

    Returns
    -------
    pandas.DataFrame
        `arm`, `runs`, `since` and `since_bytes` (made since the freeze, or since warm-up),
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
                "runs": kept["run"].nunique(),
                "since": since["garbage"].max(),
                "since_bytes": since["garbage_bytes"].max(),
                "kept": kept["garbage"].max(),
                "kept_bytes": kept["garbage_bytes"].max(),
            }
        )
    return pd.DataFrame(rows, columns=["arm", "runs", *NEVER_RECLAIMED])
