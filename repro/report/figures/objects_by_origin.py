"""Where the objects of a worker's heap come from."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from repro import fmt
from repro.analysis.arms import ordered_arms
from repro.analysis.mechanism import objects_from
from repro.dataset import Campaign
from repro.report import style
from repro.report.figures.registry import NotApplicable, figure
from repro.report.figures.shared import message
from repro.report.style import PAGE

ADDED_BY = {
    "imported": "imports",
    "loaded": "model",
    "profiled": "compiling",
    "captured": "capture",
    "ready": "warm-up",
}


@figure
def objects_by_origin(campaign: Campaign) -> Figure:
    """Where the objects of a worker's heap come from: what each stage of its start adds.

    Needs workers that were counted on their way.
    """
    added = objects_from(campaign)
    if added.empty:
        raise NotApplicable("no worker was counted on its way")
    arms = [arm for arm in ordered_arms(campaign) if arm in added.index]
    drawn = Figure(figsize=(PAGE, 1.2 + 0.22 * len(arms)), layout="constrained")
    axes = drawn.subplots()
    left = np.zeros(len(arms))
    for number, (point, objects) in enumerate((added.loc[arms].clip(lower=0) / 1e6).items()):
        colour = style.PALETTE[(9, 1, 2, 4, 8)[number]]
        axes.barh(arms, objects, left=left, color=colour, label=ADDED_BY[str(point)])
        left += objects.to_numpy()
    axes.invert_yaxis()
    axes.set_xlabel("objects in the worker's heap before load (millions)")
    axes.grid(visible=False, axis="y")
    drawn.legend(loc="outside lower center", ncols=added.shape[1])
    share = (added["imported"] / added.sum(axis=1)).median()
    message(drawn, f"{fmt.percent(share)} of a worker's objects are there before its model is")
    return drawn
