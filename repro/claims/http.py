"""Claims about an API server: policies of its processes, and its output handler."""

from __future__ import annotations

import pandas as pd

from repro import fmt
from repro.analysis.arms import VLLM_HANDLER, output_handler
from repro.analysis.mechanism import PROCESS_POLICIES, untouched
from repro.analysis.release_comparison import freezes_itself
from repro.analysis.silences import in_total, silences
from repro.claims.goals import (
    FIRST_TOKEN,
    LAST_TOKEN,
    LONGEST,
    P99,
    TOKENS,
    above,
    against,
    below,
    only_frozen,
)
from repro.claims.registry import claim
from repro.claims.verdict import (
    Outcome,
    Verdict,
    decided,
    detail,
    judge,
    more_needed,
    not_measured,
    sample_of,
)
from repro.dataset import Campaign
from repro.stats.ratios import ratio_of_runs

HALF, A_QUARTER, A_TENTH_MORE = 0.5, 0.25, 1.1

HALF_AND_A_TENTH = {P99: below(HALF), TOKENS: above(A_TENTH_MORE)}
ALL_FIVE = {
    P99: below(HALF),
    LONGEST: below(A_QUARTER),
    TOKENS: above(A_TENTH_MORE),
    FIRST_TOKEN: below(1.0),
    LAST_TOKEN: below(1.0),
}
ABOVE_ONE = above(1.0)


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
    runs = _vllms_handler(_through_http(campaign))
    stock = untouched(runs)
    base = stock if stock.any() else only_frozen(runs) & freezes_itself(runs)
    return against(campaign, runs[base], runs[~base], HALF_AND_A_TENTH)


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
    found = found[found["arm"].isin(_vllms_handler(_through_http(campaign))["arm"])]
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


@claim(
    "bounded-steps",
    "A policy with an output handler that yields in time halves P99 ITL, quarters the longest gap "
    "and adds a tenth to the tokens/s; answers begin and end no later.",
    criterion="reproduced: all five intervals beyond these goals; contradicted: one surely missed",
    needs="client `serve`, 1,024 in flight, `stock`, and `output_yield_ms` with any policies, two "
    "runs each with their requests",
    source="the goal set for an API server",
    some=True,
)
def a_bound_in_time_beats_stock(campaign: Campaign) -> list[Outcome]:
    """Five measures through HTTP, each policy with a handler bounded in time against stock."""
    runs = _through_http(campaign)
    base = _vllms_handler(runs[untouched(runs)])
    return against(campaign, base, runs[runs["output_yield_ms"] > 0], ALL_FIVE)


def _through_http(campaign: Campaign) -> pd.DataFrame:
    """Runs through HTTP at 1,024 in flight."""
    runs = campaign.runs
    return runs[(runs["client"] == "serve") & (runs["concurrency"] == 1024)]


def _vllms_handler(runs: pd.DataFrame) -> pd.DataFrame:
    """Those whose output handler is as vLLM has it."""
    return runs[output_handler(runs) == VLLM_HANDLER]
