"""P99 ITL against what a bound in time on vLLM's output handler costs, through HTTP."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from repro import fmt
from repro.analysis.tails import Metric, effect, tail_table
from repro.dataset import Campaign
from repro.report.figures.registry import NotApplicable, figure
from repro.report.figures.shared import message, plain_numbers
from repro.report.style import INK, PAGE, POLICY_COLOUR

COSTS = {
    "tokens": "tokens/s",
    "ttft": "median TTFT (s)",
    "end_to_end": "P99 end to end (s)",
}
"""Column of `_measured` -> its axis."""


@figure
def output_bound(campaign: Campaign) -> Figure:
    """P99 ITL against tokens/s, median TTFT and P99 end to end, one point per arm.

    Lines are 95% intervals of P99 ITL. Needs two bounds, an arm of the same policies without one,
    and the requests.
    """
    if not (campaign.runs["output_yield_ms"] > 0).any():
        raise NotApplicable("no bound on the output handler was measured")
    if campaign.requests.empty:
        raise NotApplicable("the requests of these runs were left out")
    table = _measured(campaign)
    if table.loc[table["bound"] < math.inf, "bound"].nunique() < 2:
        raise NotApplicable("fewer than two bounds on the output handler have a P99 ITL")
    drawn = Figure(figsize=(PAGE, 2.5), layout="constrained")
    panels = drawn.subplots(1, len(COSTS), sharey=True)
    for axes, (name, title) in zip(panels, COSTS.items(), strict=True):
        _draw(axes, table, name)
        axes.set_xlabel(title)
    panels[0].set_ylabel("P99 ITL (ms)")
    panels[0].set_yscale("log")
    plain_numbers(panels[0].yaxis)
    policies = table["policy"].unique()
    shown = [
        Line2D([], [], ls="", marker="o", ms=4, color=POLICY_COLOUR[name], label=name)
        for name in policies
    ]
    drawn.legend(handles=shown, loc="outside lower right", ncols=len(shown))
    message(drawn, _message(campaign, table))
    return drawn


def _measured(campaign: Campaign) -> pd.DataFrame:
    """One row per arm through HTTP with a P99 ITL: `policy`, `bound`, the intervals, the costs."""
    runs = campaign.runs[campaign.runs["client"] == "serve"]
    runs = runs.assign(bound=runs["output_yield_ms"].replace(0, math.inf))
    table = runs.groupby("arm").agg(
        policy=("frontend_policy", "first"),
        bound=("bound", "first"),
        tokens=("tokens_per_s", "mean"),
    )
    wanted: dict[str, tuple[Metric, float, float]] = {
        "itl": ("itl", 0.99, 1),
        "ttft": ("ttft", 0.5, 1e3),
        "end_to_end": ("end_to_end", 0.99, 1e3),
    }
    for name, (metric, quantile, unit) in wanted.items():
        found = tail_table(campaign, metric)
        found = found[found["quantile"] == quantile].set_index("arm")
        table[name] = found["value_ms"] / unit
        if metric == "itl":
            table[["low", "high"]] = found[["low_ms", "high_ms"]]
    return table.dropna().sort_values(["policy", "bound"])


def _draw(axes: Axes, table: pd.DataFrame, name: str) -> None:
    """One cost: a point per arm, with its bound beside it."""
    beyond = [table["itl"] - table["low"], table["high"] - table["itl"]]
    axes.errorbar(table[name], table["itl"], yerr=beyond, fmt="none", ecolor=INK, lw=0.8)
    colours = [POLICY_COLOUR[policy] for policy in table["policy"]]
    axes.scatter(table[name], table["itl"], s=18, c=colours, zorder=2)
    for row in table.itertuples():
        said = f"{row.bound:g} ms" if math.isfinite(row.bound) else "no bound"
        at = (getattr(row, name), row.itl)
        axes.annotate(said, at, xytext=(5, 0), textcoords="offset points", va="center")
    axes.set_xlim(0, 1.3 * table[name].max())
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))


def _message(campaign: Campaign, table: pd.DataFrame) -> str:
    """Gain and cost of the shortest bound, compared with the same policies without one."""
    shortest = table.loc[table["bound"].idxmin()]
    alike = table[(table["policy"] == shortest["policy"]) & (table["bound"] == math.inf)]
    if alike.empty:
        raise NotApplicable("no arm of the same policies was measured without a bound")
    arms = str(alike.index[0]), str(shortest.name)
    tail, first = effect(campaign, *arms), effect(campaign, *arms, 0.5, "ttft")
    return (
        f"Bound of {shortest['bound']:g} ms on the output handler: P99 ITL {fmt.ratio(tail)}, "
        f"median TTFT {fmt.ratio(first)}"
    )
