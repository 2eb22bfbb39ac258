"""P99 ITL against what a bound in time on vLLM's output handler costs, through HTTP."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from repro import fmt
from repro.analysis.arms import VLLM_HANDLER, output_handler
from repro.analysis.mechanism import untouched
from repro.analysis.tails import Metric, effect, tail_table
from repro.claims.goals import against
from repro.claims.http import HALF_AND_A_TENTH
from repro.claims.verdict import Verdict
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

MARKERS = "o^sDvP*X"
"""One per output handler, vLLM's first."""


@figure
def output_bound(campaign: Campaign) -> Figure:
    """P99 ITL against tokens/s, median TTFT and P99 end to end, one point per arm.

    Lines are 95% intervals of P99 ITL. Needs two bounds, and the requests.
    """
    if not (campaign.runs["output_yield_ms"] > 0).any():
        raise NotApplicable("no bound on the output handler was measured")
    if campaign.requests.empty:
        raise NotApplicable("the requests of these runs were left out")
    table = _measured(campaign)
    if table.loc[table["bound"] < math.inf, "bound"].nunique() < 2:
        raise NotApplicable("fewer than two bounds on the output handler have a P99 ITL")
    drawn = Figure(figsize=(PAGE, 2.9), layout="constrained")
    panels = drawn.subplots(1, len(COSTS), sharey=True)
    marker = dict(zip(table["handler"].unique(), MARKERS, strict=False))
    for axes, (name, title) in zip(panels, COSTS.items(), strict=True):
        _draw(axes, table, name, marker)
        axes.set_xlabel(title)
    panels[0].set_ylabel("P99 ITL (ms)")
    panels[0].set_yscale("log")
    plain_numbers(panels[0].yaxis)
    shown = [
        Line2D([], [], ls="", marker="o", ms=4, color=POLICY_COLOUR[name], label=name)
        for name in table["policy"].unique()
    ]
    shown += [
        Line2D([], [], ls="", marker=shape, ms=4, color=INK, label=name)
        for name, shape in marker.items()
    ]
    drawn.legend(handles=shown, loc="outside lower center", ncols=5)
    message(drawn, _message(campaign, table))
    return drawn


def rank_correlations(campaign: Campaign) -> pd.Series:
    """Spearman's, of an arm's P99 ITL with each of `COSTS`, over the points of the figure."""
    return _measured(campaign)[["itl", *COSTS]].rank().corr().loc["itl", list(COSTS)]


def _measured(campaign: Campaign) -> pd.DataFrame:
    """One row per arm through HTTP with a P99 ITL, vLLM's own handler first.

    Columns `policy`, `handler`, `bound`, `tokens`, and of each latency its value and interval.
    """
    runs = campaign.runs[campaign.runs["client"] == "serve"]
    runs = runs.assign(
        bound=runs["output_yield_ms"].replace(0, math.inf), handler=output_handler(runs)
    )
    table = runs.groupby("arm").agg(
        policy=("frontend_policy", "first"),
        handler=("handler", "first"),
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
    table["other"] = table["handler"] != VLLM_HANDLER
    return table.dropna().sort_values(["other", "bound", "handler", "policy"])


def _draw(axes: Axes, table: pd.DataFrame, name: str, marker: dict[str, str]) -> None:
    """One cost: a point per arm, its colour that of the policy, its shape that of the handler."""
    beyond = [table["itl"] - table["low"], table["high"] - table["itl"]]
    axes.errorbar(table[name], table["itl"], yerr=beyond, fmt="none", ecolor=INK, lw=0.5)
    for handler, rows in table.groupby("handler", sort=False):
        colours = [POLICY_COLOUR[policy] for policy in rows["policy"]]
        shape = marker[str(handler)]
        axes.scatter(
            rows[name], rows["itl"], s=26, c=colours, marker=shape, ec=INK, lw=0.4, zorder=2
        )
    axes.set_xlim(0, 1.1 * table[name].max())
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))


def _message(campaign: Campaign, table: pd.DataFrame) -> str:
    """Gains of the arm that surely is better in both; without one, the cost of a short P99."""
    if both := _better_in_both(campaign, table):
        arm, gains = both
        whose = f"{table.loc[arm, 'handler']} with {table.loc[arm, 'policy']}"
        return f"{fmt.capitalised(whose)}: {gains} of stock"
    policy = table["policy"].mode()[0]
    own = table[table["policy"] == policy]
    before, after = str(own["itl"].idxmax()), str(own["itl"].idxmin())
    tail, first = effect(campaign, before, after), effect(campaign, before, after, 0.5, "ttft")
    return (
        f"Output handler from {own['handler'][before]} to {own['handler'][after]} ({policy}): "
        f"P99 ITL {fmt.ratio(tail)}, median TTFT {fmt.ratio(first)}"
    )


def _better_in_both(campaign: Campaign, table: pd.DataFrame) -> tuple[str, str] | None:
    """The arm of the shortest TTFT that surely halves P99 and adds a tenth to tokens/s."""
    runs = campaign.runs
    base = runs[untouched(runs) & (output_handler(runs) == VLLM_HANDLER)]
    for arm in table.sort_values("ttft").index:
        found = against(campaign, base, runs[runs["arm"] == arm], HALF_AND_A_TENTH)
        if found and found[0].verdict is Verdict.REPRODUCED:
            return arm, found[0].number
    return None
