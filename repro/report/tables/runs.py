"""The table of a campaign's runs, and the marks of runs measured beside other programs."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from repro import fmt
from repro.analysis.arms import in_order
from repro.dataset import Campaign, in_window
from repro.experiment.config import Experiment
from repro.experiment.parameters import parameters

ALWAYS = {"arm": "arm", "machine": "machine", "vllm": "vLLM", "model": "model"}
ALWAYS |= {"client": "client", "concurrency": "in flight", "replicate": "replicate"}

WHERE_THEY_DIFFER = {"torch": "torch", "python": "Python"} | {
    name: name.replace("_", " ")
    for name in parameters(Experiment)
    if name not in {*ALWAYS, "policy", "output_tokens", "duration_s", "runner"}
}
"""Shown if the campaign's runs differ in it."""

BUSY = 0.1
"""Share of the cores that other programs may use before a run counts as noisy."""

MARK = " ‡"
NOTE = (
    f"{MARK.strip()} Measured beside other programs, which kept more than {BUSY:.0%} of the cores "
    "busy before the run or during its window."
)


def runs(campaign: Campaign) -> pd.DataFrame:
    """One row per run: arm, machine, versions, whatever differs among the runs, and throughput.

    Fewer tokens per step than requests in flight mean that the others wait outside the engine.
    """
    found = in_order(campaign.runs.sort_values("started_at"), campaign)
    held = in_window(campaign, campaign.steps).groupby("run", observed=True)["tokens"].median()
    window_s = (found["window_end_ns"] - found["window_start_ns"]) / 1e9
    idle = found["output_tokens"] == 0
    shown = ALWAYS | {
        name: title
        for name, title in WHERE_THEY_DIFFER.items()
        if name in found and found[name].nunique() > 1
    }
    return (
        found[["run", *shown]]
        .rename(columns=shown)
        .assign(
            run=[f"`{run}`{MARK if run in noisy(campaign) else ''}" for run in found["run"]],
            **{"window (s)": window_s.map("{:.0f}".format)},
            **{"in flight": found["concurrency"].map("{:,}".format).mask(idle, "–")},
            **{"tokens per step": found["run"].map(held).map("{:,.0f}".format).mask(idle, "–")},
            **{"tokens/s": found["tokens_per_s"].map(fmt.count).mask(idle, "–")},
            **{"other programs": [_others(row) for row in found.itertuples()]},
        )
    )


def campaigns(found: Sequence[Campaign]) -> pd.DataFrame:
    """One row per campaign: machine, versions, arms and runs."""
    rows = []
    for campaign in found:
        runs = campaign.runs
        loads = sorted(runs["concurrency"].unique())
        rows.append(
            {
                "campaign": f"`{campaign.path.name}`",
                "machine": fmt.listed(runs["machine"].unique()),
                "vLLM": fmt.listed(sorted(runs["vllm"].unique())),
                "client": fmt.listed(sorted(runs["client"].unique())),
                "in flight": fmt.listed(f"{load:,}" for load in loads),
                "arms": f"{runs['arm'].nunique()}",
                "runs": f"{len(runs)}{MARK if noisy(campaign) else ''}",
            }
        )
    return pd.DataFrame(rows)


def noisy(campaign: Campaign) -> set[str]:
    """The runs beside which other programs kept too many cores busy."""
    runs = campaign.runs
    return set(runs.loc[(runs[["others_before", "others_during"]] > BUSY).any(axis=1), "run"])


def marked(rows: pd.DataFrame, campaign: Campaign) -> pd.DataFrame:
    """A table of texts in which every arm with a noisy run bears a mark."""
    arms = set(campaign.runs.loc[campaign.runs["run"].isin(noisy(campaign)), "arm"])
    marked: pd.DataFrame = rows.map(lambda cell: f"{cell}{MARK}" if cell in arms else cell)
    return marked


def _others(row: pd.Series) -> str:
    """Share of the cores that other programs used before the run and during its window."""
    if pd.isna(row.others_before):
        return "not recorded"
    during = "" if pd.isna(row.others_during) else f", {row.others_during:.0%} during"
    return f"{row.others_before:.0%} before{during}"
