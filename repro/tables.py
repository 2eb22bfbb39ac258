"""The tables and sentences a notebook closes with, every number computed from the campaign."""

from __future__ import annotations

import pandas as pd

from repro import words
from repro.analysis.arms import ordered_arms, pairs
from repro.analysis.attribution import UNEXPLAINED, attribute, by_arm
from repro.analysis.captures import capture_times
from repro.analysis.gc_cost import gc_time
from repro.analysis.release import likeness, twins
from repro.analysis.tails import Estimate, Metric, effect, tail_table
from repro.dataset import Campaign

CLOSING = (0.5, 0.99, 0.999, 1.0)
"""The quantiles of the closing table."""

BASIS = {"policy": "policy", "machine": "machine", "vllm": "vLLM", "torch": "torch"}
BASIS |= {"python": "Python", "client": "client", "executor": "executor", "model": "model"}
BASIS |= {"concurrency": "in flight", "replicate": "replicate"}

GIB = 2**30


def basis(campaign: Campaign) -> pd.DataFrame:
    """The runs a campaign rests on: what ran where, how long, how fast."""
    runs = campaign.runs.sort_values("started_at")
    window_s = (runs["window_end_ns"] - runs["window_start_ns"]) / 1e9
    return (
        runs[["run", *BASIS]]
        .rename(columns=BASIS)
        .assign(
            run=runs["run"].map("`{}`".format),
            **{"window (s)": window_s.map("{:.0f}".format)},
            **{"tokens/s": runs["tokens_per_s"].map(words.count)},
        )
    )


def tail(campaign: Campaign, metric: Metric = "itl") -> pd.DataFrame:
    """Quantiles by arm in ms, each with its 95% interval; what is not supported says so."""
    found = tail_table(campaign, metric).set_index(["arm", "quantile"])
    rows = []
    for arm in ordered_arms(campaign):
        row = {"arm": arm}
        for quantile in CLOSING:
            cell = found.loc[(arm, quantile)]
            row[f"{words.quantile(quantile)} (ms)"] = (
                f"{words.figures(cell['value_ms'])} "
                f"({words.bounds(cell['low_ms'], cell['high_ms'])})"
                if cell["supported"]
                else f"needs {cell['needs']:,.0f} steps"
            )
        rows.append(row | {"steps": f"{cell['steps']:,.0f}", "runs": f"{cell['runs']:.0f}"})
    return pd.DataFrame(rows)


def effects(campaign: Campaign, metric: Metric = "itl") -> pd.DataFrame:
    """Ratios of the frozen arm to the other, by quantile, each with its 95% interval."""
    rows = []
    for pair in pairs(campaign):
        row = {"frozen": pair.treated, "over": pair.baseline}
        for quantile in CLOSING:
            ratio = effect(campaign, pair.baseline, pair.treated, quantile, metric)
            row[words.quantile(quantile)] = words.ratio(ratio) if ratio.supported else "–"
        rows.append(row)
    return pd.DataFrame(rows)


def meaning(campaign: Campaign, metric: Metric = "itl") -> str:
    """One paragraph a pair of arms: at which quantiles the freeze lowers the tail."""
    said = []
    runs = campaign.runs["arm"].value_counts()
    for pair in pairs(campaign):
        if min(runs[pair.baseline], runs[pair.treated]) < 2:
            what = "one run of an arm cannot tell the policy's effect from the run's own"
            said.append(f"**{pair.treated}** against **{pair.baseline}**: {what}.")
            continue
        parts: dict[str, list[str]] = {}
        for quantile in CLOSING[:-1]:  # of the longest gap an interval says little
            ratio = effect(campaign, pair.baseline, pair.treated, quantile, metric)
            parts.setdefault(_direction(ratio), []).append(words.quantile(quantile))
        each = "; ".join(f"{how} at {words.listed(names)}" for how, names in parts.items())
        said.append(f"**{pair.treated}** against **{pair.baseline}**: {each}.")
    return "\n\n".join(said) or "The campaign has no two arms that differ in the freeze alone."


def _direction(ratio: Estimate) -> str:
    if not ratio.supported:
        return "too few steps to say"
    if ratio.high < 1:
        return "lower"
    return "higher" if ratio.low > 1 else "no clear difference"


