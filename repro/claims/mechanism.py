"""What decides the claims about the mechanism."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from repro import fmt
from repro.analysis.mechanism import POLICIES
from repro.analysis.memory import garbage_left
from repro.analysis.release_comparison import freezes_itself
from repro.analysis.silences import silences
from repro.analysis.tails import Estimate, effect
from repro.analysis.trigger import OFF, WITHIN, trigger_table
from repro.claims.verdict import Finding, Verdict
from repro.dataset import Campaign, under_load
from repro.stats.ratios import ratio_of_runs

LITTLE_BYTES = 1 << 20
"""What a worker may leave in abandoned cycles for nobody to mind."""

HALF, A_TENTH_MORE = 0.5, 1.1


def rule_predicts(campaign: Campaign) -> list[Finding]:
    """Full collections of workers against CPython's rule, each within a tenth."""
    table = trigger_table(campaign)
    told = table[(table["role"] == "worker") & table["verdict"].isin([WITHIN, OFF])]
    measured = told[told["ratio"].notna()]
    if measured.empty:
        return []
    wrong = told[told["verdict"] == OFF]
    low, high = measured["ratio"].min(), measured["ratio"].max()
    return [
        Finding(
            verdict=Verdict.REPRODUCED if wrong.empty else Verdict.CONTRADICTED,
            number=f"predicted over observed {fmt.bounds(low, high)}",
            reason=f"{len(told) - len(wrong)} of {len(told)} predictions within 10%",
            runs=tuple(told["run"].astype(str).unique()),
        )
    ]


def little_is_left(campaign: Campaign) -> list[Finding]:
    """Bytes that frozen or uncollected workers held in abandoned cycles after load."""
    found = garbage_left(under_load(campaign))
    if found.empty:
        return []
    worst = found.assign(total=found["since_bytes"] + found["kept_bytes"])
    worst = worst.loc[worst["total"].idxmax()]
    little = worst["total"] <= LITTLE_BYTES
    runs = campaign.runs.loc[campaign.runs["arm"].isin(found["arm"]), "run"]
    return [
        Finding(
            verdict=Verdict.REPRODUCED if little else Verdict.CONTRADICTED,
            number=f"{fmt.amount(worst['since'] + worst['kept'])} objects, "
            f"{fmt.amount(worst['total'])} bytes at most",
            reason="under 1 MiB in every run" if little else f"over 1 MiB in {worst['arm']}",
            runs=tuple(runs),
        )
    ]


def a_policy_beats_stock(campaign: Campaign) -> list[Finding]:
    """P99 ITL and tokens/s through HTTP at 1,024 in flight, each policy against untouched vLLM."""
    runs = _through_http(campaign)
    stock = (runs[POLICIES] == "stock").all(axis=1)
    base = stock if stock.any() else _only_frozen(runs) & freezes_itself(runs)
    return _against(campaign, runs[base], runs[~base], _meets_both_goals)


def the_handler_holds_the_loop(campaign: Campaign) -> list[Finding]:
    """Silences through HTTP at vLLM's own chunk: under holds of its event loop, or collections."""
    found = silences(campaign)
    found = found[found["arm"].isin(_through_http(campaign)["arm"])]
    if found.empty:
        return []
    length_s = (found["end_ns"] - found["start_ns"]) / 1e9
    held, collecting = (
        float((found[name] * length_s).sum() / length_s.sum()) for name in ("held", "collecting")
    )
    verdict = Verdict.NOT_REPRODUCED
    if held > HALF and held > 2 * collecting:
        verdict = Verdict.REPRODUCED
    elif collecting > HALF:
        verdict = Verdict.CONTRADICTED
    return [
        Finding(
            verdict=verdict,
            number=f"{len(found)} silences of {fmt.figures(length_s.sum())} s together, "
            f"{fmt.percent(held)} of it under a hold",
            reason=f"{fmt.percent(collecting)} of it under a collection of the API server",
            runs=tuple(found["run"].unique()),
        )
    ]


