"""What decides the claims about the ITL tail: of one rank, and between releases."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from repro import fmt
from repro.analysis.arms import Pair, pairs, repeated
from repro.analysis.release_comparison import likeness, twins
from repro.analysis.tails import Estimate, Metric, effect
from repro.claims.verdict import Finding, Verdict, same, unsupported
from repro.dataset import Campaign
from repro.stats.ratios import NEEDS_RUNS

SAME_TAIL = (0.9, 1.1)
"""Wider for the tail: P99 of two equal arms varies more than a capture's time does."""

DRASTIC = 0.8
"""At least a fifth lower; the one public number for such a change (LightLLM #1382) is 0.82."""

AS_LONG = (0.5, 2.0)
"""Collections whose ratio lies in here are as long as each other: the freeze changes them by more
than twenty times."""


def p99_falls(campaign: Campaign) -> list[Finding]:
    """P99 ITL with over without the freeze, where the worker is a process of its own."""
    return [
        _tail_falls(campaign, pair)
        for pair in pairs(campaign)
        if _setting(campaign, pair, "executor") != "uni"
        and _setting(campaign, pair, "data_parallel_size") == 1
    ]


def nothing_changes_with_uni(campaign: Campaign) -> list[Finding]:
    """P99 ITL with over without the freeze, where the worker lives in the engine core."""
    findings = []
    for pair in pairs(campaign):
        if _setting(campaign, pair, "executor") != "uni":
            continue
        ratio, name = _tail_ratio(campaign, pair)
        runs = _runs(campaign, pair)
        workers = campaign.pauses[campaign.pauses["run"].isin(runs)]["role"].eq("worker").any()
        if workers:
            findings.append(
                Finding(
                    verdict=Verdict.CONTRADICTED,
                    number="a worker process",
                    reason="with `uni` the worker was a process of its own",
                    runs=runs,
                )
            )
        elif not ratio.supported:
            findings.append(unsupported(ratio, name, runs))
        else:
            findings.append(same(ratio, SAME_TAIL, name, runs))
    return findings


def _tail_falls(campaign: Campaign, pair: Pair) -> Finding:
    ratio, name = _tail_ratio(campaign, pair)
    runs = _runs(campaign, pair)
    if not ratio.supported:
        return unsupported(ratio, name, runs)
    if not repeated(campaign, pair):
        few = replace(ratio, needs=NEEDS_RUNS, steps=1)
        return unsupported(few, name, runs, "runs an arm")
    if ratio.high < DRASTIC:
        verdict, reason = Verdict.REPRODUCED, f"{name} falls by more than a fifth"
    elif ratio.low > 1:
        verdict, reason = Verdict.CONTRADICTED, f"{name} rises"
    elif ratio.high < 1:
        verdict, reason = Verdict.NOT_REPRODUCED, f"{name} falls, but not surely by a fifth"
    else:
        verdict, reason = Verdict.NOT_REPRODUCED, f"the interval of {name} includes no change"
    number = f"{name} {fmt.ratio(ratio)}"
    return Finding(
        verdict=verdict, number=number, reason=reason + _further(campaign, pair), runs=runs
    )


def _tail_ratio(campaign: Campaign, pair: Pair, quantile: float = 0.99) -> tuple[Estimate, str]:
    """The effect on ITL; on the step interval, where the client recorded no single tokens."""
    seen = campaign.itl["run"].isin(_runs(campaign, pair)).any()
    metric: Metric = "itl" if seen else "step_interval"
    ratio = effect(campaign, pair.baseline, pair.treated, quantile, metric)
    name = {"itl": "ITL", "step_interval": "step interval"}[metric]
    return ratio, f"{fmt.quantile(quantile)} {name}"


def _further(campaign: Campaign, pair: Pair) -> str:
    """The tail beyond P99, for a claim that may be right further out."""
    beyond = [_tail_ratio(campaign, pair, quantile) for quantile in (0.999, 1.0)]
    said = [f"{name} {fmt.ratio(ratio)}" for ratio, name in beyond if ratio.supported]
    where = f"; {pair.setting}" if pair.setting else ""
    return (f"; {', '.join(said)}" if said else "") + where


def patch_is_the_release(campaign: Campaign) -> list[Finding]:
    """Worker's full collections after over before the pull request, where the policy evens it."""
    findings = []
    for pair in twins(campaign):
        ratios = likeness(campaign, pair)
        chosen = campaign.runs["arm"].isin([pair.before, pair.after])
        runs = tuple(campaign.runs.loc[chosen, "run"])
        ratio = ratios.pop("full collection")
        if not ratio.supported:
            what = "the length of full collections"
            findings.append(unsupported(ratio, what, runs, "runs an arm with a full collection"))
            continue
        name = f"full collection, {pair.after} over {pair.before}"
        found = same(ratio, AS_LONG, name, runs)
        rest = ", ".join(f"{k} {fmt.ratio(r)}" for k, r in ratios.items() if r.supported)
        findings.append(replace(found, reason=f"{found.reason}; {rest}"))
    return findings


def _setting(campaign: Campaign, pair: Pair, column: str) -> Any:
    """A parameter that both arms of a pair share."""
    return campaign.runs.loc[campaign.runs["arm"] == pair.treated, column].iloc[0]


def _runs(campaign: Campaign, pair: Pair) -> tuple[str, ...]:
    runs = campaign.runs
    return tuple(runs.loc[runs["arm"].isin([pair.baseline, pair.treated]), "run"])
