"""Claims about the mechanism: CPython's rule, garbage, policies beyond the freeze."""

from __future__ import annotations

from repro import fmt
from repro.analysis.mechanism import garbage_left, others_stock
from repro.analysis.trigger import OFF, WITHIN, trigger_table
from repro.claims.goals import LOWER, P99, TOKENS, against, only_frozen
from repro.claims.registry import claim
from repro.claims.verdict import SAME_TAIL, Outcome, decided
from repro.dataset import Campaign, under_load

LITTLE_BYTES = 1 << 20
"""Largest garbage in unreachable cycles that counts as little."""


@claim(
    "rule-predicts",
    "CPython's rule says beforehand when a worker's full collections come.",
    criterion="reproduced: every prediction within 10%; contradicted: one is not",
    needs="a worker with two full collections, or one after a freeze",
    source="`repro.theory.cpython_rule`, fed with what a run recorded",
)
def rule_predicts(campaign: Campaign) -> list[Outcome]:
    """Predicted over observed steps to the full collections of workers."""
    table = trigger_table(campaign)
    told = table[(table["role"] == "worker") & table["verdict"].isin([WITHIN, OFF])]
    measured = told[told["ratio"].notna()]
    if measured.empty:
        return []
    wrong = told[told["verdict"] == OFF]
    low, high = measured["ratio"].min(), measured["ratio"].max()
    return [
        decided(
            wrong.empty,
            number=f"predicted over observed {fmt.bounds(low, high)}",
            reason=f"{len(told) - len(wrong)} of {len(told)} predictions within 10%",
            runs=tuple(told["run"].astype(str).unique()),
        )
    ]


@claim(
    "little-is-left",
    "What a frozen or uncollected worker never reclaims is little.",
    criterion="reproduced: under 1 MiB in abandoned cycles at its end; contradicted: more",
    needs="a census with `garbage`, as runs of this version take at a worker's shutdown",
    source="the price of every policy here",
)
def little_is_left(campaign: Campaign) -> list[Outcome]:
    """Bytes in unreachable cycles that workers held after load."""
    found = garbage_left(under_load(campaign))
    if found.empty:
        return []
    worst = found.assign(total=found["since_bytes"] + found["kept_bytes"])
    worst = worst.loc[worst["total"].idxmax()]
    runs = campaign.runs.loc[campaign.runs["arm"].isin(found["arm"]), "run"]
    return [
        decided(
            worst["total"] <= LITTLE_BYTES,
            number=f"{fmt.amount(worst['since'] + worst['kept'])} objects, "
            f"{fmt.amount(worst['total'])} bytes at most",
            reason="under 1 MiB in every run",
            otherwise=f"over 1 MiB in {worst['arm']}",
            runs=tuple(runs),
        )
    ]


@claim(
    "beyond-freeze",
    "Policies of every process lower P99 ITL further than the worker's freeze alone.",
    criterion="reproduced: the ratio lies below 1 for one of them; no effect: within "
    f"{fmt.bounds(*SAME_TAIL)}; contradicted: above 1",
    needs="client `engine`, 1,024 in flight, `freeze` and another policy, two runs each",
    source="what would be better still",
    some=True,
)
def a_policy_beats_the_freeze(campaign: Campaign) -> list[Outcome]:
    """P99 ITL at 1,024 in flight without HTTP, policies of every process against the freeze."""
    runs = campaign.runs[
        (campaign.runs["client"] == "engine") & (campaign.runs["concurrency"] == 1024)
    ]
    goals = {P99: LOWER, TOKENS: None}
    return against(campaign, runs[only_frozen(runs)], runs[~others_stock(runs)], goals)
