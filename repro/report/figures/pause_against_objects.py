"""Length of full collections against the objects they visit."""

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

LARGE = 100_000
FEWEST, RANGE = 6, 10
"""Heaps, and the ratio of the largest to the smallest, that a time per object needs."""


@figure
def pause_against_objects(campaign: Campaign) -> Figure:
    """Length of full collections against the objects they visit, by process and run.

    The line is one time per object, the median over heaps of more than 100,000 objects. Needs
    unfrozen heaps of that size, and six heaps that differ tenfold in size.
    """
    points = pause_by_objects(campaign)
    large = points[(points["objects"] > LARGE) & ~points["frozen"].astype(bool)]
    if large.empty:
        raise NotApplicable(f"no full collection of an unfrozen heap of over {LARGE:,} objects")
    if len(points) < FEWEST or points["objects"].max() < RANGE * points["objects"].min():
        raise NotApplicable(f"fewer than {FEWEST} heaps, or all of about the same size")
    rate = large.eval("median_ms / objects").median()
    drawn = Figure(figsize=(COLUMN, 2.8), layout="constrained")
    axes = drawn.subplots()
    for (role, frozen), group in points.groupby(["role", "frozen"]):
        colour = PROCESS_COLOUR[role]
        face = "white" if frozen else colour
        axes.plot(group["objects"], group["median_ms"], "o", ms=4.5, mec=colour, mfc=face, mew=1)
    span = np.array([points["objects"].min(), points["objects"].max()])
    axes.plot(span, rate * span, color=INK, lw=0.8, zorder=1)
    axes.set(xscale="log", yscale="log", xlabel="objects visited", ylabel="full collection (ms)")
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
    handles.append(
        Line2D([], [], color=INK, lw=0.8, label=f"{fmt.figures(1e6 * rate)} ns per object")
    )
    axes.legend(handles=handles, loc="upper left", handlelength=1)
    message(drawn, f"A full collection takes about {fmt.figures(1e6 * rate)} ns per object visited")
    return drawn