def whole_steps_end_silences(campaign: Campaign) -> list[Finding]:
    """Tokens/s and silences of a handler that takes whole steps, against vLLM's own chunk."""
    runs = campaign.runs[campaign.runs["client"] == "serve"]
    usual, whole = (runs[(runs["output_chunk"] > 0) == large] for large in (False, True))
    silent = silences(campaign)["run"].value_counts()
    findings = []
    same = [*POLICIES, "comparable", "load"]
    for _, other in whole.groupby(same):
        base = usual[(usual[same] == other[same].iloc[0]).all(axis=1)]
        if base.empty:
            continue
        rate = ratio_of_runs(base["tokens_per_s"].tolist(), other["tokens_per_s"].tolist())
        if not rate.supported:
            continue
        before, after = (int(silent.reindex(part["run"]).sum()) for part in (base, other))
        ended = before > 0 and after == 0
        more = rate.low > 1
        verdict = Verdict.REPRODUCED if ended and more else Verdict.NOT_REPRODUCED
        findings.append(
            Finding(
                verdict=Verdict.CONTRADICTED if rate.high < 1 or after > before else verdict,
                number=f"tokens/s {fmt.ratio(rate)}, silences {before} before, {after} after",
                reason=str(other["arm"].iloc[0]),
                runs=(*base["run"], *other["run"]),
            )
        )
    return findings


def _through_http(campaign: Campaign) -> pd.DataFrame:
    """Runs through HTTP at 1,024 in flight whose output handler is as vLLM has it."""
    runs = campaign.runs
    asked = (runs["client"] == "serve") & (runs["concurrency"] == 1024)
    return runs[asked & (runs["output_chunk"] == 0)]


def a_policy_beats_the_freeze(campaign: Campaign) -> list[Finding]:
    """P99 ITL at 1,024 in flight without HTTP, policies of every process against the freeze."""
    runs = campaign.runs[
        (campaign.runs["client"] == "engine") & (campaign.runs["concurrency"] == 1024)
    ]
    return _against(campaign, runs[_only_frozen(runs)], runs[~_others_stock(runs)], _is_lower)


def _others_stock(runs: pd.DataFrame) -> pd.Series:
    return (runs[["engine_policy", "frontend_policy"]] == "stock").all(axis=1)


def _only_frozen(runs: pd.DataFrame) -> pd.Series:
    return _others_stock(runs) & (runs["policy"] == "freeze")


Judge = Callable[[Estimate, Estimate], tuple[Verdict, str]]
"""Verdict and reason from the ratios of P99 ITL and of tokens/s."""


def _meets_both_goals(tail: Estimate, rate: Estimate) -> tuple[Verdict, str]:
    if tail.high <= HALF and rate.low >= A_TENTH_MORE:
        return Verdict.REPRODUCED, "both goals are met"
    if tail.low > HALF or rate.high < A_TENTH_MORE:
        return Verdict.CONTRADICTED, "at least one goal is surely missed"
    return Verdict.NOT_REPRODUCED, "an interval leaves a goal open"


def _is_lower(tail: Estimate, _: Estimate) -> tuple[Verdict, str]:
    if tail.high < 1:
        return Verdict.REPRODUCED, "P99 is lower yet"
    if tail.low > 1:
        return Verdict.CONTRADICTED, "P99 is higher"
    return Verdict.NOT_REPRODUCED, "the interval leaves both open"


def _against(
    campaign: Campaign, base: pd.DataFrame, others: pd.DataFrame, judge: Judge
) -> list[Finding]:
    """One finding for each arm of `others` that has one arm of `base` to compare with."""
    findings = []
    for _, other in others.groupby("arm", sort=False):
        alike = base[base["comparable"] == other["comparable"].iloc[0]]
        if alike["arm"].nunique() == 1:
            findings.append(_compared(campaign, alike, other, judge))
    return findings


def _compared(campaign: Campaign, base: pd.DataFrame, other: pd.DataFrame, judge: Judge) -> Finding:
    baseline, treated = str(base["arm"].iloc[0]), str(other["arm"].iloc[0])
    tail = effect(campaign, baseline, treated, 0.99)
    rate = ratio_of_runs(base["tokens_per_s"].tolist(), other["tokens_per_s"].tolist())
    runs = (*base["run"], *other["run"])
    if not (tail.supported and rate.supported):
        return Finding(
            verdict=Verdict.NOT_MEASURED, number="–", reason="too few runs or steps", runs=runs
        )
    verdict, reason = judge(tail, rate)
    number = f"P99 ITL {fmt.ratio(tail)}, tokens/s {fmt.ratio(rate)}"
    return Finding(verdict=verdict, number=number, reason=f"{reason}; {treated}", runs=runs)
