"""The tables and sentences a notebook closes with, every number computed from the campaign."""

from __future__ import annotations

import numpy as np
import pandas as pd

from repro import fmt
from repro.analysis.arms import ordered_arms, pairs, repeated
from repro.analysis.attribution import HANDLER, UNEXPLAINED, attribute, by_arm
from repro.analysis.captures import (
    BASELINE,
    SETTING,
    again_over_first,
    capture_times,
    collector_share,
    policy_effects,
    principal,
)
from repro.analysis.crossover_cost import crossover_over_fresh, designs
from repro.analysis.gc_cost import gc_time
from repro.analysis.release_comparison import likeness, twins
from repro.analysis.silences import silences
from repro.analysis.tails import Estimate, Metric, effect, tail_table
from repro.claims.capture import SAME_MEMORY
from repro.claims.verdict import SAME
from repro.dataset import Campaign, in_window

CLOSING = (0.5, 0.99, 0.999, 1.0)
"""The quantiles of the closing table."""

BASIS = {"policy": "policy", "machine": "machine", "vllm": "vLLM", "torch": "torch"}
BASIS |= {"python": "Python", "client": "client", "executor": "executor", "model": "model"}
BASIS |= {"concurrency": "in flight", "replicate": "replicate"}

GIB = 2**30

WAYS = {
    "held": "of it the output handler holds the event loop",
    "collecting": "the front end collects",
    "waiting": "the engine has nothing to do",
}
"""Column of `silences` -> heading."""


