"""What each policy does to pauses, tail, throughput and memory."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from repro import fmt
from repro.analysis.arms import FREEZE_ALONE, ordered_arms
from repro.analysis.mechanism import POLICIES, policies_of, policies_table
from repro.dataset import Campaign
from repro.report.figures.registry import NotApplicable, figure
from repro.report.figures.shared import message
from repro.report.style import PAGE, POLICY_COLOUR

MEASURES = {
    "longest_ms": "longest pause\n(ms)",
    "ms_per_1000_steps": "GC per 1,000\nsteps (ms)",
    "p99_ms": "P99 ITL\n(ms)",
    "p999_ms": "P99.9 ITL\n(ms)",
    "tokens_per_s": "tokens/s",
}


@figure
def policies_compared(campaign: Campaign) -> Figure:
    """Longest pause, time lost, tail and throughput of every arm, one row each.

    Needs a policy beyond the pull request's, of any process.
    """
    table = policies_table(campaign).reindex(ordered_arms(campaign))
    plain = table["policy"].isin(FREEZE_ALONE) & (table[POLICIES[1:]] == "stock").all(axis=1)
    if plain.all():
        raise NotApplicable("no policy beyond the freeze was measured")
    shown = {name: title for name, title in MEASURES.items() if table[name].notna().any()}
    # Order and colour are those of the process whose policies set most arms apart.
    shown_by = table[POLICIES].nunique().idxmax()
    table = table.assign(colour=table[shown_by].map(POLICY_COLOUR))
    table["place"] = table[shown_by].map({name: i for i, name in enumerate(POLICY_COLOUR)})
    table = table.sort_values(["place", *POLICIES], kind="stable")
    rows = np.arange(len(table))
    drawn = Figure(figsize=(PAGE, 1.0 + 0.22 * len(table)), layout="constrained")
    panels = drawn.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, (name, title) in zip(panels, shown.items(), strict=True):
        axes.hlines(rows, 0, table[name], colors=table["colour"], lw=1)
        axes.scatter(table[name], rows, s=20, c=table["colour"], zorder=2)
        axes.set(xlim=(0, 1.15 * table[name].max() or 1), xlabel=title)
        axes.locator_params(axis="x", nbins=2)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(rows, [policies_of(row) for row in table.reset_index().to_dict("records")])
    panels[0].set_title("worker /\nengine core / front end", fontsize=6, x=0, ha="right")
    panels[0].set_ylim(len(table) - 0.5, -0.5)
    message(drawn, _message(table.reset_index(), plain))
    return drawn


def _message(table: pd.DataFrame, plain: pd.Series) -> str:
    """The longest pause of the best arm, and of the best that does no more than freeze or not."""
    rows = table.sort_values("longest_ms").to_dict("records")
    said = [f"Longest pause: {fmt.ms(rows[0]['longest_ms'])} with {policies_of(rows[0])}"]
    said += [
        f"{fmt.ms(row['longest_ms'])} with {policies_of(row)}"
        for row in rows[1:]
        if plain[row["arm"]]
    ]
    return ", ".join(said)
