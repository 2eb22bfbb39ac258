"""Collections of each process by generation and arm: how many, how long."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from repro import fmt
from repro.analysis.arms import ordered_arms, pairs
from repro.analysis.gc_cost import FULL, GENERATIONS, full_collections
from repro.analysis.tails import NS_PER_MS
from repro.dataset import Campaign, in_window, under_load
from repro.report.figures.registry import NotApplicable, figure
from repro.report.figures.shared import (
    arms_to_compare,
    legend_of_arms,
    message,
    plain_numbers,
    runs_of,
    style_of,
)
from repro.report.style import PAGE, PROCESS_COLOUR


@figure
def pauses_by_process(campaign: Campaign) -> Figure:
    """How long pauses are, by process, generation and arm: from shortest to longest, and median.

    The number over each bar is how many there were in the measured windows of the arm's runs.
    Needs a pause in them.
    """
    campaign = under_load(campaign)
    pauses = in_window(campaign, campaign.pauses)
    if pauses.empty:
        raise NotApplicable("no collection in the measured windows")
    roles = [role for role in fmt.PROCESS if role in set(pauses["role"])]
    arms = arms_to_compare(campaign)
    spread = 0.7 / len(arms)
    drawn = Figure(figsize=(PAGE, 2.5), layout="constrained")
    panels = drawn.subplots(1, len(roles), sharey=True, squeeze=False)[0]
    for axes, role in zip(panels, roles, strict=True):
        for number, arm in enumerate(arms):
            look = style_of(campaign, arm)
            of_arm = pauses[pauses["run"].isin(runs_of(campaign, arm)) & (pauses["role"] == role)]
            for generation, group in of_arm.groupby("generation")["duration_ns"]:
                at = generation + (number - (len(arms) - 1) / 2) * spread
                shortest, median, longest = np.quantile(group / NS_PER_MS, (0, 0.5, 1))
                axes.vlines(at, shortest, longest, lw=2, **look)
                axes.plot(at, median, "o", ms=4.5, mfc="white", mec=look["color"], mew=1.2)
                axes.annotate(
                    _compact(len(group)),
                    (at, longest),
                    (0, 3),
                    textcoords="offset points",
                    ha="center",
                    fontsize=6,
                    rotation=90 if len(arms) > 2 else 0,
                    color=look["color"],
                )
        axes.set_title(fmt.PROCESS[role], fontsize=7, weight="bold", color=PROCESS_COLOUR[role])
        axes.set(yscale="log", xlabel="generation collected", xlim=(-0.6, FULL + 0.6))
        axes.set_xticks(GENERATIONS)
        axes.margins(y=0.15)
        axes.grid(visible=False, axis="x")
    plain_numbers(panels[0].yaxis)
    panels[0].set_ylabel("pause (ms)")
    legend_of_arms(drawn, campaign, arms)
    message(drawn, _full_message(campaign, roles))
    return drawn


def _full_message(campaign: Campaign, roles: list[str]) -> str:
    full = full_collections(campaign)
    longest = full.groupby(["role", "arm"])["duration_ns"].max() / NS_PER_MS
    pair = next(iter(pairs(campaign)), None)
    arms = [pair.baseline, pair.treated] if pair else ordered_arms(campaign)[:1]
    parts = []
    for role in roles:
        values = [longest.get((role, arm)) for arm in arms]
        said = ["none" if value is None else fmt.ms(value) for value in values]
        parts.append(f"{fmt.PROCESS[role]} {' → '.join(dict.fromkeys(said))}")
    return f"Longest full collection ({' → '.join(arms)}): {', '.join(parts)}"


def _compact(count: int) -> str:
    return f"{count}" if count < 10_000 else f"{count / 1000:.0f}k"
