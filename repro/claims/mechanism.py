"""Claims about the mechanism: CPython's rule, garbage, other policies, the output handler."""

from __future__ import annotations

import math

import pandas as pd

from repro import fmt
from repro.analysis.arms import VLLM_HANDLER, output_handler
from repro.analysis.mechanism import PROCESS_POLICIES, garbage_left
from repro.analysis.release_comparison import freezes_itself
from repro.analysis.silences import in_total, silences
from repro.analysis.tails import effect
from repro.analysis.trigger import OFF, WITHIN, trigger_table
from repro.claims.registry import claim
from repro.claims.verdict import (
    SAME_TAIL,
    Outcome,
    Ranges,
    Verdict,
    decided,
    detail,
    judge,
    more_needed,
    not_measured,
    sample_of,
)
from repro.dataset import Campaign, under_load
from repro.stats.ratios import ratio_of_runs

LITTLE_BYTES = 1 << 20
"""Largest garbage in unreachable cycles that counts as little."""

HALF, A_TENTH_MORE = 0.5, 1.1

BELOW_HALF = {Verdict.REPRODUCED: [(0.0, HALF)], Verdict.CONTRADICTED: [(HALF, math.inf)]}
A_TENTH_ABOVE = {
    Verdict.REPRODUCED: [(A_TENTH_MORE, math.inf)],
    Verdict.CONTRADICTED: [(0.0, A_TENTH_MORE)],
}
ABOVE_ONE = {Verdict.REPRODUCED: [(1.0, math.inf)], Verdict.CONTRADICTED: [(0.0, 1.0)]}
LOWER = {
    Verdict.REPRODUCED: [(0.0, 1.0)],
    Verdict.NO_EFFECT: [SAME_TAIL],
    Verdict.CONTRADICTED: [(1.0, math.inf)],
}

DECISIVE = (Verdict.CONTRADICTED, Verdict.UNDECIDED)
"""One missed goal contradicts, else one left open leaves the claim open."""

AGAINST_GOALS = {
    Verdict.REPRODUCED: "every goal is met",
    Verdict.NO_EFFECT: "P99 is the same",
    Verdict.CONTRADICTED: "a goal is surely missed",
    Verdict.UNDECIDED: "an interval leaves a goal open",
}


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
    return _against(campaign, runs[_only_frozen(runs)], runs[~_others_stock(runs)], (LOWER,))


@claim(
    "better-policy",
    "Some policy halves P99 ITL through HTTP and adds a tenth to the tokens/s.",
    criterion="reproduced: both intervals beyond these goals; contradicted: one surely missed",
    needs="client `serve`, 1,024 in flight, `stock` (or `freeze`, where the release itself "
    "freezes) and another policy, two runs each",
    source="the goal set for policies beyond #44363",
    some=True,
)
def a_policy_beats_stock(campaign: Campaign) -> list[Outcome]:
    """P99 ITL and tokens/s through HTTP at 1,024 in flight, each policy against untouched vLLM."""
    runs = _through_http(campaign)
    stock = (runs[PROCESS_POLICIES] == "stock").all(axis=1)
    base = stock if stock.any() else _only_frozen(runs) & freezes_itself(runs)
    return _against(campaign, runs[base], runs[~base], (BELOW_HALF, A_TENTH_ABOVE))


@claim(
    "handler-holds",
    "Through HTTP the longest gaps are no collection: vLLM's output handler holds its event loop.",
    criterion="reproduced: over half of the silences' time lies under holds, over twice as "
    "much as under collections; contradicted: otherwise",
    needs="client `serve`, 1,024 in flight, a silence of a second, and `holds` recorded",
    source="what is left of the tail through HTTP",
    some=True,
)
def the_handler_holds_the_loop(campaign: Campaign) -> list[Outcome]:
    """Silences through HTTP at vLLM's own chunk: under holds of its event loop, or collections."""
    found = silences(campaign)
    found = found[found["arm"].isin(_through_http(campaign)["arm"])]
    if found.empty:
        return []
    length_s, held, collecting = in_total(found)
    return [
        decided(
            held > HALF and held > 2 * collecting,
            number=f"{len(found)} silences, {fmt.figures(length_s)} s in total, "
            f"{fmt.percent(held)} of it under a hold",
            reason=f"{fmt.percent(collecting)} of it under a collection of the API server",
            runs=tuple(found["run"].unique()),
        )
    ]


