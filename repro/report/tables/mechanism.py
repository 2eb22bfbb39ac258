"""Tables of the notebook `mechanism`: CPython's rule and loads."""

from __future__ import annotations

import math

import pandas as pd

from repro import fmt
from repro.analysis.arms import in_order, labels
from repro.analysis.mechanism import collections_by_load
from repro.analysis.trigger import NONE_DUE, OFF, TOLERANCE, WITHIN, trigger_table
from repro.dataset import Campaign


def rule(campaign: Campaign) -> pd.DataFrame:
    """Predicted and observed full collections by arm, process and event that could be judged.

    Both are means over the processes with an observed collection; ratios are given by process.
    """
    found = in_order(trigger_table(campaign), campaign)
    found = found[found["observed_steps"].notna() | found["verdict"].isin([OFF, NONE_DUE])]
    rows = []
    for (arm, role, event), group in found.groupby(["arm", "role", "event"], sort=False):
        seen = group[group["observed_steps"].notna()]
        rows.append(
            {
                "arm": arm,
                "process": fmt.PROCESS[str(role)],
                "full collection": event,
                "predicted (steps)": _steps((seen if len(seen) else group)["predicted_steps"]),
                "observed (steps)": _steps(seen["observed_steps"]) if len(seen) else "none",
                "collections": fmt.amount(group["collections"].sum()),
                "predicted over observed": _spread(seen["ratio"]),
                "step's containers from": ", ".join(group["held_from"].unique()),
                "verdict": ", ".join(group["verdict"].unique()),
            }
        )
    return pd.DataFrame(rows)


def verdicts(campaign: Campaign) -> str:
    """The rule's share of right predictions, one line; empty if it was never put to the test."""
    found = trigger_table(campaign)
    judged = found[found["verdict"].isin([WITHIN, OFF, NONE_DUE])]
    if judged.empty:
        return ""
    right = int((judged["verdict"] != OFF).sum())
    return (
        f"- CPython's rule is right to {TOLERANCE:.0%} for {right} of {len(judged)} processes and "
        f"events, without a fitted number. (`{campaign.path.name}`)"
    )


def loads(campaign: Campaign) -> pd.DataFrame:
    """Collections of the workers per 1,000 steps, by arm, one column per generation."""
    found = collections_by_load(campaign)
    table = found.pivot_table("per_1000_steps", "arm", "generation")
    table = table.reindex([arm for arm in labels(campaign) if arm in table.index])
    table.columns = pd.Index([f"generation {generation}" for generation in table])
    return table.map(fmt.figures).reset_index()


def _steps(values: pd.Series) -> str:
    return "never" if math.isinf(values.mean()) else fmt.figures(values.mean())


def _spread(ratios: pd.Series) -> str:
    """The one ratio, or the smallest and the largest of several."""
    if ratios.empty:
        return "–"
    return " to ".join(dict.fromkeys(map(fmt.figures, (ratios.min(), ratios.max()))))
