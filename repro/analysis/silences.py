"""Silences: times of a second or more in which no client received a token.

Through HTTP one event loop passes on every token. A collection stops it, and so does an output
handler with a backlog (`repro.plugin.output_handler`); the engine goes on decoding.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from repro.analysis.attribution import covered
from repro.dataset import Campaign, in_window

LEAST_NS = 1_000_000_000

COLUMNS = ["run", "arm", "start_ns", "end_ns", "held", "collecting", "waiting"]


def silences(campaign: Campaign) -> pd.DataFrame:
    """All silences of runs through HTTP, with what occupied the event loop.

    Returns
    -------
    pandas.DataFrame
        One row per silence: `run`, `arm`, `start_ns`, `end_ns` (the tokens before and after it),
        and the shares of it in which the output handler held the event loop (`held`, including
        collections), the front end collected (`collecting`), and the engine was idle (`waiting`:
        from the end of its last step with tokens). Empty where no run of the campaign recorded
        holds, as in older runs.
    """
    if campaign.holds.empty:
        return pd.DataFrame(columns=COLUMNS)
    rows = []
    itl = in_window(campaign, campaign.itl)
    for run in campaign.runs[campaign.runs["client"] == "serve"].itertuples():
        holds = campaign.holds[campaign.holds["run"] == run.run]
        pauses = campaign.pauses[campaign.pauses["run"] == run.run]
        steps = campaign.steps[campaign.steps["run"] == run.run]
        arrivals = np.unique(itl.loc[itl["run"] == run.run, "t_ns"])
        quiet = np.flatnonzero(np.diff(arrivals) >= LEAST_NS)
        start, end = arrivals[quiet], arrivals[quiet + 1]
        length = end - start
        rows.append(
            pd.DataFrame(
                {
                    "run": run.run,
                    "arm": run.arm,
                    "start_ns": start,
                    "end_ns": end,
                    "held": covered(holds, start, end) / length,
                    "collecting": covered(pauses[pauses["role"] == "frontend"], start, end)
                    / length,
                    "waiting": 1 - covered(_busy(steps), start, end) / length,
                }
            )
        )
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=COLUMNS)


def _busy(steps: pd.DataFrame) -> pd.DataFrame:
    """Spans from each step with tokens to the next, or of the step where none follows soon."""
    loaded = steps[steps["tokens"] > 0].sort_values("start_ns")
    start = loaded["start_ns"].to_numpy("int64")
    until_next = np.append(np.diff(start), np.iinfo(np.int64).max)
    usual = 3 * np.median(until_next) if len(start) else 0
    length = np.where(until_next <= usual, until_next, loaded["duration_ns"].to_numpy("int64"))
    return pd.DataFrame({"start_ns": start, "duration_ns": length})
