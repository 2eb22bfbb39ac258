"""The table of a campaign's runs, which every notebook shows."""

from __future__ import annotations

import pandas as pd

from repro import fmt
from repro.analysis.arms import in_order
from repro.dataset import Campaign, in_window

ALWAYS = {"arm": "arm", "machine": "machine", "vllm": "vLLM", "model": "model"}
ALWAYS |= {"client": "client", "concurrency": "in flight", "replicate": "replicate"}

WHERE_THEY_DIFFER = {"torch": "torch", "python": "Python", "executor": "executor"}
WHERE_THEY_DIFFER |= {"unusual": "unusual requests"}
"""Shown if the campaign's runs differ in it; the label of an arm names everything that they do."""


def runs(campaign: Campaign) -> pd.DataFrame:
    """One row per run: arm, machine, versions, load and throughput.

    Fewer tokens per step than requests in flight mean that the others wait outside the engine.
    """
    found = in_order(campaign.runs.sort_values("started_at"), campaign)
    held = in_window(campaign, campaign.steps).groupby("run", observed=True)["tokens"].median()
    window_s = (found["window_end_ns"] - found["window_start_ns"]) / 1e9
    idle = found["output_tokens"] == 0
    shown = ALWAYS | {
        name: title for name, title in WHERE_THEY_DIFFER.items() if found[name].nunique() > 1
    }
    return (
        found[["run", *shown]]
        .rename(columns=shown)
        .assign(
            run=found["run"].map("`{}`".format),
            **{"window (s)": window_s.map("{:.0f}".format)},
            **{"in flight": found["concurrency"].map("{:,}".format).mask(idle, "–")},
            **{"tokens per step": found["run"].map(held).map("{:,.0f}".format).mask(idle, "–")},
            **{"tokens/s": found["tokens_per_s"].map(fmt.count).mask(idle, "–")},
        )
    )
