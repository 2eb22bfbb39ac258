"""ITL tail, throughput and time lost by policy."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from repro import fmt
from repro.analysis.arms import FREEZE_ALONE, labels
from repro.analysis.mechanism import PROCESS_POLICIES, others_stock, policies_table
from repro.analysis.tails import effect, tail_table
from repro.dataset import Campaign
from repro.report.figures.registry import NotApplicable, figure
from repro.report.figures.shared import message
from repro.report.style import INK, PAGE, POLICY_COLOUR

MEASURES = {
    "p99_ms": "P99 ITL\n(ms)",
    "p999_ms": "P99.9 ITL\n(ms)",
    "ttft_s": "median TTFT\n(s)",
    "tokens_per_s": "tokens/s",
    "ms_per_1000_steps": "GC per 1,000\nsteps (ms)",
}


@figure
def policies_compared(campaign: Campaign) -> Figure:
    """P99 ITL, throughput and lost time of all arms, one row per arm.

    Lines at P99 and P99.9 are 95% intervals. Needs a policy beyond the freeze, of any process, and
    P99 ITL of two arms.
    """
    runs = campaign.runs.drop_duplicates("arm").set_index("arm").reindex(labels(campaign))
    plain = runs["policy"].isin(FREEZE_ALONE)
    plain &= others_stock(runs)
    if plain.all():
        raise NotApplicable("no policy beyond the freeze was measured")
    table = policies_table(campaign).reindex(labels(campaign))
    table["ttft_s"] = _first_token(campaign)
    if table["p99_ms"].notna().sum() < 2:
        raise NotApplicable("P99 ITL is supported in fewer than two arms")
    shown = {name: title for name, title in MEASURES.items() if table[name].notna().any()}
    if table["ttft_s"].isna().any():
        shown.pop("ttft_s", None)
    # Colours are those of the process whose policies distinguish most arms.
    by_process = table[PROCESS_POLICIES].nunique().idxmax()
    colours = [POLICY_COLOUR[policy] for policy in table[by_process]]
    drawn = Figure(figsize=(PAGE, 1.1 + 0.22 * len(table)), layout="constrained")
    panels = drawn.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, (name, title) in zip(panels, shown.items(), strict=True):
        _draw(axes, table, name, colours)
        axes.set_xlabel(title)
    panels[0].set_yticks(range(len(table)), table.index)
    panels[0].set_ylim(len(table) - 0.5, -0.5)
    quantiles = "P99 and P99.9" if "p999_ms" in shown else "P99"
    interval = Line2D([], [], color=INK, lw=1, label=f"95% interval of {quantiles}")
    drawn.legend(handles=[interval], loc="outside lower right")
    message(drawn, _message(campaign, table, plain))
    return drawn


def _first_token(campaign: Campaign) -> pd.Series:
    """Median TTFT of each arm through HTTP, in s; empty where its requests were left out."""
    if campaign.requests.empty or not (campaign.runs["client"] == "serve").all():
        return pd.Series(dtype=float)
    found = tail_table(campaign, "ttft")
    median: pd.Series = found[found["quantile"] == 0.5].set_index("arm")["value_ms"] / 1e3
    return median


def _draw(axes: Axes, table: pd.DataFrame, name: str, colours: list[str]) -> None:
    """One measure: a point per arm, with its interval where there is one."""
    rows = np.arange(len(table))
    highest = table[name].max()
    if f"{name}_low" in table:
        beyond = [table[name] - table[f"{name}_low"], table[f"{name}_high"] - table[name]]
        axes.errorbar(
            table[name], rows, xerr=np.maximum(beyond, 0), fmt="none", ecolor=INK, lw=1, capsize=2.5
        )
        highest = table[f"{name}_high"].max()
    axes.scatter(
        table[name], rows, s=20, c=colours, edgecolors=INK, lw=0.5, zorder=2, clip_on=False
    )
    axes.set_xlim(0, 1.15 * highest or 1)
    axes.locator_params(axis="x", nbins=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.tick_params(axis="y", length=0)


def _message(campaign: Campaign, table: pd.DataFrame, plain: pd.Series) -> str:
    """The arm with the lowest P99, compared with the best arm that freezes at most.

    Where that is the lowest itself, the highest of the others.
    """
    tail = table["p99_ms"].dropna()
    reference, others = tail[plain[tail.index]], tail[~plain[tail.index]]
    extreme, shown = "lowest", str(tail.idxmin())
    if shown in reference.index and len(others):
        extreme, shown = "highest", str(others.idxmax())
    said = f"P99 ITL is {extreme} with {shown}: {fmt.ms(tail[shown])}"
    if reference.empty or shown in reference.index:
        return said
    base = str(reference.idxmin())
    if campaign.runs["arm"].value_counts()[[base, shown]].min() < 2:
        return f"{said}; one run of it or of {base} does not decide"
    ratio = effect(campaign, base, shown, 0.99)
    unclear = "" if ratio.clear else ", no clear difference"
    return f"{said}, {fmt.ratio(ratio)} of {base}{unclear}"
