"""What decides the claims about many ranks: do they wait, pause apart, and do as predicted?"""

from __future__ import annotations

from typing import Any

from repro import fmt
from repro.analysis.arms import repeated
from repro.analysis.prediction import sentence
from repro.analysis.prediction_basis import bases
from repro.analysis.ranks import against_prediction, coupling, independence, several
from repro.claims.registry import claim
from repro.claims.verdict import Outcome, Verdict
from repro.dataset import Campaign

WAITS, GOES_ON = 0.9, 0.5
"""Shares of a pause in another rank's step: above the one it waits, below the other it does not."""

FEWEST_PAUSES = 2
"""One pause has no interval."""


@claim(
    "wide-ep-width",
    "As ranks are added, pauses that each has by itself become the P99 of all.",
    criterion="predicted from one rank; reproduced: P99 of every wider group measured agrees with "
    "the prediction within their intervals; contradicted: it does not",
    needs="runs of one rank with and without the freeze (`mp`), and of several to decide it",
    source="follows from lock-step: a group waits for whichever rank is paused",
    some=True,
)
def p99_rises_with_width(campaign: Campaign) -> list[Outcome]:
    """The width at which one rank's pauses become the group's P99: a prediction until measured."""
    basis = next((basis for basis in bases(campaign) if repeated(campaign, basis.pair)), None)
    if basis is None:
        return []
    held = against_prediction(campaign)
    held = held[(held["quantile"] == 0.99) & (held["kind"] == "DP")]
    if held.empty:
        verdict, reason = Verdict.PREDICTED, "from one rank; no wider group was measured"
    elif held["inside"].all():
        verdict, reason = Verdict.REPRODUCED, "every group measured lies within the prediction"
    else:
        outside = held.loc[~held["inside"]].iloc[0]
        off = f"{outside['ranks']} ranks measure ×{fmt.figures(outside['off'])} of it"
        verdict, reason = Verdict.CONTRADICTED, f"outside the prediction: {off}"
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
    "Data-parallel ranks pause in different steps: their pauses add up.",
    criterion="reproduced: of the steps with a full collection under half have one of two ranks; "
    "contradicted: over half",
    needs="several data-parallel ranks in expert parallel, full collections of their workers",
    source="why more data-parallel ranks make more pauses",
)
def data_ranks_pause_apart(campaign: Campaign) -> list[Outcome]:
    """Of the steps with a full collection, those that two ranks share are the fewer."""
    return [
        _shared_steps(row, runs, most=False)
        for row in independence(campaign).itertuples()
        if row.steps and (runs := _sharing_experts(campaign, row.arm))
    ]


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
        _shared_steps(row, runs, most=True)
        for row in independence(campaign).itertuples()
        if row.steps and (runs := _sharing_requests(campaign, row.arm))
    ]


def _shared_steps(row: Any, runs: tuple[str, ...], *, most: bool) -> Outcome:
    more, fewer = row.low > 0.5, row.high < 0.5
    if not (more or fewer):
        verdict, reason = Verdict.UNDECIDED, "too few to say"
    else:
        verdict = Verdict.REPRODUCED if more == most else Verdict.CONTRADICTED
        reason = f"{'more' if more else 'less'} than half of them, surely"
    reason += f"; by chance {fmt.percent(row.chance)}"
    reason += f"; the nearest of another rank {fmt.amount(row.apart)} steps away"
    number = f"{row.together} of {row.steps} steps, {fmt.share(row.share, row.low, row.high)}"
    return Outcome(verdict=verdict, number=number, reason=reason, runs=runs)


def _sharing_experts(campaign: Campaign, arm: str) -> tuple[str, ...]:
    """The arm's runs of data-parallel ranks that share their experts; dense ones never wait."""
    runs = several(campaign)
    shared = (runs["data_parallel_size"] > 1) & runs["enable_expert_parallel"]
    return tuple(runs.loc[shared & (runs["arm"] == arm), "run"])


def _sharing_requests(campaign: Campaign, arm: str) -> tuple[str, ...]:
    """The arm's runs whose ranks all do each request together."""
    runs = several(campaign)
    return tuple(runs.loc[(runs["kind"] == "TP") & (runs["arm"] == arm), "run"])
