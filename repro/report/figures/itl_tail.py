"""Survival curves of ITL, one per arm."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator

from repro import fmt
from repro.analysis.arms import Arm
from repro.analysis.tails import effect, sample, tail_table
from repro.dataset import Campaign
from repro.dataset.schema import NS_PER_MS
from repro.report.figures.registry import NotApplicable, figure
from repro.report.figures.shared import colour_of, message, pair_to_compare, plain_numbers
from repro.report.style import COLUMN, INK
from repro.stats.bootstrap import EXPECTED_BEYOND, Floats

THIN, FIRM = 0.7, 1.6
"""Line widths: below and above the number of steps that a quantile needs."""


@figure
def itl_tail(campaign: Campaign) -> Figure:
    """The share of tokens with a longer ITL than x, without and with the freeze.

    One curve per arm over all its runs, weighted by tokens; thin where fewer steps lie beyond than
    a quantile needs. Needs token gaps and two runs per arm.
    """
    gaps = sample(campaign, "itl")
    if gaps.empty:
        raise NotApplicable("no gap between tokens was recorded")
    chosen = pair_to_compare(campaign)
    drawn = Figure(figsize=(COLUMN, 2.8), layout="constrained")
    axes = drawn.subplots()
    curves: dict[str, tuple[Floats, Floats]] = {}
    for arm in chosen:
        rows = gaps[gaps["run"].isin(arm.runs)]
        if rows.empty:
            raise NotApplicable(f"no gap between tokens was recorded of {arm.label}")
        x, share = curves[arm.label] = survival(rows)
        firm = share >= EXPECTED_BEYOND / len(rows[["run", "step"]].drop_duplicates())
        colour = colour_of(campaign, arm.label)
        axes.plot(x, share, lw=THIN, color=colour)
        axes.plot(x[firm], share[firm], lw=FIRM, color=colour)
    axes.set(xscale="log", yscale="log")
    axes.set(xlabel="ITL (ms)", ylabel="share of tokens with longer ITL")
    axes.set_ylim(min(share[-1] for _, share in curves.values()) / 2, 1.4)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.6g}%"))
    axes.yaxis.set_minor_locator(NullLocator())
    thin = Line2D([], [], color=INK, lw=THIN, label="too few steps for a quantile")
    _name_on_curves(axes, curves, chosen, campaign)
    drawn.legend(handles=[thin], loc="outside lower center")
    plain_numbers(axes.xaxis)
    message(drawn, _message(campaign, chosen))
    return drawn


def survival(rows: pd.DataFrame, points: int = 400) -> tuple[Floats, Floats]:
    """The gap that a share of the tokens exceeds, for shares evenly spaced in their logarithm.

    Parameters
    ----------
    rows : pandas.DataFrame
        From `tails.sample`, at least one.
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
    tokens = share * at_least[0] * (1 - 1e-9)  # slightly less, so that a share meets its own gap
    last = np.searchsorted(-at_least, -tokens, side="right") - 1
    return ordered["value_ns"].to_numpy()[last] / NS_PER_MS, share


def _message(campaign: Campaign, chosen: list[Arm]) -> str:
    found = tail_table(campaign).set_index(["arm", "quantile"])
    labels = [arm.label for arm in chosen]
    clear: list[str] = []
    unclear: list[str] = []
    for quantile in (1.0, 0.999, 0.99):
        ratio = effect(campaign, labels[0], labels[1], quantile)
        if ratio.supported:
            before, after = (found.loc[(label, quantile), "value_ms"] for label in labels)
            name = "longest" if quantile == 1 else fmt.quantile(quantile)
            change = f"{name} {fmt.figures(before)} → {fmt.ms(after)}"
            (clear if ratio.clear else unclear).append(change)
    where = f"{chosen[0].setting}: " if chosen[0].setting else ""
    said = [", ".join(clear)] if clear else []
    said += [f"no clear difference in {', '.join(unclear)}"] if unclear else []
    return f"{where}ITL with the worker's heap frozen: {'; '.join(said)}"


def _name_on_curves(
    axes: Axes, curves: dict[str, tuple[Floats, Floats]], chosen: list[Arm], campaign: Campaign
) -> None:
    """Write each policy where the curves are furthest apart, outside the space between them."""
    policies = {arm.label: arm.policy for arm in chosen}  # they share a setting, named in the title
    levels = np.geomspace(max(share[-1] for _, share in curves.values()), 0.3, 60)
    at = {
        arm: np.exp(np.interp(np.log(levels), np.log(share[::-1]), np.log(x[::-1])))
        for arm, (x, share) in curves.items()
    }
    left, right = sorted(at, key=lambda arm: float(at[arm].mean()))
    place = int(np.argmax(at[right] / at[left]))
    for arm, shift, across, upright in ((left, -4, "right", "top"), (right, 4, "left", "bottom")):
        axes.annotate(
            policies[arm],
            (at[arm][place], levels[place]),
            (shift, shift / 4),
            textcoords="offset points",
            ha=across,
            va=upright,
            color=colour_of(campaign, arm),
            weight="bold",
        )
    low, high = axes.get_xlim()
    room = (high / low) ** 0.25
    axes.set_xlim(low / room, high * room)
