"""What each policy does to pauses, tail, throughput and memory."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from repro import words
from repro.analysis.arms import FREEZE_ALONE
from repro.analysis.mechanism import POLICIES, policies_of, policies_table
from repro.dataset import Campaign
from repro.figures.parts import message
from repro.figures.registry import NotApplicable, figure
from repro.style import PAGE, POLICY_COLOUR

MEASURES = {
    "longest_ms": "longest pause (ms)",
    "ms_per_1000_steps": "GC per 1,000 steps (ms)",
    "p99_ms": "P99 ITL (ms)",
    "p999_ms": "P99.9 ITL (ms)",
    "tokens_per_s": "tokens/s",
}


@figure
def policies_compared(campaign: Campaign) -> Figure:
    """Longest pause, time lost, tail and throughput of every arm, one row each.

    Needs a policy beyond the pull request's, of any process.
    """
    table = policies_table(campaign)
    plain = table["policy"].isin(FREEZE_ALONE) & (table[POLICIES[1:]] == "stock").all(axis=1)
    if plain.all():
        raise NotApplicable("no policy beyond the freeze was measured")
    shown = {name: title for name, title in MEASURES.items() if table[name].notna().any()}
    place = table["policy"].map(list(POLICY_COLOUR).index)
    table = table.assign(place=place).sort_values(["place", *POLICIES[1:]])
    rows = np.arange(len(table))
    drawn = Figure(figsize=(PAGE, 1.0 + 0.22 * len(table)), layout="constrained")
    panels = drawn.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, (name, title) in zip(panels, shown.items(), strict=True):
        colours = table["policy"].map(POLICY_COLOUR)
        axes.hlines(rows, 0, table[name], colors=colours, lw=1)
        axes.scatter(table[name], rows, s=20, c=colours, zorder=2)
        axes.set(xlim=(0, 1.15 * table[name].max() or 1), xlabel=title)
        axes.locator_params(axis="x", nbins=3)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(rows, [policies_of(row) for row in table.reset_index().to_dict("records")])
    panels[0].set_title("worker / engine core / front end", fontsize=6, x=0, ha="right")
    panels[0].invert_yaxis()
    longest = table["longest_ms"]
    best = policies_of({"arm": longest.idxmin(), **table.loc[longest.idxmin()].to_dict()})
    message(drawn, f"The shortest of the longest pauses: {words.ms(longest.min())} ({best})")
    return drawn
