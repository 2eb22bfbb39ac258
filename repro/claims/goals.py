"""Goals of one arm over another, and how it fares: one outcome per arm."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import pandas as pd

from repro import fmt
from repro.analysis.mechanism import others_stock
from repro.analysis.tails import Metric, effect
from repro.claims.verdict import (
    SAME_TAIL,
    Outcome,
    Ranges,
    Verdict,
    detail,
    judge,
    more_needed,
    not_measured,
    sample_of,
)
from repro.dataset import Campaign
from repro.stats.estimate import Estimate
from repro.stats.ratios import ratio_of_runs

P99, LONGEST, TOKENS = "P99 ITL", "longest gap", "tokens/s"
FIRST_TOKEN, LAST_TOKEN = "median TTFT", "P99 end to end"


def below(goal: float) -> Ranges:
    """Reproduced where the whole interval lies below a goal, contradicted where it lies above."""
    return {Verdict.REPRODUCED: [(0.0, goal)], Verdict.CONTRADICTED: [(goal, math.inf)]}


def above(goal: float) -> Ranges:
    """Reproduced where the whole interval lies above a goal, contradicted where it lies below."""
    return {Verdict.REPRODUCED: [(goal, math.inf)], Verdict.CONTRADICTED: [(0.0, goal)]}


LOWER = {
    Verdict.REPRODUCED: [(0.0, 1.0)],
    Verdict.NO_EFFECT: [SAME_TAIL],
    Verdict.CONTRADICTED: [(1.0, math.inf)],
}

ALIKE = ["comparable", "load"]
"""Columns of `runs` in which the two arms must not differ."""

DECISIVE = (Verdict.CONTRADICTED, Verdict.UNDECIDED)
"""One missed goal contradicts, else one left open leaves the claim open."""

AGAINST_GOALS = {
    Verdict.REPRODUCED: "every goal is met",
    Verdict.NO_EFFECT: "P99 is the same",
    Verdict.CONTRADICTED: "a goal is surely missed",
    Verdict.UNDECIDED: "an interval leaves a goal open",
}

Goals = Mapping[str, Ranges | None]
"""Name of a ratio, of P99 ITL first -> when it is reached; None: shown, not judged."""


def only_frozen(runs: pd.DataFrame) -> pd.Series:
    """Whether the worker's freeze is the one policy."""
    return others_stock(runs) & (runs["policy"] == "freeze")


def against(
    campaign: Campaign, base: pd.DataFrame, others: pd.DataFrame, goals: Goals
) -> list[Outcome]:
    """One outcome for each arm of `others` that has one arm of `base` to compare with."""
    found = []
    for _, other in others.groupby("arm", sort=False):
        alike = base[(base[ALIKE] == other[ALIKE].iloc[0]).all(axis=1)]
        if alike["arm"].nunique() == 1:
            found.append(_compared(campaign, alike, other, goals))
    return found


def _compared(campaign: Campaign, base: pd.DataFrame, other: pd.DataFrame, goals: Goals) -> Outcome:
    runs = (*base["run"], *other["run"])
    ratios = {name: _RATIOS[name](campaign, base, other) for name in goals}
    if not all(ratio.supported for ratio in ratios.values()):
        return not_measured("too few runs, steps or requests", runs)
    sample = sample_of(campaign, runs)
    judged = [(ratios[name], ranges) for name, ranges in goals.items() if ranges]
    verdicts = [judge(*each) for each in judged]
    verdict = next((v for v in DECISIVE if v in verdicts), verdicts[0])
    by_verdict = zip(judged, verdicts, strict=True)
    more = [more_needed(*each, sample.size) for each, v in by_verdict if v is Verdict.UNDECIDED]
    tail, ranges = judged[0]
    return Outcome(
        verdict=verdict,
        number=", ".join(f"{name} {fmt.ratio(ratio)}" for name, ratio in ratios.items()),
        reason=f"{AGAINST_GOALS[verdict]}; {other['arm'].iloc[0]}",
        runs=runs,
        detail=detail(verdict, ranges, sample, *more),
        ratio=tail,
    )


def _at(
    campaign: Campaign,
    base: pd.DataFrame,
    other: pd.DataFrame,
    quantile: float,
    metric: Metric = "itl",
) -> Estimate:
    return effect(campaign, base["arm"].iloc[0], other["arm"].iloc[0], quantile, metric)


def _tokens(_: Campaign, base: pd.DataFrame, other: pd.DataFrame) -> Estimate:
    return ratio_of_runs(base["tokens_per_s"].tolist(), other["tokens_per_s"].tolist())


_RATIOS: dict[str, Callable[[Campaign, pd.DataFrame, pd.DataFrame], Estimate]] = {
    P99: partial(_at, quantile=0.99),
    LONGEST: partial(_at, quantile=1.0),
    TOKENS: _tokens,
    FIRST_TOKEN: partial(_at, quantile=0.5, metric="ttft"),
    LAST_TOKEN: partial(_at, quantile=0.99, metric="end_to_end"),
}
