"""One burst of full collections over the time lines of all ranks."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from repro import fmt
from repro.analysis.ranks import bursts
from repro.analysis.tails import step_intervals
from repro.dataset import Campaign
from repro.dataset.schema import NS_PER_S
from repro.report.figures.registry import NotApplicable, figure
from repro.report.figures.shared import message
from repro.report.style import COLUMN, INK, POLICY_COLOUR

STEP_COLOUR = "#9db7d5"
MARGIN_S = 0.6


@figure
def rank_timelines(campaign: Campaign) -> Figure:
    """One burst, unfrozen where there is one: each rank's steps, and its worker's collection.

    A row per rank: a bar per step, as long as the step took; the full collection on top of it.
    Needs a run of several data-parallel ranks with a full collection of each of their workers.
    """
    found = bursts(campaign)
    if found.empty:
        raise NotApplicable("there is no full collection of every worker of a data-parallel group")
    widest = found[found["ranks"] == found["ranks"].max()]
    burst = widest.loc[widest["pause_ms"].idxmax()]
    first = float(burst["start_ns"])
    begin, end = first - MARGIN_S * NS_PER_S, first + (burst["length_s"] + MARGIN_S) * NS_PER_S
    steps = step_intervals(campaign.steps[campaign.steps["run"] == burst["run"]])
    steps = steps[(steps["t_ns"] > begin) & (steps["t_ns"] - steps["interval_ns"] < end)]
    own = campaign.pauses[campaign.pauses["run"] == burst["run"]]
    full = own[(own["role"] == "worker") & (own["generation"] == 2)]
    full = full[full["start_ns"].between(begin, end)]
    ranks = sorted(steps["rank"].unique())
    height = min(0.28, 2.9 / len(ranks))
    drawn = Figure(figsize=(COLUMN, 1.1 + height * len(ranks)), layout="constrained")
    axes = drawn.subplots()
    for place, rank in enumerate(ranks):
        mine = steps[steps["rank"] == rank]
        starts = mine["t_ns"] - mine["interval_ns"]
        axes.broken_barh(
            _spans(starts, mine["interval_ns"], first),
            (place - 0.36, 0.72),
            facecolor=STEP_COLOUR,
            edgecolor="white",
            lw=0.5,
        )
        pauses = full[full["rank"] == rank]
        axes.broken_barh(
            _spans(pauses["start_ns"], pauses["duration_ns"], first),
            (place - 0.18, 0.36),
            facecolor=POLICY_COLOUR[burst["policy"]],
        )
    axes.set(
        xlim=((begin - first) / NS_PER_S, (end - first) / NS_PER_S),
        xlabel="time from the first full collection (s)",
        yticks=range(0, len(ranks), max(1, len(ranks) // 8)),
        yticklabels=[f"rank {rank}" for rank in ranks[:: max(1, len(ranks) // 8)]],
    )
    axes.yaxis.set_minor_locator(NullLocator())
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False)
    axes.invert_yaxis()
    axes.spines["left"].set_visible(False)
    axes.xaxis.label.set_color(INK)
    message(drawn, _message(burst))
    return drawn


def _spans(begin: pd.Series, lasted: pd.Series, first: float) -> list[tuple[float, float]]:
    starts, lengths = (begin - first) / NS_PER_S, lasted / NS_PER_S
    return list(zip(starts, lengths, strict=True))


def _message(burst: pd.Series) -> str:
    return (
        f"One burst of {burst['ranks']} ranks, {burst['policy']}: within "
        f"{fmt.figures(burst['length_s'])} s each worker makes a full collection (colour) of "
        f"about {fmt.ms(burst['pause_ms'])}, and the step (grey-blue) of every rank waits"
    )
