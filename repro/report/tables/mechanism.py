"""Tables and sentences of the mechanism: the rule against the runs, policies, advice."""

from __future__ import annotations

import math

import pandas as pd

from repro import fmt
from repro.analysis.arms import ordered_arms
from repro.analysis.mechanism import collections_by_load, policies_of, policies_table
from repro.analysis.memory import resident_by_arm
from repro.analysis.trigger import trigger_table
from repro.dataset import Campaign
from repro.theory.advice import advise, setting_of
from repro.theory.cpython_rule import UnknownCollector

MIB = 2**20


def rule(campaign: Campaign) -> pd.DataFrame:
    """Predicted against observed full collections, by arm, process and event."""
    found = trigger_table(campaign)
    rows = []
    for (arm, role, event), group in found.groupby(["arm", "role", "event"], sort=False):
        seen = group["observed_steps"].mean()
        rows.append(
            {
                "arm": arm,
                "process": fmt.PROCESS[str(role)],
                "full collection": event,
                "predicted (steps)": _steps(group["predicted_steps"].mean()),
                "observed (steps)": _steps(seen) if not math.isnan(seen) else "none",
                "collections": fmt.amount(group["collections"].sum()),
                "predicted over observed": fmt.figures(group["ratio"].mean()),
                "what a step holds from": ", ".join(group["held_from"].unique()),
                "verdict": ", ".join(group["verdict"].unique()),
            }
        )
    return pd.DataFrame(rows)


def loads(campaign: Campaign) -> pd.DataFrame:
    """Collections of the workers per 1,000 steps, by arm, one column a generation."""
    found = collections_by_load(campaign)
    table = found.pivot_table("per_1000_steps", "arm", "generation")
    table = table.reindex([arm for arm in ordered_arms(campaign) if arm in table.index])
    table.columns = pd.Index([f"generation {generation}" for generation in table])
    return table.map(fmt.figures).reset_index()


def policies(campaign: Campaign) -> pd.DataFrame:
    """What each arm's policies do: pauses, time lost, tail, throughput, memory, garbage."""
    table = policies_table(campaign).reindex(ordered_arms(campaign))
    return pd.DataFrame(
        {
            "worker / engine core / front end": [
                policies_of(row) for row in table.reset_index().to_dict("records")
            ],
            "longest pause (ms)": table["longest_ms"].map(fmt.figures),
            "GC per 1,000 steps (ms)": table["ms_per_1000_steps"].map(fmt.figures),
            "P99 ITL (ms)": table["p99_ms"].map(fmt.figures),
            "P99.9 ITL (ms)": table["p999_ms"].map(fmt.figures),
            "tokens/s": table["tokens_per_s"].map(fmt.count),
            "RSS gained (MiB)": (table["rss_growth_bytes"] / MIB).map(fmt.figures),
            "worker never reclaimed, from before the freeze": _garbage(table, "kept"),
            "and made since": _garbage(table, "since"),
        }
    )


def memory(campaign: Campaign) -> pd.DataFrame:
    """Resident memory by arm and process: before load, and what the load added."""
    found = resident_by_arm(campaign)
    arms = found["arm"].map(ordered_arms(campaign).index)
    roles = found["role"].map(list(fmt.PROCESS).index)
    found = found.assign(arms=arms, roles=roles).sort_values(["arms", "roles"])
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


def advice(campaign: Campaign) -> str:
    """What `repro advise` says of the first run of each arm, as Markdown."""
    said = []
    for arm in ordered_arms(campaign):
        run = campaign.runs.loc[campaign.runs["arm"] == arm, "run"].iloc[0]
        try:
            lines = advise(setting_of(campaign, str(run))).lines
        except (UnknownCollector, ValueError) as none:
            lines = (str(none),)
        said.append(f"**{arm}**: " + " ".join(lines))
    return "\n\n".join(said)


def _garbage(table: pd.DataFrame, kind: str) -> list[str]:
    """Objects in abandoned cycles, and their bytes; a dash where they were not counted."""
    return [
        "–" if math.isnan(number) else f"{fmt.amount(number)} ({fmt.amount(size)} bytes)"
        for number, size in zip(table[kind], table[f"{kind}_bytes"], strict=True)
    ]


def _steps(value: float) -> str:
    return "never" if math.isinf(value) else fmt.figures(value)