def patch_against_release(campaign: Campaign) -> pd.DataFrame:
    """The release over the patch, frozen and not: ratios that should all include 1."""
    rows = [
        {"after": pair.after, "over before": pair.before}
        | {name: words.ratio(found) for name, found in likeness(campaign, pair).items()}
        for pair in twins(campaign)
    ]
    return pd.DataFrame(rows)


def causes(campaign: Campaign, factor: float) -> pd.DataFrame:
    """Which pauses explain the gaps above `factor` times the median, beside chance."""
    found = by_arm(attribute(campaign, factor))
    found = found[(found["tail_steps"] > 0) & ((found["steps"] > 0) | _unexplained(found))]
    return pd.DataFrame(
        {
            "arm": found["arm"],
            "pauses of": [
                "no recorded pause" if role == UNEXPLAINED else f"{words.PROCESS[role]} {rank}"
                for role, rank in zip(found["role"], found["rank"], strict=True)
            ],
            "generation": found["generation"].map("{:.0f}".format).where(~_unexplained(found), "–"),
            "steps with a long gap": [
                f"{words.amount(steps)} of {words.amount(total)}"
                for steps, total in zip(found["steps"], found["tail_steps"], strict=True)
            ],
            "share": found["share"].map(words.percent),
            "by chance": found["chance"].map(words.percent),
        }
    )


def explanation(campaign: Campaign, factor: float) -> str:
    """One paragraph an arm: how many long gaps there are, and whose pauses explain them."""
    found = by_arm(attribute(campaign, factor))
    said = []
    for arm in ordered_arms(campaign):
        of_arm = found[found["arm"] == arm]
        if of_arm.empty or of_arm["tail_steps"].iloc[0] == 0:
            said.append(f"**{arm}**: no gap exceeds {factor:g} times the median.")
            continue
        known = of_arm[~_unexplained(of_arm)].groupby("role")[["share", "chance"]].sum()
        known = known[known["share"] > 0].sort_values("share", ascending=False)
        parts = [
            f"the {words.PROCESS[str(role)]} explains {words.percent(row['share'])} "
            f"(by chance: {words.percent(row['chance'])})"
            for role, row in known.iterrows()
        ]
        rest = of_arm.loc[_unexplained(of_arm), "share"].sum()
        parts.append(f"{words.percent(rest)} coincide with no recorded pause")
        steps = words.amount(of_arm["tail_steps"].iloc[0])
        said.append(
            f"**{arm}**: of {steps} steps with a gap above {factor:g} times the median, "
            f"{words.listed(parts)}."
        )
    return "\n\n".join(said)


def collector(campaign: Campaign) -> pd.DataFrame:
    """Time each kind of process loses to its collector, by arm and generation."""
    found = gc_time(campaign)
    return pd.DataFrame(
        {
            "arm": found["arm"],
            "process": found["role"].map(words.PROCESS),
            "generation": found["generation"],
            "collections": found["pauses"].map("{:,}".format),
            "per 1,000 steps": found["per_1000_steps"].map(words.figures),
            "ms per 1,000 steps": found["ms_per_1000_steps"].map(words.figures),
            "median (ms)": found["median_ms"].map(words.figures),
            "longest (ms)": found["max_ms"].map(words.figures),
        }
    )


def captures(campaign: Campaign) -> pd.DataFrame:
    """Capture (CPU: compile) time by model, vLLM and policy, with the collector's part."""
    times = capture_times(campaign)
    times["share"] = times["gc_s"] / times["capture_s"]
    rows = []
    for key, group in times.groupby(["model", "vllm", "capture_policy", "policy"]):
        seconds = group["capture_s"]
        rows.append(
            dict(zip(("model", "vLLM", "capture policy", "policy"), key, strict=True))
            | {
                "kind": group["kind"].iloc[0],
                "median (s)": words.figures(seconds.median()),
                "range (s)": words.bounds(seconds.min(), seconds.max()),
                "GC share": words.percent(group["share"].median()),
                "full collections": words.amount(group["collections_2"].median()),
                "graphs": words.amount(group["graphs"].median()),
                "memory (GiB)": words.figures(group["memory_bytes"].median() / GIB),
                "runs": f"{len(group)}",
            }
        )
    return pd.DataFrame(rows)


def _unexplained(found: pd.DataFrame) -> pd.Series:
    return found["role"] == UNEXPLAINED
