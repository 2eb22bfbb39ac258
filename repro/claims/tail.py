"""Claims about the ITL tail of one rank."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from repro import fmt
from repro.analysis.arms import Pair, pairs, repeated
from repro.analysis.gc_cost import full_collections
from repro.analysis.tails import Metric, effect
from repro.claims.registry import claim
from repro.claims.verdict import SAME_TAIL, Outcome, Verdict, outcome, sample_of, too_few
from repro.dataset import Campaign
from repro.stats.estimate import Estimate
from repro.stats.ratios import NEEDS_RUNS

DRASTIC = 0.8
"""At least a fifth lower. The one public number for such a change (LightLLM #1382) is 0.82."""

FALLS = {
    Verdict.REPRODUCED: [(0.0, DRASTIC)],
    Verdict.NO_EFFECT: [SAME_TAIL],
    Verdict.CONTRADICTED: [(DRASTIC, 1.0), (1.0, math.inf)],
}
CRITERION = (
    f"reproduced: the ratio lies below {DRASTIC}; no effect: within {fmt.bounds(*SAME_TAIL)}; "
    f"contradicted: above 1, or between {DRASTIC} and 1"
)


@claim(
    "p99-falls",
    "The freeze drastically reduces P99 ITL in some cases.",
    criterion=CRITERION,
    needs="runs with and without the freeze, the worker in a process of its own (`mp`), and a full "
    "collection without it",
    some=True,
    over_all=FALLS,
)
def p99_falls(campaign: Campaign) -> list[Outcome]:
    """The ratio of P99 ITL with and without the freeze, the worker in a process of its own.

    Loads without full collections are those of `low_load`: there the freeze has nothing to remove.
    """
    full = full_collections(campaign)
    stopped = set(full.loc[full["role"] == "worker", "arm"])
    return [
        _p99_ratio(campaign, pair)
        for pair in pairs(campaign)
        if pair.baseline in stopped
        and _one(campaign, pair, "executor") != "uni"
        and _one(campaign, pair, "data_parallel_size") == 1
    ]


def _p99_ratio(campaign: Campaign, pair: Pair) -> Outcome:
    ratio, name = tail_ratio(campaign, pair)
    runs = runs_of(campaign, pair)
    if not ratio.supported:
        return too_few(ratio, name, runs, "steps per arm")
    if not repeated(campaign, pair):
        return too_few(replace(ratio, needs=NEEDS_RUNS, steps=1), name, runs, "runs per arm")
    reasons = {
        Verdict.REPRODUCED: f"{name} falls by more than a fifth",
        Verdict.NO_EFFECT: f"{name} is the same",
        Verdict.CONTRADICTED: f"{name} rises"
        if ratio.low > 1
        else f"{name} falls, but by less than a fifth",
        Verdict.UNDECIDED: f"{name} falls, but not surely by a fifth"
        if ratio.high < 1
        else f"the interval of {name} includes no change",
    }
    sample, further = sample_of(campaign, runs), _beyond_p99(campaign, pair)
    return outcome(ratio, FALLS, sample, name=name, runs=runs, reasons=reasons, further=further)


def tail_ratio(campaign: Campaign, pair: Pair, quantile: float = 0.99) -> tuple[Estimate, str]:
    """The effect on ITL, or on the step interval where no single tokens were recorded."""
    has_tokens = campaign.itl["run"].isin(runs_of(campaign, pair)).any()
    metric: Metric = "itl" if has_tokens else "step_interval"
    ratio = effect(campaign, pair.baseline, pair.treated, quantile, metric)
    name = {"itl": "ITL", "step_interval": "step interval"}[metric]
    return ratio, f"{fmt.quantile(quantile)} {name}"


def _beyond_p99(campaign: Campaign, pair: Pair) -> str:
    """The quantiles beyond P99, since the claim may hold further out."""
    beyond = [tail_ratio(campaign, pair, quantile) for quantile in (0.999, 1.0)]
    said = [f"{name} {fmt.ratio(ratio)}" for ratio, name in beyond if ratio.supported]
    where = f"; {pair.setting}" if pair.setting else ""
    return (f"; {', '.join(said)}" if said else "") + where


def _one(campaign: Campaign, pair: Pair, column: str) -> Any:
    """A parameter that both arms of a pair share."""
    return campaign.runs.loc[campaign.runs["arm"] == pair.treated, column].iloc[0]


def runs_of(campaign: Campaign, pair: Pair) -> tuple[str, ...]:
    """The runs of both arms."""
    runs = campaign.runs
    return tuple(runs.loc[runs["arm"].isin([pair.baseline, pair.treated]), "run"])