def basis(campaign: Campaign) -> pd.DataFrame:
    """The runs a campaign rests on: what ran where, how long, how fast.

    Fewer tokens in a step than requests in flight: the rest wait outside the engine.
    """
    runs = campaign.runs.sort_values("started_at")
    held = in_window(campaign, campaign.steps).groupby("run", observed=True)["tokens"].median()
    window_s = (runs["window_end_ns"] - runs["window_start_ns"]) / 1e9
    idle = runs["output_tokens"] == 0
    return (
        runs[["run", *BASIS]]
        .rename(columns=BASIS)
        .assign(
            run=runs["run"].map("`{}`".format),
            **{"window (s)": window_s.map("{:.0f}".format)},
            **{"in flight": runs["concurrency"].map("{:,}".format).mask(idle, "–")},
            **{"tokens a step": runs["run"].map(held).map("{:,.0f}".format).mask(idle, "–")},
            **{"tokens/s": runs["tokens_per_s"].map(fmt.count).mask(idle, "–")},
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
            row[f"{fmt.quantile(quantile)} (ms)"] = (
                f"{fmt.figures(cell['value_ms'])} ({fmt.bounds(cell['low_ms'], cell['high_ms'])})"
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
            row[fmt.quantile(quantile)] = fmt.ratio(ratio) if ratio.supported else "–"
        rows.append(row)
    return pd.DataFrame(rows)


def meaning(campaign: Campaign, metric: Metric = "itl") -> str:
    """One paragraph a pair of arms: at which quantiles the freeze lowers the tail."""
    said = []
    for pair in pairs(campaign):
        if not repeated(campaign, pair):
            what = "one run of an arm cannot tell the policy's effect from the run's own"
            said.append(f"**{pair.treated}** against **{pair.baseline}**: {what}.")
            continue
        parts: dict[str, list[str]] = {}
        for quantile in CLOSING[:-1]:  # of the longest gap an interval says little
            ratio = effect(campaign, pair.baseline, pair.treated, quantile, metric)
            parts.setdefault(_direction(ratio), []).append(fmt.quantile(quantile))
        each = "; ".join(f"{how} at {fmt.listed(names)}" for how, names in parts.items())
        said.append(f"**{pair.treated}** against **{pair.baseline}**: {each}.")
    return "\n\n".join(said) or "The campaign has no two arms that differ in the freeze alone."


def _direction(ratio: Estimate) -> str:
    if not ratio.supported:
        return "too few steps to say"
    if ratio.high < 1:
        return "lower"
    return "higher" if ratio.low > 1 else "no clear difference"


def crossover(campaign: Campaign) -> str:
    """One line a cross-over: its engine time for an interval as wide as that of fresh engines."""
    said = [
        f"**{row.treated_crossover}**: P99 ITL {fmt.ratio(row.ratio_crossover)} of "
        f"{fmt.plural(row.runs_crossover, 'period')} in {row.engine_s_crossover:,.0f} s of "
        f"engine time; fresh engines {fmt.ratio(row.ratio_fresh)} of "
        f"{fmt.plural(row.runs_fresh, 'run')} in {row.engine_s_fresh:,.0f} s. For the same width "
        f"the cross-over takes ×{fmt.figures(row.time)} of their time."
        for row in crossover_over_fresh(designs(campaign)).itertuples()
    ]
    return "\n\n".join(said) or "The campaign has no cross-over beside fresh engines."


def patch_against_release(campaign: Campaign) -> pd.DataFrame:
    """The release over the patch, frozen and not: ratios that should all include 1."""
    rows = [
        {"after": pair.after, "over before": pair.before}
        | {name: fmt.ratio(found) for name, found in likeness(campaign, pair).items()}
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
                "no recorded pause" if role == UNEXPLAINED else f"{fmt.PROCESS[role]} {rank}"
                for role, rank in zip(found["role"], found["rank"], strict=True)
            ],
            "generation": [
                "–" if role == UNEXPLAINED else "output handler" if number == HANDLER else number
                for role, number in zip(found["role"], found["generation"], strict=True)
            ],
            "steps with a long gap": [
                f"{fmt.amount(steps)} of {fmt.amount(total)}"
                for steps, total in zip(found["steps"], found["tail_steps"], strict=True)
            ],
            "share": found["share"].map(fmt.percent),
            "by chance": found["chance"].map(fmt.percent),
        }
    )


def silent(campaign: Campaign) -> pd.DataFrame:
    """Silences of a second and more through HTTP, by arm, and who was in the way."""
    found = silences(campaign)
    found = found.assign(length_s=(found["end_ns"] - found["start_ns"]) / 1e9)
    rows = []
    for arm in ordered_arms(campaign):
        own = found[found["arm"] == arm]
        if own.empty:
            continue
        share = {name: np.average(own[name], weights=own["length_s"]) for name in WAYS}
        rows.append(
            {
                "arm": arm,
                "silences": fmt.amount(len(own)),
                "longest (s)": fmt.figures(own["length_s"].max()),
                "together (s)": fmt.figures(own["length_s"].sum()),
                **{WAYS[name]: fmt.percent(value) for name, value in share.items()},
            }
        )
    return pd.DataFrame(rows)


def explanation(campaign: Campaign, factor: float) -> str:
    """One paragraph an arm: how many long gaps there are, and whose pauses explain them."""
    found = by_arm(attribute(campaign, factor))
    said = []
    for arm in ordered_arms(campaign):
        of_arm = found[found["arm"] == arm]
        if of_arm.empty or of_arm["tail_steps"].iloc[0] == 0:
            said.append(f"**{arm}**: no gap exceeds {factor:g} times the median.")
            continue
        known = of_arm[~_unexplained(of_arm)]
        known = known.assign(held=known["generation"] == HANDLER)
        known = known.groupby(["role", "held"])[["share", "chance"]].sum().reset_index()
        known = known[known["share"] > 0].sort_values("share", ascending=False)
        parts = [
            f"{_stop_of(row.role, row.held)} explains {fmt.percent(row.share)} "
            f"(by chance: {fmt.percent(row.chance)})"
            for row in known.itertuples()
        ]
        rest = of_arm.loc[_unexplained(of_arm), "share"].sum()
        parts.append(f"{fmt.percent(rest)} coincide with no recorded pause")
        steps = fmt.amount(of_arm["tail_steps"].iloc[0])
        said.append(
            f"**{arm}**: of {steps} steps with a gap above {factor:g} times the median, "
            f"{fmt.listed(parts)}."
        )
    return "\n\n".join(said)


def collector(campaign: Campaign) -> pd.DataFrame:
    """Time each kind of process loses to its collector, by arm and generation."""
    found = gc_time(campaign)
    return pd.DataFrame(
        {
            "arm": found["arm"],
            "process": found["role"].map(fmt.PROCESS),
            "generation": found["generation"],
            "collections": found["pauses"].map("{:,}".format),
            "per 1,000 steps": found["per_1000_steps"].map(fmt.figures),
            "ms per 1,000 steps": found["ms_per_1000_steps"].map(fmt.figures),
            "median (ms)": found["median_ms"].map(fmt.figures),
            "longest (ms)": found["max_ms"].map(fmt.figures),
        }
    )


def captures(campaign: Campaign) -> pd.DataFrame:
    """Capture (CPU: compile) time by setting and policy, with its ratio to `gc-on`."""
    times = capture_times(campaign)
    times["share"] = times["gc_s"] / times["capture_s"]
    effects = policy_effects(times).set_index([*SETTING, "again", "capture_policy"])
    rows = []
    for key, group in times.groupby([*SETTING, "again", "capture_policy"]):
        seconds = group["capture_s"]
        effect = effects.loc[key] if key in effects.index else None
        rows.append(
            _setting_cells(group)
            | {
                "capture policy": key[-1],
                "kind": f"{group['kind'].iloc[0]}{' again' if key[-2] else ''}",
                "median (s)": fmt.figures(seconds.median()),
                "range (s)": fmt.bounds(seconds.min(), seconds.max()),
                "over gc-on": _ratio_cell(effect, "ratio"),
                "the same without GC": _ratio_cell(effect, "besides_gc"),
                "GC share": fmt.percent(group["share"].median()),
                "memory (GiB)": fmt.figures(group["memory_bytes"].median() / GIB),
                "captures": f"{len(group)}",
                "runs": f"{group['run'].nunique()}",
            }
        )
    return pd.DataFrame(rows)


def capture_collections(campaign: Campaign) -> pd.DataFrame:
    """What the collector did in a capture: full collections times the length of one."""
    rows = []
    for key, group in principal(capture_times(campaign)).groupby([*SETTING, "capture_policy"]):
        middle = group.median(numeric_only=True)
        rows.append(
            _setting_cells(group)
            | {
                "capture policy": key[-1],
                "graphs": fmt.amount(middle["graphs"]),
                "objects before": fmt.count(middle["heap"]) if middle["heap"] > 0 else "–",
                "full collections": fmt.amount(middle["collections_2"]),
                "the longest (s)": fmt.figures(middle["full_s"]),
                "generation 0": fmt.amount(middle["collections_0"]),
                "GC in all (s)": fmt.figures(middle["gc_s"]),
            }
        )
    return pd.DataFrame(rows)


def recaptures(campaign: Campaign) -> str:
    """One line a setting: whether a capture made again is the same as that of a fresh process."""
    said = []
    for row in again_over_first(capture_times(campaign)).itertuples():
        where = fmt.setting(row.model, row.vllm, row.runner)
        if not row.time.supported:
            said.append(f"**{where}**: one run cannot tell a repeated capture from the first.")
            continue
        parts = [
            f"{'the same' if low <= ratio.low and ratio.high <= high else 'not shown the same'} in "
            f"{name} ({fmt.ratio(ratio)})"
            for name, ratio, (low, high) in (
                ("time", row.time, SAME),
                ("memory", row.memory, SAME_MEMORY),
            )
        ]
        said.append(
            f"**{where}**: over the start-up capture of its process and policy, a repeated one is "
            f"{fmt.listed(parts)}, {fmt.plural(row.time.steps, 'run')}."
        )
    return "\n\n".join(said) or "No process of this campaign captured more than once."


def capture_bound(campaign: Campaign) -> str:
    """One line a setting: the most that a policy can save, and what freezing itself collects."""
    times = principal(capture_times(campaign))
    times = times[times["kind"] == "capture"]
    said = []
    for _, group in times.groupby(SETTING):
        on, frozen = (group[group["capture_policy"] == name] for name in (BASELINE, "frozen"))
        share = collector_share(on)
        if not share.supported or frozen.empty:
            continue
        before, after = (fmt.figures(part["gc_s"].mean()) for part in (on, frozen))
        part = fmt.share(share.value, share.low, share.high)
        said.append(
            f"**{fmt.setting(*group.iloc[0][['model', 'vllm', 'runner']])}**: the collector "
            f"takes {part} of a capture with `{BASELINE}`, and no policy can save "
            f"more than that; with `frozen` it takes {after} s where it took {before} s."
        )
    return "\n\n".join(said) or "Two captures with the collector on and one frozen are needed."


def capture_arithmetic(campaign: Campaign) -> str:
    """One paragraph a setting: what a collection costs, and how many a capture meets and why."""
    times = principal(capture_times(campaign))
    times = times[(times["kind"] == "capture") & times["heap"].notna()]
    said = []
    for _, group in times.groupby(SETTING):
        on = group[group["capture_policy"] == BASELINE].median(numeric_only=True)
        if not on.get("heap", 0) > 0:
            continue
        heap, each = on["heap"], on["containers"] / on["graphs"]
        parts = [
            f"a full collection of {fmt.count(heap)} objects takes {fmt.figures(on['full_s'])} "
            f"s, {fmt.figures(1e9 * on['full_s'] / heap)} ns an object",
            f"`{BASELINE}` makes {fmt.amount(on['collections_2'])}",
        ]
        per = group[group["capture_policy"] == "collect-per-graph"].median(numeric_only=True)
        if (asked := per.get("collections_2", 0)) > 0:
            parts.append(
                f"`collect-per-graph` makes {fmt.amount(asked)}, together "
                f"{fmt.figures(per['gc_s'])} s, {fmt.figures(per['gc_s'] / asked)} s each"
            )
        sentence = f"**{fmt.setting(*group.iloc[0][['model', 'vllm', 'runner']])}**: "
        sentence += f"{'; '.join(parts)}."
        if each > 0:
            sentence += (
                f" A graph leaves {fmt.figures(each)} containers behind. For a full collection "
                "by itself a quarter of the heap must have been added, which takes "
                f"{fmt.count(heap / 4 / each)} graphs; there were {fmt.amount(on['graphs'])}."
            )
        said.append(sentence)
    return "\n\n".join(said) or "The heap before a capture with the collector on was not counted."


def _setting_cells(times: pd.DataFrame) -> dict[str, str]:
    first = times.iloc[0]
    runner = fmt.RUNNER.get(first["runner"], "–")
    return {"model": first["model"], "vLLM": first["vllm"], "runner": runner}


def _ratio_cell(effect: pd.Series | None, column: str) -> str:
    return fmt.ratio(effect[column]) if effect is not None and effect[column].supported else "–"


def _stop_of(role: str, held: bool) -> str:
    name = fmt.PROCESS[role]
    return f"the {name}'s output handler" if held else f"the {name}"


def _unexplained(found: pd.DataFrame) -> pd.Series:
    return found["role"] == UNEXPLAINED
