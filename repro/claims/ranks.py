"""Claims about many ranks: WideEP's tail, waiting, bursts, and the prediction."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from repro import fmt
from repro.analysis.arms import pairs, repeated
from repro.analysis.prediction import FALLS, against_measured, sentence, width
from repro.analysis.prediction_basis import Basis, bases
from repro.analysis.ranks import coupling, independence, policy_of, several, token_rates
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
from repro.stats.bootstrap import interval
from repro.stats.estimate import Estimate
from repro.theory.lockstep import UNIFORM

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
    criterion="reproduced: at one width or more the ratio at P99, P99.5 or P99.9 lies below 0.8; "
    "contradicted: none does, and one of repeated runs lies above 1; no effect: all lie within 0.9 "
    "to 1.1; a prediction does not count as a measurement",
    needs="runs with and without the freeze, several data-parallel ranks of a MoE",
    some=True,
)
def tail_falls_wide_ep(campaign: Campaign) -> list[Outcome]:
    """ITL with over without the freeze at P99, P99.5 and P99.9, by width."""
    widths = _widths(campaign)
    if not widths:
        return []
    runs = tuple(run for each in widths for run in each.runs)
    if not any(each.tail[QUANTILES[0]].supported for each in widths):
        return [too_few(widths[-1].tail[QUANTILES[0]], "P99 ITL", runs, "steps per arm")]
    falls = [each for each in widths if each.falls]
    if falls:
        verdict = Verdict.REPRODUCED
        reason = "surely by more than a fifth: " + "; ".join(
            f"{fmt.listed(map(fmt.quantile, each.falls))} of {each.ranks} ranks" for each in falls
        )
    elif rises := [each.ranks for each in widths if each.rises]:
        verdict, reason = Verdict.CONTRADICTED, f"the tail of {fmt.listed(map(str, rises))} rises"
    elif all(_unchanged(ratio) for each in widths for ratio in each.supported.values()):
        verdict, reason = Verdict.NO_EFFECT, f"every ratio lies within {fmt.bounds(*SAME_TAIL)}"
    else:
        verdict, reason = Verdict.UNDECIDED, "at no quantile surely by a fifth"
    if once := [str(each.ranks) for each in widths if not each.repeated]:
        reason += f"; {fmt.listed(once)} ranks: one run per arm, it holds for these runs alone"
    number = "; ".join(each.number for each in reversed(widths))
    sample = sample_of(campaign, runs)
    ratios = [ratio for each in widths for ratio in each.supported.values()]
    more = min(more_needed(ratio, FALLS_OR_RISES, sample.size) for ratio in ratios)
    missing = detail(verdict, FALLS_OR_RISES, sample, more)
    return [Outcome(verdict=verdict, number=number, reason=reason, runs=runs, detail=missing)]


@dataclass(frozen=True, kw_only=True)
class _Width:
    """Measured ratios of one width, with over without the freeze, by quantile."""

    ranks: int
    tail: dict[float, Estimate]
    tokens: tuple[float, float, float]
    runs: tuple[str, ...]
    repeated: bool

    @property
    def supported(self) -> dict[float, Estimate]:
        return {q: ratio for q, ratio in self.tail.items() if ratio.supported}

    @property
    def falls(self) -> list[float]:
        return [q for q, ratio in self.supported.items() if ratio.high < FALLS]

    @property
    def rises(self) -> bool:
        """With one run per arm, another engine's ordinary step would count as a rise."""
        return self.repeated and any(ratio.low > 1 for ratio in self.supported.values())

    @property
    def number(self) -> str:
        tail = (f"{fmt.quantile(q)} {fmt.ratio(ratio)}" for q, ratio in self.supported.items())
        tokens = f"tokens/s ×{fmt.interval(*self.tokens)}"
        return f"{self.ranks} ranks: {', '.join([*tail, tokens])}"


