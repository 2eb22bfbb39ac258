"""Tests of the claims about many ranks: WideEP's tail, waiting, bursts, and the prediction."""

from __future__ import annotations

from typing import Any

from repro import fmt
from repro.analysis.arms import Pair, pairs, repeated
from repro.analysis.prediction import FALLS, against_measured, sentence
from repro.analysis.prediction_basis import bases
from repro.analysis.ranks import coupling, independence, policy_of, several
from repro.analysis.tails import Estimate, Metric, effect
from repro.claims.verdict import Finding, Verdict, unsupported
from repro.dataset import Campaign

WAITS, GOES_ON = 0.9, 0.5
"""Shares of a pause in another rank's step: above the one it waits, below the other it does not."""

FEWEST_PAUSES = 2
"""One pause has no interval."""

QUANTILES = (0.99, 0.995, 0.999)


def tail_falls_wide_ep(campaign: Campaign) -> list[Finding]:
    """ITL with over without the freeze at P99, P99.5 and P99.9, per width, the widest first."""
    findings = []
    ranks = campaign.runs.groupby("arm")["data_parallel_size"].first()
    for pair in sorted(pairs(campaign), key=lambda pair: -ranks[pair.baseline]):
        runs = campaign.runs[campaign.runs["arm"].isin([pair.baseline, pair.treated])]
        if runs["data_parallel_size"].min() > 1 and _shares_experts(runs).all():
            findings.append(_tail_by_quantile(campaign, pair, tuple(runs["run"])))
    return findings


def _tail_by_quantile(campaign: Campaign, pair: Pair, runs: tuple[str, ...]) -> Finding:
    metric: Metric = "itl" if campaign.itl["run"].isin(runs).any() else "step_interval"
    found = {q: effect(campaign, pair.baseline, pair.treated, q, metric) for q in QUANTILES}
    first = found[QUANTILES[0]]
    if not first.supported:
        return unsupported(first, "P99 ITL", runs)
    ranks = campaign.runs.loc[campaign.runs["run"] == runs[0], "data_parallel_size"].iloc[0]
    falls = [fmt.quantile(q) for q, ratio in found.items() if ratio.high < FALLS]
    rises = [fmt.quantile(q) for q, ratio in found.items() if ratio.low > 1]
    if falls:
        verdict = Verdict.REPRODUCED
        reason = f"{fmt.listed(falls)} surely by more than a fifth"
    elif rises:
        verdict, reason = Verdict.CONTRADICTED, f"{fmt.listed(rises)} rises"
    else:
        verdict, reason = Verdict.NOT_REPRODUCED, "at no quantile surely by a fifth"
    if not repeated(campaign, pair):
        reason += "; one run per arm: it holds for these runs alone"
    number = f"{fmt.plural(int(ranks), 'rank')}: ITL {_by_quantile(found)}"
    return Finding(verdict=verdict, number=number, reason=reason, runs=runs)


def _by_quantile(found: dict[float, Estimate]) -> str:
    return ", ".join(
        f"{fmt.quantile(q)} {fmt.ratio(ratio) if ratio.supported else 'needs more steps'}"
        for q, ratio in found.items()
    )


def p99_rises_with_width(campaign: Campaign) -> list[Finding]:
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
    return [Finding(verdict=verdict, number=sentence(basis), reason=reason, runs=runs)]


def a_rank_waits(campaign: Campaign) -> list[Finding]:
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
            verdict = Verdict.NOT_REPRODUCED
        shown = fmt.share(row.share, row.low, row.high)
        number = f"{shown} of a pause is in the other rank's step too"
        reason = f"{row.pauses} pauses; at any other time {fmt.percent(row.chance)}"
        findings.append(Finding(verdict=verdict, number=number, reason=reason, runs=runs))
    return findings


def unfrozen_ranks_pause_apart(campaign: Campaign) -> list[Finding]:
    """Of the steps with a full collection, those that two ranks share are the fewer: unfrozen."""
    return _apart(campaign, "no-freeze")


def frozen_ranks_pause_apart(campaign: Campaign) -> list[Finding]:
    """The same of frozen ranks, whose pauses cost next to nothing."""
    return _apart(campaign, "freeze")


def tensor_ranks_pause_together(campaign: Campaign) -> list[Finding]:
    """Of the steps with a full collection, those that two ranks share are the more."""
    return [
        _shared_steps(row, runs, most=True)
        for row in independence(campaign).itertuples()
        if row.steps and (runs := _sharing_requests(campaign, row.arm))
    ]


def _apart(campaign: Campaign, policy: str) -> list[Finding]:
    return [
        _shared_steps(row, runs, most=False)
        for row in independence(campaign).itertuples()
        if row.steps
        and (runs := _sharing_experts(campaign, row.arm))
        and policy_of(campaign, row.arm) == policy
    ]


def _shared_steps(row: Any, runs: tuple[str, ...], *, most: bool) -> Finding:
    more, fewer = row.low > 0.5, row.high < 0.5
    if not (more or fewer):
        verdict, reason = Verdict.NOT_REPRODUCED, "too few to say"
    else:
        verdict = Verdict.REPRODUCED if more == most else Verdict.CONTRADICTED
        reason = f"{'more' if more else 'less'} than half of them, surely"
    reason += f"; by chance {fmt.percent(row.chance)}"
    reason += f"; the nearest of another rank {fmt.amount(row.apart)} steps away"
    number = f"{row.together} of {row.steps} steps, {fmt.share(row.share, row.low, row.high)}"
    return Finding(verdict=verdict, number=number, reason=reason, runs=runs)


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
