"""How long a full collection takes against the objects it sees."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from repro import fmt
from repro.analysis.mechanism import pause_by_objects
from repro.dataset import Campaign
from repro.report.figures.registry import NotApplicable, figure
from repro.report.figures.shared import message, plain_numbers
from repro.report.style import COLUMN, INK, PROCESS_COLOUR


@figure
def pause_against_objects(campaign: Campaign) -> Figure:
    """How long a full collection takes against the objects it sees, of every process and run.

    The line is one time an object, the median over the heaps of more than 100,000; where there
    is none, over all. Needs a full collection in a process that was counted.
    """
    points = pause_by_objects(campaign)
    if points.empty:
        raise NotApplicable("no full collection in a process whose heap was counted")
    large = points[points["objects"] > 1e5]
    rate = ((large if len(large) else points).eval("median_ms / objects")).median()
    drawn = Figure(figsize=(COLUMN, 2.8), layout="constrained")
    axes = drawn.subplots()
    for (role, frozen), group in points.groupby(["role", "frozen"]):
        colour = PROCESS_COLOUR[role]
        face = "white" if frozen else colour
        axes.plot(group["objects"], group["median_ms"], "o", ms=4.5, mec=colour, mfc=face, mew=1)
    span = np.array([points["objects"].min(), points["objects"].max()])
    axes.plot(span, rate * span, color=INK, lw=0.8, zorder=1)
    axes.set(xscale="log", yscale="log", xlabel="objects seen", ylabel="full collection (ms)")
    plain_numbers(axes.xaxis)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    plain_numbers(axes.yaxis)
    handles = [
        Line2D([], [], marker="o", ls="", color=PROCESS_COLOUR[role], label=fmt.PROCESS[role])
        for role in fmt.PROCESS
        if role in set(points["role"])
    ]
    handles.append(
        Line2D([], [], marker="o", ls="", mec=INK, mfc="white", label="heap frozen before load")
    )
    axes.legend(handles=handles, loc="upper left", handlelength=1)
    message(drawn, f"A full collection takes about {fmt.figures(1e6 * rate)} ns an object seen")
    return drawn