def _widths(campaign: Campaign) -> list[_Width]:
    """Every pair of data-parallel ranks that share their experts, narrow to wide."""
    found = []
    for pair in pairs(campaign):
        runs = campaign.runs[campaign.runs["arm"].isin([pair.baseline, pair.treated])]
        if runs["data_parallel_size"].min() < 2 or not _shares_experts(runs).all():
            continue
        metric: Metric = "itl" if campaign.itl["run"].isin(runs["run"]).any() else "step_interval"
        rate = runs.groupby("arm")["tokens_per_s"].mean()
        rates = (
            token_rates(campaign, arm, seed)
            for seed, arm in enumerate((pair.treated, pair.baseline))
        )
        found.append(
            _Width(
                ranks=int(runs["data_parallel_size"].iloc[0]),
                tail={
                    q: effect(campaign, pair.baseline, pair.treated, q, metric) for q in QUANTILES
                },
                tokens=(rate[pair.treated] / rate[pair.baseline], *interval(np.divide(*rates))),
                runs=tuple(runs["run"]),
                repeated=repeated(campaign, pair),
            )
        )
    return sorted(found, key=lambda width: width.ranks)


def _unchanged(ratio: Estimate) -> bool:
    return SAME_TAIL[0] <= ratio.low and ratio.high <= SAME_TAIL[1]


@claim(
    "wide-ep-width",
    "As ranks are added, pauses that each has by itself become the P99 of all.",
    criterion="reproduced: at a measured width the freeze surely lowers P99 by a fifth; "
    "contradicted: at none does it, and surely not at the widest, though fewer ranks would do if "
    "they paused independently. The ordinary step's growth is not claimed",
    needs="runs of one rank with and without the freeze (`mp`), and of several to decide it",
    source="follows from lock-step: a group waits for whichever rank is paused",
)
def p99_rises_with_width(campaign: Campaign) -> list[Outcome]:
    """The width from which the freeze lowers P99 by a fifth, measured and predicted."""
    basis = next(iter(bases(campaign)), None)
    if basis is None:
        return []
    widths = [each for each in _widths(campaign) if each.tail[0.99].supported]
    enough, _ = width(basis, UNIFORM)
    falls = [each.ranks for each in widths if 0.99 in each.falls]
    if not widths:
        verdict, said = Verdict.PREDICTED, "no wider group was measured"
    elif falls:
        verdict, said = (
            Verdict.REPRODUCED,
            f"measured: P99 falls by a fifth from {falls[0]} ranks on",
        )
    else:
        widest = widths[-1]
        kept = enough and widest.ranks >= enough and widest.tail[0.99].low > FALLS
        verdict = Verdict.CONTRADICTED if kept else Verdict.UNDECIDED
        among = fmt.listed(str(each.ranks) for each in widths)
        said = f"measured: P99 falls surely by a fifth at none of {among} ranks"
        said += f", at {widest.ranks} it is {fmt.ratio(widest.tail[0.99])}"
    runs = (*basis.runs, *(run for each in widths for run in each.runs))
    number = f"{said}; {sentence(basis)}"
    return [Outcome(verdict=verdict, number=number, reason=_agreement(basis), runs=runs)]


def _agreement(basis: Basis) -> str:
    """Whether what pauses do to the measured groups lies within the prediction."""
    held = against_measured(basis)
    held = held[held["quantity"].isin(["P99", "P99.5", "P99.9", "stalled share"])]
    if held.empty:
        return "predicted from one rank"
    share = held[held["quantity"] == "stalled share"]
    told = ", ".join(f"{fmt.figures(row.measured)}% at {row.ranks}" for row in share.itertuples())
    said = f"stalled steps by ranks: {told}"
    if held["inside"].all():
        return f"{said}; stalled share and tail lie within the prediction"
    off = held.loc[~held["inside"]].iloc[0]
    return (
        f"{said}; outside the prediction: {off['quantity']} of {off['ranks']} ranks, "
        f"{fmt.figures(off['measured'])} for {fmt.figures(off['predicted'])} {off['unit']}"
    )


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
    """Share of one rank's full collection that shows in every other rank's step."""
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
    shared = fmt.share(row.share, row.low, row.high)
    number = f"{row.ranks} ranks: {row.together} of {row.steps} steps, {shared}"
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
