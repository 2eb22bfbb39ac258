"""The longest silence through HTTP: tokens decoded and tokens received by clients."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from repro import fmt
from repro.analysis.silences import silences
from repro.dataset import Campaign
from repro.dataset.schema import NS_PER_S
from repro.report.figures.registry import NotApplicable, figure
from repro.report.figures.shared import message
from repro.report.style import INK, PAGE, PROCESS_COLOUR

SHADE = 0.55
"""Opacity of a span."""

BIN_S = 0.1
AROUND_S = 2.0
"""Time shown before and after the silence."""

COLLECTION = PROCESS_COLOUR["worker"]


@figure
def silence(campaign: Campaign) -> Figure:
    """Tokens decoded and chunks received around the longest silence, on one clock.

    Needs a run through HTTP with recorded holds of the event loop and a silence of a second.
    """
    found = silences(campaign)
    if found.empty:
        if campaign.holds.empty:
            raise NotApplicable("no run recorded holds of the event loop")
        raise NotApplicable("no silence of a second")
    longest = found.loc[(found["end_ns"] - found["start_ns"]).idxmax()]
    begun, length_s = longest["start_ns"], (longest["end_ns"] - longest["start_ns"]) / NS_PER_S
    edges = np.arange(-AROUND_S, length_s + AROUND_S, BIN_S)
    tables = {
        name: table[table["run"] == longest["run"]]
        for name, table in {
            "steps": campaign.steps,
            "itl": campaign.itl,
            "holds": campaign.holds,
            "pauses": campaign.pauses[campaign.pauses["role"] == "frontend"],
        }.items()
    }
    drawn = Figure(figsize=(PAGE, 2.3), layout="constrained")
    axes = drawn.subplots()
    lines = {
        "tokens decoded": (
            tables["steps"],
            "start_ns",
            "tokens",
            PROCESS_COLOUR["engine"],
        ),
        "chunks at the clients": (tables["itl"], "t_ns", "count", INK),
    }
    for table, time, tokens, colour in lines.values():
        at = (table[time] - begun) / NS_PER_S
        rate, _ = np.histogram(at, edges, weights=table[tokens])
        axes.stairs(rate / BIN_S, edges, baseline=None, color=colour, lw=1.2)
    _shade(axes, tables["holds"], begun, PROCESS_COLOUR["frontend"])
    _shade(axes, tables["pauses"], begun, COLLECTION)
    axes.set(
        xlim=(edges[0], edges[-1]),
        ylim=(0, None),
        xlabel="time from the last token before the silence (s)",
        ylabel="per second",
    )
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    handles: list[Line2D | Patch] = [
        Line2D([], [], lw=2, color=look[-1], label=name) for name, look in lines.items()
    ]
    handles.append(_patch(PROCESS_COLOUR["frontend"], "output handler holds the event loop"))
    handles.append(_patch(COLLECTION, "API server collects"))
    drawn.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    held, collecting = (fmt.percent(longest[name]) for name in ("held", "collecting"))
    message(
        drawn,
        f"{longest['arm']}: for {fmt.figures(length_s)} s no token leaves the API server. "
        f"The output handler holds the event loop for {held} of that time (collecting: "
        f"{collecting}), and the engine runs out of requests",
    )
    return drawn


def _shade(axes: Axes, spans: pd.DataFrame, begun: int, colour: str) -> None:
    start = (spans["start_ns"] - begun) / NS_PER_S
    for first, length in zip(start, spans["duration_ns"] / NS_PER_S, strict=True):
        axes.axvspan(first, first + length, color=colour, alpha=SHADE, lw=0, zorder=0)


def _patch(colour: str, label: str) -> Patch:
    return Patch(color=colour, alpha=SHADE, lw=0, label=label)
