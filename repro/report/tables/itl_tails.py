"""Tables and sentences of the notebook `itl_tails`."""

from __future__ import annotations

import math

import pandas as pd

from repro import fmt
from repro.analysis.arms import Pair, in_order, labels, pairs, repeated
from repro.analysis.attribution import HANDLER, UNEXPLAINED, attribute, by_arm
from repro.analysis.gc_cost import gc_time
from repro.analysis.release_comparison import release_pairs, release_ratios
from repro.analysis.tails import TAIL_QUANTILES, effect, tail_table
from repro.dataset import Campaign
from repro.stats.estimate import Estimate
from repro.theory.cpython_rule import FULL

TOO_WIDE = 10.0
"""An interval whose bounds differ by more than this factor says nothing and is not shown."""


def of_one_rank(campaign: Campaign) -> bool:
    """Whether a campaign recorded token times and has no runs of several ranks."""
    return len(campaign.itl) > 0 and bool(campaign.runs["data_parallel_size"].max() == 1)


def quantiles(campaign: Campaign) -> pd.DataFrame:
    """Quantiles of ITL by arm in ms, each with its 95% interval or the number of steps it needs."""
    found = tail_table(campaign).set_index(["arm", "quantile"])
    rows = []
    for arm in labels(campaign):
        of_arm = found.loc[arm]
        if not of_arm["steps"].iloc[0]:
            continue
        row = {"arm": arm}
        for quantile in TAIL_QUANTILES:
            cell = of_arm.loc[quantile]
            row[f"{fmt.quantile(quantile)} (ms)"] = (
                fmt.interval(cell["value_ms"], cell["low_ms"], cell["high_ms"])
                if cell["supported"]
                else f"needs {cell['needs']:,.0f} steps"
            )
        rows.append(row | {"steps": f"{cell['steps']:,.0f}", "runs": f"{cell['runs']:.0f}"})
    return pd.DataFrame(rows)


def effects(campaign: Campaign) -> pd.DataFrame:
    """Ratios of the frozen arm to the other by quantile, each with its 95% interval.

    Pairs with one run per arm are left out.
    """
    rows = []
    for pair in pairs(campaign):
        ratios = _ratios(campaign, pair)
        if repeated(campaign, pair) and any(ratio.supported for ratio in ratios.values()):
            cells = {fmt.quantile(quantile): _cell(ratio) for quantile, ratio in ratios.items()}
            rows.append({"frozen": pair.treated, "over": pair.baseline, **cells})
    return pd.DataFrame(rows)


def answer(campaign: Campaign) -> str:
    """The conclusion, and the machine, vLLM and runs it holds for."""
    runs = campaign.runs
    versions = fmt.listed(sorted(runs["vllm"].unique()))
    machines = fmt.listed(sorted(runs["machine"].unique()))
    where = f"{machines}, vLLM {versions}, {fmt.plural(len(runs), 'run')}"
    return f"{conclusion(campaign)}\n\nMeasured on {where} (`{campaign.path.name}`)."


def conclusion(campaign: Campaign) -> str:
    """One paragraph per pair of arms: the clearest effect of the freeze first."""
    said = []
    for pair in pairs(campaign):
        who = f"**{pair.treated}** against **{pair.baseline}**"
        if not repeated(campaign, pair):
            what = "one run per arm cannot tell the policy's effect from the run's own"
            said.append(f"{who}: {what}.")
            continue
        said.append(f"{who}: {clearest_first(_ratios(campaign, pair))}.")
    none = "The campaign has no two arms that differ in the freeze alone."
    return "\n\n".join(said) or none


def clearest_first(ratios: dict[float, Estimate]) -> str:
    """Clear effects by size; without any, the ratio of P99."""
    clear = {quantile: ratio for quantile, ratio in ratios.items() if ratio.clear}
    by_size = sorted(clear, key=lambda quantile: -abs(math.log(clear[quantile].value)))
    said = [f"{_name(quantile)} is {fmt.ratio(clear[quantile])}" for quantile in by_size]
    if any(ratio.supported and not ratio.clear for ratio in ratios.values()):
        said.append("no other quantile differs clearly" if clear else _none_clear(ratios))
    return "; ".join(said) or "too few steps to say"


def _none_clear(ratios: dict[float, Estimate]) -> str:
    shown = max((q for q, ratio in ratios.items() if ratio.supported and q <= 0.99), default=1.0)
    return f"no quantile differs clearly, {_name(shown)} is {fmt.ratio(ratios[shown])}"


def _name(quantile: float) -> str:
    return "the longest gap" if quantile == 1 else fmt.quantile(quantile)


def _ratios(campaign: Campaign, pair: Pair) -> dict[float, Estimate]:
    return {q: effect(campaign, pair.baseline, pair.treated, q) for q in TAIL_QUANTILES}


def _cell(ratio: Estimate) -> str:
    """A ratio; a dash where it is not supported or its interval says nothing."""
    if not ratio.supported or ratio.high > TOO_WIDE * ratio.low:
        return "–"
    return fmt.ratio(ratio)


def patch_against_release(campaign: Campaign) -> pd.DataFrame:
    """Ratios of the release to the patch, frozen and not; all should include 1."""
    rows = [
        {"after": pair.treated, "over before": pair.baseline}
        | {name: _cell(found) for name, found in release_ratios(campaign, pair).items()}
        for pair in release_pairs(campaign)
    ]
    return pd.DataFrame(rows)


def attribution(campaign: Campaign, factor: float) -> pd.DataFrame:
    """The pauses that explain gaps above `factor` times the median, beside chance."""
    found = in_order(by_arm(attribute(campaign, factor)), campaign)
    found = found[
        (found["tail_steps"] > 0) & ((found["steps"] > 0) | (found["role"] == UNEXPLAINED))
    ]
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


def collector(campaign: Campaign) -> pd.DataFrame:
    """Time that each kind of process loses to collections, and its full collections, by arm."""
    found = gc_time(campaign)
    found = found[found["steps"] > 0]
    rows = []
    for arm in labels(campaign):
        for role, process in fmt.PROCESS.items():
            own = found[(found["arm"] == arm) & (found["role"] == role)]
            if own.empty:
                continue
            full = own[own["generation"] == FULL].iloc[0]
            rows.append(
                {
                    "arm": arm,
                    "process": process,
                    "GC (ms per 1,000 steps)": fmt.figures(own["ms_per_1000_steps"].sum()),
                    "full collections": f"{full['pauses']:,}",
                    "per 1,000 steps": fmt.figures(full["per_1000_steps"]),
                    "median (ms)": fmt.figures(full["median_ms"]),
                    "longest (ms)": fmt.figures(full["max_ms"]),
                }
            )
    return pd.DataFrame(rows)
