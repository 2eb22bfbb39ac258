"""Claims about many ranks: WideEP's tail, waiting, bursts, and the prediction."""

from __future__ import annotations

import math
from typing import Any

from repro import fmt
from repro.analysis.arms import Pair, pairs, repeated
from repro.analysis.prediction import FALLS, against_measured, sentence
from repro.analysis.prediction_basis import bases
from repro.analysis.ranks import coupling, independence, policy_of, several
from repro.analysis.tails import Metric, effect
from repro.claims.registry import claim
from repro.claims.verdict import (
    SAME_TAIL,
    Outcome,
    Verdict,
    detail,
    more_for_share,
    more_needed,
    sample_of,
    too_few,
)
from repro.dataset import Campaign
from repro.stats.estimate import Estimate

WAITS, GOES_ON = 0.9, 0.5
"""Shares of a pause in another rank's step: above the one it waits, below the other it does not."""

FEWEST_PAUSES = 2
"""One pause has no interval."""

QUANTILES = (0.99, 0.995, 0.999)

FALLS_OR_RISES = {
    Verdict.REPRODUCED: [(0.0, FALLS)],
    Verdict.NO_EFFECT: [SAME_TAIL],
    Verdict.CONTRADICTED: [(1.0, math.inf)],
}


@claim(
    "wide-ep",
    "The ITL tail falls especially with WideEP.",
    criterion="reproduced: the ratio at P99, P99.5 or P99.9 lies below 0.8; contradicted: one lies "
    "above 1; no effect: all lie within 0.9 to 1.1; a prediction does not count as a measurement",
    needs="runs with and without the freeze, several data-parallel ranks in expert parallel",
    some=True,
)
def tail_falls_wide_ep(campaign: Campaign) -> list[Outcome]:
    """ITL with over without the freeze at P99, P99.5 and P99.9, per width, the widest first."""
    findings = []
    ranks = campaign.runs.groupby("arm")["data_parallel_size"].first()
    for pair in sorted(pairs(campaign), key=lambda pair: -ranks[pair.baseline]):
        runs = campaign.runs[campaign.runs["arm"].isin([pair.baseline, pair.treated])]
        if runs["data_parallel_size"].min() > 1 and _shares_experts(runs).all():
            findings.append(_tail_by_quantile(campaign, pair, tuple(runs["run"])))
    return findings


def _tail_by_quantile(campaign: Campaign, pair: Pair, runs: tuple[str, ...]) -> Outcome:
    metric: Metric = "itl" if campaign.itl["run"].isin(runs).any() else "step_interval"
    found = {q: effect(campaign, pair.baseline, pair.treated, q, metric) for q in QUANTILES}
    first = found[QUANTILES[0]]
    if not first.supported:
        return too_few(first, "P99 ITL", runs, "steps per arm")
    ranks = campaign.runs.loc[campaign.runs["run"] == runs[0], "data_parallel_size"].iloc[0]
    falls = [fmt.quantile(q) for q, ratio in found.items() if ratio.high < FALLS]
    rises = [fmt.quantile(q) for q, ratio in found.items() if ratio.low > 1]
    if falls:
        verdict = Verdict.REPRODUCED
        reason = f"{fmt.listed(falls)} surely by more than a fifth"
    elif rises:
        verdict, reason = Verdict.CONTRADICTED, f"{fmt.listed(rises)} rises"
    elif all(_unchanged(ratio) for ratio in found.values() if ratio.supported):
        verdict, reason = Verdict.NO_EFFECT, f"every ratio lies within {fmt.bounds(*SAME_TAIL)}"
    else:
        verdict, reason = Verdict.UNDECIDED, "at no quantile surely by a fifth"
    sample = sample_of(campaign, runs)
    more = min(more_needed(r, FALLS_OR_RISES, sample.size) for r in found.values() if r.supported)
    if not repeated(campaign, pair):
        reason += "; one run per arm: it holds for these runs alone"
    return Outcome(
        verdict=verdict,
        number=f"{fmt.plural(int(ranks), 'rank')}: ITL {_by_quantile(found)}",
        reason=reason,
        runs=runs,
        detail=detail(verdict, FALLS_OR_RISES, sample, more),
    )


def _unchanged(ratio: Estimate) -> bool:
    return SAME_TAIL[0] <= ratio.low and ratio.high <= SAME_TAIL[1]


def _by_quantile(found: dict[float, Estimate]) -> str:
    return ", ".join(
        f"{fmt.quantile(q)} {fmt.ratio(ratio) if ratio.supported else 'needs more steps'}"
        for q, ratio in found.items()
    )


@claim(
    "wide-ep-width",
    "As ranks are added, pauses that each has by itself become the P99 of all.",
    criterion="predicted from one rank; reproduced: the stalled share and the tail of every wider "
    "group measured agree with the prediction within their intervals; contradicted: one does not",
    needs="runs of one rank with and without the freeze (`mp`), and of several to decide it",
    source="follows from lock-step: a group waits for whichever rank is paused",
    some=True,
)
def p99_rises_with_width(campaign: Campaign) -> list[Outcome]:
    """The width from which the freeze moves P99: a prediction until wider groups are measured."""
    basis = next(iter(bases(campaign)), None)
    if basis is None:
        return []
    held = against_measured(basis)
    held = held[held["quantity"].isin(["P99", "P99.5", "P99.9", "stalled share"])]
    if held.empty:
        verdict, reason = Verdict.PREDICTED, "from one rank; no wider group was measured"
    elif held["inside"].all():
        widths = fmt.listed(map(str, sorted(held["ranks"].unique())))
        verdict = Verdict.REPRODUCED
        reason = f"stalled share and tail of {widths} ranks lie within the prediction"
    else:
        off = held.loc[~held["inside"]].iloc[0]
        verdict = Verdict.CONTRADICTED
        reason = (
            f"outside: {off['quantity']} of {off['ranks']} ranks ({off['policy']}), "
            f"{fmt.figures(off['measured'])} for {fmt.figures(off['predicted'])} {off['unit']}"
        )
    runs = (*basis.runs, *campaign.runs.loc[campaign.runs["arm"].isin(held["arm"]), "run"])
    return [Outcome(verdict=verdict, number=sentence(basis), reason=reason, runs=runs)]


