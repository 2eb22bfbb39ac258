"""Silences: times of a second or more in which no client received a token.

Through HTTP one event loop passes on every token. A collection stops it, and so does an output
handler with a backlog (`repro.plugin.output_handler`); the engine goes on decoding.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from repro.dataset import Campaign, in_window
from repro.dataset.schema import NS_PER_S
from repro.stats.spans import of_rows, overlap

LEAST_NS = 1_000_000_000

COLUMNS = ["run", "arm", "start_ns", "end_ns", "held", "collecting"]


def silences(campaign: Campaign) -> pd.DataFrame:
    """All silences of runs through HTTP, with what occupied the event loop.

    Returns
    -------
    pandas.DataFrame
        One row per silence: `run`, `arm`, `start_ns`, `end_ns` (the tokens before and after it),
        and the shares of it in which the output handler held the event loop (`held`, including
        collections) and the front end collected (`collecting`). Empty where no run of the campaign
        recorded holds, as in older runs.
    """
    if campaign.holds.empty:
        return pd.DataFrame(columns=COLUMNS)
    rows = []
    itl = in_window(campaign, campaign.itl)
    pauses = campaign.pauses[campaign.pauses["role"] == "frontend"]
    for run in campaign.runs[campaign.runs["client"] == "serve"].itertuples():
        held, collecting = (
            of_rows(table[table["run"] == run.run]) for table in (campaign.holds, pauses)
        )
        # A silence also shows in the gaps that end it: times of arrival may be stored coarser.
        gaps = itl[itl["run"] == run.run].groupby("t_ns")["itl_ns"].max()
        arrivals, closing = gaps.index.to_numpy(), gaps.to_numpy()[1:]
        quiet = np.flatnonzero((np.diff(arrivals) >= LEAST_NS) & (closing >= LEAST_NS))
        start, end = arrivals[quiet], arrivals[quiet + 1]
        length = end - start
        rows.append(
            pd.DataFrame(
                {
                    "run": run.run,
                    "arm": run.arm,
                    "start_ns": start,
                    "end_ns": end,
                    "held": overlap(held, start, end) / length,
                    "collecting": overlap(collecting, start, end) / length,
                }
            )
        )
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=COLUMNS)


def in_total(found: pd.DataFrame) -> tuple[float, float, float]:
    """Length of some silences in s, and the shares of it held and collecting; at least one row."""
    length_s = (found["end_ns"] - found["start_ns"]) / NS_PER_S
    held, collecting = (np.average(found[name], weights=length_s) for name in COLUMNS[-2:])
    return float(length_s.sum()), float(held), float(collecting)
