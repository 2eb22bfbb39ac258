"""The steps of several ranks over each other around a pause of one."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from repro import fmt
from repro.analysis.gc_cost import full_collections
from repro.analysis.ranks import several
from repro.analysis.tails import step_intervals
from repro.dataset import Campaign
from repro.dataset.schema import NS_PER_MS, NS_PER_S
from repro.report.figures.registry import NotApplicable, figure
from repro.report.figures.shared import message, plain_numbers
from repro.report.style import PAGE, RANK_COLOUR


@figure
def rank_timelines(campaign: Campaign) -> Figure:
    """Steps of two ranks above each other around the longest pause of a worker, on one clock.

    Shaded where a worker was in a full collection, in the colour of its rank. Needs a run of
    several ranks with a full collection of a worker.
    """
    runs = several(campaign)
    if runs.empty:
        raise NotApplicable("there are no runs of several ranks")
    full = full_collections(campaign)
    full = full[(full["role"] == "worker") & full["run"].isin(runs["run"])]
    if full.empty:
        raise NotApplicable("there is no full collection of a worker among several ranks")
    longest = full.loc[full["duration_ns"].idxmax()]
    steps = step_intervals(campaign.steps[campaign.steps["run"] == longest["run"]])
    middle = longest["start_ns"] + longest["duration_ns"] // 2
    ranks = [longest["rank"], *sorted(set(steps["rank"]) - {longest["rank"]})][:2]
    usual_ms = float(steps["interval_ns"].median()) / NS_PER_MS
    half_s = max(2.5 * longest["duration_ns"] / NS_PER_MS, 25 * usual_ms) / 1e3
    drawn = Figure(figsize=(PAGE, 3.0), layout="constrained")
    panels = drawn.subplots(len(ranks), sharex=True, sharey=True, squeeze=False)[:, 0]
    colours = dict(zip(ranks, RANK_COLOUR, strict=False))
    shaded = full[(full["run"] == longest["run"]) & full["rank"].isin(ranks)]
    for rank, axes in zip(ranks, panels, strict=True):
        _draw_steps(axes, steps[steps["rank"] == rank], middle, half_s, colours[rank])
        for row in shaded.itertuples():
            start = (row.start_ns - middle) / NS_PER_S
            if abs(start) < half_s:
                span = start, start + row.duration_ns / NS_PER_S
                axes.axvspan(*span, color=colours[row.rank], alpha=0.25, lw=0)
        axes.set(yscale="log", ylabel="step interval (ms)")
        axes.set_title(f"rank {rank}", fontsize=7, weight="bold", color=colours[rank], pad=3)
    panels[0].margins(y=0.15)
    plain_numbers(panels[0].yaxis)
    panels[-1].set(
        xlim=(-half_s, half_s), xlabel=f"time from the middle of rank {ranks[0]}'s pause (s)"
    )
    together = _at_the_same_time(full, longest, ranks[-1])
    if together.empty:
        message(drawn, _waiting_message(steps, longest, ranks, middle))
    else:
        message(drawn, _together_message(longest, together.iloc[0]))
    return drawn


def _draw_steps(
    axes: Axes, steps: pd.DataFrame, middle_ns: int, half_s: float, colour: str
) -> None:
    """One rank's steps around a point in time: as long as they took, as high as well."""
    end = (steps["t_ns"] - middle_ns) / NS_PER_S
    begin = end - steps["interval_ns"] / NS_PER_S
    seen = (end > -half_s) & (begin < half_s)
    axes.hlines(steps["interval_ns"][seen] / NS_PER_MS, begin[seen], end[seen], colour, lw=2)


def _at_the_same_time(full: pd.DataFrame, pause: pd.Series, rank: int) -> pd.DataFrame:
    """Another rank's collections that begin before a pause is over and end after it began."""
    other = full[(full["run"] == pause["run"]) & (full["rank"] == rank)]
    begun = other["start_ns"] < pause["start_ns"] + pause["duration_ns"]
    lasts = other["start_ns"] + other["duration_ns"] > pause["start_ns"]
    found: pd.DataFrame = other[begun & lasts]
    return found


def _together_message(pause: pd.Series, other: pd.Series) -> str:
    each = [
        f"rank {of['rank']} for {fmt.ms(of['duration_ns'] / NS_PER_MS)}" for of in (pause, other)
    ]
    return (
        f"The workers collect at the same time, {fmt.listed(each)} (shaded): one stall for both "
        f"(run {pause['run']})"
    )


def _waiting_message(steps: pd.DataFrame, pause: pd.Series, ranks: list[int], at_ns: int) -> str:
    other = steps[steps["rank"] == ranks[-1]]
    during = other[(other["t_ns"] > at_ns) & (other["t_ns"] - other["interval_ns"] <= at_ns)]
    took = during["interval_ns"].max() / NS_PER_MS
    usual = other["interval_ns"].median() / NS_PER_MS
    return (
        f"While the worker of rank {ranks[0]} collects for "
        f"{fmt.ms(pause['duration_ns'] / NS_PER_MS)} (shaded), the step of rank {ranks[-1]} "
        f"takes {fmt.ms(took)}, where it usually takes {fmt.ms(usual)} (run {pause['run']})"
    )