@claim(
    "whole-steps",
    "An output handler that takes whole steps ends the silences and brings tokens/s.",
    criterion="reproduced: no silence is left and the ratio of tokens/s lies above 1; "
    "contradicted: a silence is left, or the ratio lies below 1",
    needs="client `serve` with `output_chunk` and without, two runs each, and a silence to end",
    source="what upstream could change beside the freeze",
    some=True,
)
def whole_steps_end_silences(campaign: Campaign) -> list[Outcome]:
    """Tokens/s and silences of a handler that takes whole steps, against vLLM's own chunk."""
    runs = campaign.runs[campaign.runs["client"] == "serve"]
    handler = output_handler(runs)
    usual, whole = runs[handler == VLLM_HANDLER], runs[handler == "whole steps"]
    silent_runs = silences(campaign)["run"].value_counts()
    found = []
    alike = [*PROCESS_POLICIES, "comparable", "load"]
    for _, other in whole.groupby(alike):
        base = usual[(usual[alike] == other[alike].iloc[0]).all(axis=1)]
        rate = ratio_of_runs(base["tokens_per_s"].tolist(), other["tokens_per_s"].tolist())
        if not rate.supported:
            continue
        before, after = (int(silent_runs.reindex(rows["run"]).sum()) for rows in (base, other))
        used = (*base["run"], *other["run"])
        if not before + after:
            found.append(not_measured("no silence with vLLM's own chunk", used))
            continue
        verdict = Verdict.CONTRADICTED if after else judge(rate, ABOVE_ONE)
        sample = sample_of(campaign, used)
        more = more_needed(rate, ABOVE_ONE, sample.size)
        found.append(
            Outcome(
                verdict=verdict,
                number=f"tokens/s {fmt.ratio(rate)}, silences {before} before, {after} after",
                reason=str(other["arm"].iloc[0]),
                runs=used,
                detail=detail(verdict, ABOVE_ONE, sample, more),
                ratio=rate,
            )
        )
    return found


def _through_http(campaign: Campaign) -> pd.DataFrame:
    """Runs through HTTP at 1,024 in flight whose output handler is as vLLM has it."""
    runs = campaign.runs
    asked = (runs["client"] == "serve") & (runs["concurrency"] == 1024)
    return runs[asked & (output_handler(runs) == VLLM_HANDLER)]


def _others_stock(runs: pd.DataFrame) -> pd.Series:
    return (runs[PROCESS_POLICIES[1:]] == "stock").all(axis=1)


def _only_frozen(runs: pd.DataFrame) -> pd.Series:
    return _others_stock(runs) & (runs["policy"] == "freeze")


def _against(
    campaign: Campaign, base: pd.DataFrame, others: pd.DataFrame, goals: tuple[Ranges, ...]
) -> list[Outcome]:
    """One outcome for each arm of `others` that has one arm of `base` to compare with.

    `goals` are of the ratio of P99 ITL and, if there are two, of that of tokens/s.
    """
    found = []
    for _, other in others.groupby("arm", sort=False):
        alike = base[base["comparable"] == other["comparable"].iloc[0]]
        if alike["arm"].nunique() == 1:
            found.append(_compared(campaign, alike, other, goals))
    return found


def _compared(
    campaign: Campaign, base: pd.DataFrame, other: pd.DataFrame, goals: tuple[Ranges, ...]
) -> Outcome:
    baseline, treated = str(base["arm"].iloc[0]), str(other["arm"].iloc[0])
    tail = effect(campaign, baseline, treated, 0.99)
    rate = ratio_of_runs(base["tokens_per_s"].tolist(), other["tokens_per_s"].tolist())
    runs = (*base["run"], *other["run"])
    if not (tail.supported and rate.supported):
        return not_measured("too few runs or steps", runs)
    sample = sample_of(campaign, runs)
    judged = [(each, judge(*each)) for each in zip((tail, rate), goals, strict=False)]
    verdicts = [verdict for _, verdict in judged]
    verdict = next((v for v in DECISIVE if v in verdicts), verdicts[0])
    more = [more_needed(*each, sample.size) for each, v in judged if v is Verdict.UNDECIDED]
    return Outcome(
        verdict=verdict,
        number=f"P99 ITL {fmt.ratio(tail)}, tokens/s {fmt.ratio(rate)}",
        reason=f"{AGAINST_GOALS[verdict]}; {treated}",
        runs=runs,
        detail=detail(verdict, goals[0], sample, *more),
        ratio=tail,
    )
