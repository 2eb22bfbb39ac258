"""The cost of the freeze where it cannot help: few requests, so no full collections."""

from __future__ import annotations

from dataclasses import replace

from repro import fmt
from repro.analysis.arms import Pair, pairs
from repro.analysis.gc_cost import full_collections
from repro.analysis.tails import paired_effect
from repro.claims.registry import claim
from repro.claims.tail import runs_of
from repro.claims.verdict import Outcome, same, sameness, sample_of, too_few
from repro.dataset import Campaign, in_window

SAME_MEDIAN = (0.99, 1.01)

QUANTILE = 0.5


@claim(
    "costs-nothing",
    "Where no full collection comes, the freeze costs nothing.",
    criterion=f"reproduced: median ITL's ratio lies within {fmt.bounds(*SAME_MEDIAN)}, period "
    "beside period of one engine; contradicted: outside",
    needs="a cross-over in which no worker makes a full collection",
    source="a public case at 64 ranks saw the median of small batches rise by a fifth",
    over_all=same(SAME_MEDIAN),
)
def costs_nothing(campaign: Campaign) -> list[Outcome]:
    """The ratio of median ITL in neighbouring periods of each load without full collections."""
    switching = set(campaign.runs.loc[campaign.runs["switch_s"] > 0, "arm"])
    full = full_collections(campaign)
    stopped = set(full.loc[full["role"] == "worker", "run"])
    return [
        _compared(campaign, pair)
        for pair in pairs(campaign)
        if pair.treated in switching and not stopped & set(runs_of(campaign, pair))
    ]


def _compared(campaign: Campaign, pair: Pair) -> Outcome:
    ratio = paired_effect(campaign, pair.baseline, pair.treated, QUANTILE)
    runs = runs_of(campaign, pair)
    name = f"{fmt.quantile(QUANTILE)} ITL"
    if not ratio.supported:
        return too_few(ratio, name, runs, "pairs of periods")
    period = sample_of(campaign, runs)
    sample = replace(period, minutes=2 * period.minutes, unit="pair", group="load")
    collecting = fmt.percent(_share_collecting(campaign, runs))
    where = f"; {pair.setting}" if pair.setting else ""
    further = f"; no process of the engine collects for more than {collecting} of the time{where}"
    return sameness(ratio, SAME_MEDIAN, sample, name=name, runs=runs, further=further)


def _share_collecting(campaign: Campaign, runs: tuple[str, ...]) -> float:
    """Of these runs' windows, in the engine's process that collects longest."""
    pauses = in_window(campaign, campaign.pauses)
    own = pauses[pauses["run"].isin(runs) & (pauses["role"] != "frontend")]
    used = campaign.runs[campaign.runs["run"].isin(runs)]
    window_ns = (used["window_end_ns"] - used["window_start_ns"]).sum()
    return float(own.groupby("role")["duration_ns"].sum().max() / window_ns) if len(own) else 0.0
