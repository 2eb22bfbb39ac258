"""Lengths of collections by process and generation, without and with the freeze."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from repro import fmt
from repro.analysis.gc_cost import GENERATIONS, full_collections
from repro.dataset import Campaign, in_window, under_load
from repro.dataset.schema import NS_PER_MS
from repro.report.figures.registry import NotApplicable, figure
from repro.report.figures.shared import (
    legend_of_arms,
    look,
    message,
    pair_to_compare,
    plain_numbers,
)
from repro.report.style import INK, PAGE, PROCESS_COLOUR
from repro.theory.cpython_rule import FULL


@figure
def pauses_by_process(campaign: Campaign) -> Figure:
    """Length of pauses by process and generation, without and with the freeze.

    A bar spans the shortest to the longest, a circle marks the median. Needs full collections of
    workers in the measured windows.
    """
    campaign = under_load(campaign)
    full = full_collections(campaign)
    if not full["role"].eq("worker").any():
        raise NotApplicable("no full collection of a worker in the measured windows")
    arms = pair_to_compare(campaign)
    pauses = in_window(campaign, campaign.pauses)
    roles = [role for role in fmt.PROCESS if role in set(pauses["role"])]
    drawn = Figure(figsize=(PAGE, 2.3), layout="constrained")
    panels = drawn.subplots(1, len(roles), sharey=True, squeeze=False)[0]
    for axes, role in zip(panels, roles, strict=True):
        for side, arm in zip((-0.15, 0.15), arms, strict=True):
            style = look(campaign, arm.label)
            of_arm = pauses[pauses["run"].isin(arm.runs) & (pauses["role"] == role)]
            for generation, group in of_arm.groupby("generation")["duration_ns"]:
                at = generation + side
                shortest, median, longest = np.quantile(group / NS_PER_MS, (0, 0.5, 1))
                axes.vlines(at, shortest, longest, lw=2, color=style["color"])
                axes.plot(at, median, "o", ms=4.5, mfc="white", mec=style["color"], mew=1.2)
        axes.set_title(fmt.PROCESS[role], fontsize=7, weight="bold", color=PROCESS_COLOUR[role])
        axes.set(yscale="log", xlabel="generation collected", xlim=(-0.6, FULL + 0.6))
        axes.set_xticks(GENERATIONS)
        axes.grid(visible=False, axis="x")
    plain_numbers(panels[0].yaxis)
    panels[0].set_ylabel("pause (ms)")
    marks = [
        Line2D([], [], color=INK, lw=2, label="shortest to longest"),
        Line2D([], [], ls="", marker="o", ms=4.5, mfc="white", mec=INK, label="median"),
    ]
    legend_of_arms(drawn, campaign, [arm.label for arm in arms], marks)
    longest_ms = full.groupby(["role", "arm"])["duration_ns"].max() / NS_PER_MS
    each = []
    for role in reversed(roles):
        values = [longest_ms.get((role, arm.label)) for arm in arms]
        said = " → ".join("none" if value is None else fmt.figures(value) for value in values)
        each.append(f"{fmt.PROCESS[role]} {said} ms")
    names = " → ".join(arm.label for arm in arms)
    message(drawn, f"Longest full collection ({names}): {', '.join(each)}")
    return drawn
