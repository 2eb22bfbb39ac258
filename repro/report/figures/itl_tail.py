"""How often a token comes later than x after the one before it, by arm."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from repro import fmt
from repro.analysis.arms import Pair, pairs
from repro.analysis.tails import NS_PER_MS, effect, sample, tail_table
from repro.dataset import Campaign
from repro.report.figures.registry import NotApplicable, figure
from repro.report.figures.shared import (
    arms_to_compare,
    legend_of_arms,
    message,
    name_of,
    plain_numbers,
    runs_of,
    style_of,
)
from repro.report.style import COLUMN
from repro.stats.bootstrap import EXPECTED_BEYOND

Floats = npt.NDArray[np.float64]


FITTING, SHORT = 4, 18
"""So many arms, with names of so many letters, fit into the corner that the curves leave free."""


@figure
def itl_tail(campaign: Campaign) -> Figure:
    """How often a token comes later than x after the one before it: log survival by arm.

    One line an arm over all its runs, weighted by tokens; faint where fewer steps lie beyond
    than a quantile needs. Needs token gaps.
    """
    gaps = sample(campaign, "itl")
    if gaps.empty:
        raise NotApplicable("no gap between tokens was recorded")
    drawn = Figure(figsize=(COLUMN, 2.8), layout="constrained")
    axes = drawn.subplots()
    curves = {}
    for arm in arms_to_compare(campaign):
        rows = gaps[gaps["run"].isin(runs_of(campaign, arm))]
        if rows.empty:
            continue
        x, share = curves[arm] = survival(rows)
        firm = share >= EXPECTED_BEYOND / len(rows[["run", "step"]].drop_duplicates())
        look = style_of(campaign, arm)
        axes.plot(x, share, alpha=0.35, **look)
        axes.plot(x[firm], share[firm], label=name_of(campaign, arm), **look)
    axes.set(xscale="log", yscale="log")
    axes.set(xlabel="ITL (ms)", ylabel="share of tokens with longer ITL")
    axes.set_ylim(min(share[-1] for _, share in curves.values()) / 2, 1.4)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.6g}%"))
    axes.yaxis.set_minor_locator(NullLocator())
    if len(curves) == 2:
        _name_on_curves(axes, curves, campaign)
    elif len(curves) <= FITTING and max(len(name_of(campaign, arm)) for arm in curves) <= SHORT:
        axes.legend(loc="lower left", handlelength=1.6)
    else:
        legend_of_arms(drawn, campaign, list(curves))
    plain_numbers(axes.xaxis)
    message(drawn, _tail_message(campaign))
    return drawn


def survival(rows: pd.DataFrame, points: int = 400) -> tuple[Floats, Floats]:
    """The gap that a share of the tokens exceeds, for shares evenly spaced in their logarithm.

    Parameters
    ----------
    rows : pandas.DataFrame
        As `tails.sample` returns, at least one.
    points : int

    Returns
    -------
    x, share : (points,) arrays
        Milliseconds, and the share of tokens with a gap of x or more, from 1 down to that of the
        longest gap.
    """
    ordered = rows.sort_values("value_ns")
    at_least = ordered["count"].to_numpy()[::-1].cumsum()[::-1]
    share = np.geomspace(1, ordered["count"].iloc[-1] / at_least[0], points)
    tokens = share * at_least[0] * (1 - 1e-9)  # a hair less: a share must not miss its own gap
    last = np.searchsorted(-at_least, -tokens, side="right") - 1
    return ordered["value_ns"].to_numpy()[last] / NS_PER_MS, share


def _tail_message(campaign: Campaign) -> str:
    found = tail_table(campaign).set_index(["arm", "quantile"])
    pair = next(iter(pairs(campaign)), None)
    if pair is None:
        longest = found.xs(1.0, level="quantile")["value_ms"].dropna()
        each = fmt.listed(f"{fmt.ms(value)} ({arm})" for arm, value in longest.items())
        return f"The longest gap between two tokens: {each}"
    both = found.loc[pair.baseline, "supported"] & found.loc[pair.treated, "supported"]
    parts = []
    for quantile in both.index[both & both.index.isin([0.99, 0.999])]:
        ratio = effect(campaign, pair.baseline, pair.treated, quantile)
        sure = "" if ratio.high < 1 or ratio.low > 1 else " (no clear difference)"
        parts.append(f"{fmt.quantile(quantile)} {_change(found, pair, quantile)}{sure}")
    parts.append(f"longest {_change(found, pair, 1.0)}")
    where = f"{pair.setting}: " if pair.setting else ""
    return f"{where}ITL as the worker's heap is frozen: {', '.join(parts)}"


def _change(found: pd.DataFrame, pair: Pair, quantile: float) -> str:
    before, after = (found.loc[(a, quantile), "value_ms"] for a in (pair.baseline, pair.treated))
    return f"{fmt.figures(before)} → {fmt.ms(after)}"


def _name_on_curves(
    axes: Axes, curves: dict[str, tuple[Floats, Floats]], campaign: Campaign
) -> None:
    """Name two falling curves where they are furthest apart, outside the space between them."""
    levels = np.geomspace(max(share[-1] for _, share in curves.values()), 0.3, 60)
    at = {
        arm: np.exp(np.interp(np.log(levels), np.log(share[::-1]), np.log(x[::-1])))
        for arm, (x, share) in curves.items()
    }
    left, right = sorted(at, key=lambda arm: float(at[arm].mean()))
    place = int(np.argmax(at[right] / at[left]))
    for arm, shift, across, upright in ((left, -4, "right", "top"), (right, 4, "left", "bottom")):
        axes.annotate(
            arm,
            (at[arm][place], levels[place]),
            (shift, shift / 4),
            textcoords="offset points",
            ha=across,
            va=upright,
            color=style_of(campaign, arm)["color"],
            weight="bold",
        )
    low, high = axes.get_xlim()
    room = (high / low) ** 0.25
    axes.set_xlim(low / room, high * room)
