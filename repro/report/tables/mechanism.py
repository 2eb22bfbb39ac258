"""Tables of the notebook `mechanism`: CPython's rule, loads, policies, memory, advice."""

from __future__ import annotations

import math

import pandas as pd

from repro import fmt
from repro.analysis.arms import in_order, labels
from repro.analysis.mechanism import collections_by_load, policies_table
from repro.analysis.memory import resident_by_arm
from repro.analysis.recorded_setting import setting_of
from repro.analysis.trigger import NONE_DUE, OFF, TOLERANCE, WITHIN, trigger_table
from repro.dataset import Campaign
from repro.theory.advice import QUANTILES, advise
from repro.theory.cpython_rule import UnknownCollector

MIB = 2**20

LONG_RUN = 10_000
"""Steps that a run needs to tell what a policy keeps from what the first requests allocate."""


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


def policies(campaign: Campaign) -> pd.DataFrame:
    """Pauses, lost time, tail, throughput, memory and garbage of each arm."""
    table = policies_table(campaign).reindex(labels(campaign))
    return pd.DataFrame(
        {
            "arm": table.index,
            "longest pause (ms)": table["longest_ms"].map(fmt.figures),
            "GC per 1,000 steps (ms)": table["ms_per_1000_steps"].map(fmt.figures),
            "P99 ITL (ms)": _with_interval(table, "p99_ms"),
            "P99.9 ITL (ms)": _with_interval(table, "p999_ms"),
            "tokens/s": table["tokens_per_s"].map(fmt.count),
            "RSS gained (MiB)": (table["rss_growth_bytes"] / MIB).map(fmt.figures),
            "garbage in the worker from before the freeze": _garbage(table, "kept"),
            "garbage since": _garbage(table, "since"),
        }
    )


def memory(campaign: Campaign) -> pd.DataFrame:
    """Resident memory by arm and process of long runs: before load, and the gain under load."""
    found = resident_by_arm(campaign)
    found = found[found["steps"] >= LONG_RUN]
    roles = found["role"].map(list(fmt.PROCESS).index)
    found = in_order(found.assign(roles=roles).sort_values("roles"), campaign)
    return pd.DataFrame(
        {
            "arm": found["arm"],
            "process": found["role"].map(fmt.PROCESS),
            "runs": found["runs"],
            "steps": found["steps"].map(fmt.count),
            "before load (MiB)": (found["start_bytes"] / MIB).map(fmt.count),
            "gained (MiB)": (found["growth_bytes"] / MIB).map(fmt.figures),
        }
    )


def advice(campaign: Campaign) -> pd.DataFrame:
    """Advice of `repro advise` for the first run of each arm; arms without advice are left out."""
    rows = []
    for arm in labels(campaign):
        run = campaign.runs.loc[campaign.runs["arm"] == arm, "run"].iloc[0]
        try:
            found = advise(setting_of(campaign, str(run)))
        except (UnknownCollector, ValueError):
            continue
        reached = fmt.listed(fmt.quantile(q) for q in QUANTILES if found.reaches(q))
        rows.append(
            {
                "arm": arm,
                "a full collection every (steps)": (
                    fmt.count(found.period_steps) if found.fires else "never"
                ),
                "takes (ms)": fmt.figures(found.pause_ms) if found.fires else "–",
                "lengthens": fmt.percent(found.stalled_share) if found.fires else "–",
                "can reach": reached,
                "to set": found.to_set,
            }
        )
    return pd.DataFrame(rows)


def _with_interval(table: pd.DataFrame, name: str) -> list[str]:
    """A quantile by arm with its 95% interval; a dash where it is not supported."""
    return [
        "–" if math.isnan(value) else f"{fmt.figures(value)} ({fmt.bounds(low, high)})"
        for value, low, high in table[[name, f"{name}_low", f"{name}_high"]].to_numpy()
    ]


def _garbage(table: pd.DataFrame, kind: str) -> list[str]:
    """Objects in unreachable cycles, and their bytes; a dash where they were not counted."""
    return [
        "–" if math.isnan(number) else f"{fmt.amount(number)} ({fmt.amount(size)} bytes)"
        for number, size in zip(table[kind], table[f"{kind}_bytes"], strict=True)
    ]


def _steps(values: pd.Series) -> str:
    return "never" if math.isinf(values.mean()) else fmt.figures(values.mean())


def _spread(ratios: pd.Series) -> str:
    """The one ratio, or the smallest and the largest of several."""
    if ratios.empty:
        return "–"
    return " to ".join(dict.fromkeys(map(fmt.figures, (ratios.min(), ratios.max()))))