@claim(
    "ranks-wait",
    "With shared experts every rank waits for the one that is paused.",
    criterion="reproduced: over 90% of a pause is in the other rank's step too; contradicted: "
    "under half of it",
    needs="several data-parallel ranks in expert parallel, two full collections of a worker "
    "that the other rank does not share",
    source="why a pause of one rank is all ranks'",
    some=True,
)
def a_rank_waits(campaign: Campaign) -> list[Outcome]:
    """How much of one rank's full collection every other rank's step shows."""
    findings = []
    found = coupling(campaign)
    for row in found[found["pauses"] >= FEWEST_PAUSES].itertuples():
        if not (runs := _sharing_experts(campaign, row.arm)):
            continue
        if row.low > WAITS:
            verdict = Verdict.REPRODUCED
        elif row.high < GOES_ON:
            verdict = Verdict.CONTRADICTED
        else:
            verdict = Verdict.UNDECIDED
        shown = fmt.share(row.share, row.low, row.high)
        number = f"{shown} of a pause is in the other rank's step too"
        reason = f"{row.pauses} pauses; at any other time {fmt.percent(row.chance)}"
        findings.append(Outcome(verdict=verdict, number=number, reason=reason, runs=runs))
    return findings


@claim(
    "ranks-pause-apart",
    "Unfrozen data-parallel ranks pause in different steps: their pauses add up.",
    criterion="reproduced: of the steps with a full collection under half have one of two ranks; "
    "contradicted: over half",
    needs="several data-parallel ranks in expert parallel, full collections of their workers",
    source="why more data-parallel ranks make more pauses",
)
def unfrozen_ranks_pause_apart(campaign: Campaign) -> list[Outcome]:
    """Of the steps with a full collection, those that two ranks share are the fewer: unfrozen."""
    return _apart(campaign, "no-freeze")


@claim(
    "frozen-ranks-pause-apart",
    "Frozen data-parallel ranks pause in different steps too.",
    criterion="as above, of frozen workers, whose pauses cost next to nothing",
    needs="several frozen data-parallel ranks of a MoE, full collections of their workers",
    source="whether the freeze changes when ranks collect",
)
def frozen_ranks_pause_apart(campaign: Campaign) -> list[Outcome]:
    """The same of frozen ranks, whose pauses cost next to nothing."""
    return _apart(campaign, "freeze")


@claim(
    "ranks-pause-together",
    "Tensor-parallel ranks pause in the same step: their pauses do not add up.",
    criterion="reproduced: of the steps with a full collection over half have one of two ranks; "
    "contradicted: under half",
    needs="tensor-parallel ranks, full collections of their workers",
    source="why more tensor-parallel ranks do not",
)
def tensor_ranks_pause_together(campaign: Campaign) -> list[Outcome]:
    """Of the steps with a full collection, those that two ranks share are the more."""
    return [
        _shared_steps(campaign, row, runs, most=True)
        for row in independence(campaign).itertuples()
        if row.steps and (runs := _sharing_requests(campaign, row.arm))
    ]


def _apart(campaign: Campaign, policy: str) -> list[Outcome]:
    return [
        _shared_steps(campaign, row, runs, most=False)
        for row in independence(campaign).itertuples()
        if row.steps
        and (runs := _sharing_experts(campaign, row.arm))
        and policy_of(campaign, row.arm) == policy
    ]


def _shared_steps(campaign: Campaign, row: Any, runs: tuple[str, ...], *, most: bool) -> Outcome:
    more, fewer = row.low > 0.5, row.high < 0.5
    if not (more or fewer):
        verdict, reason = Verdict.UNDECIDED, "too few to say"
    else:
        verdict = Verdict.REPRODUCED if more == most else Verdict.CONTRADICTED
        reason = f"{'more' if more else 'less'} than half of them, surely"
    reason += f"; by chance {fmt.percent(row.chance)}"
    reason += f"; the nearest of another rank {fmt.amount(row.apart)} steps away"
    number = f"{row.together} of {row.steps} steps, {fmt.share(row.share, row.low, row.high)}"
    more = more_for_share(row.share, row.steps, len(runs))
    missing = detail(verdict, {}, sample_of(campaign, runs), more)
    return Outcome(verdict=verdict, number=number, reason=reason, runs=runs, detail=missing)


def _sharing_experts(campaign: Campaign, arm: str) -> tuple[str, ...]:
    """The arm's runs of data-parallel ranks that share their experts; dense ones never wait."""
    runs = several(campaign)
    return tuple(runs.loc[_shares_experts(runs) & (runs["arm"] == arm), "run"])


def _shares_experts(runs: Any) -> Any:
    """Data-parallel ranks of a MoE. The CPU backend slices each expert over the ranks instead."""
    moe = runs["enable_expert_parallel"] | runs["model"].str.endswith("moe")
    return (runs["data_parallel_size"] > 1) & moe


def _sharing_requests(campaign: Campaign, arm: str) -> tuple[str, ...]:
    """The arm's runs whose ranks all do each request together."""
    runs = several(campaign)
    return tuple(runs.loc[(runs["kind"] == "TP") & (runs["arm"] == arm), "run"])
