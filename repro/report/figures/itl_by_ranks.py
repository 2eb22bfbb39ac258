"""P99 and P99.9 against the number of ranks: measured points on predicted bands."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from repro import fmt
from repro.analysis import prediction
from repro.analysis.prediction_basis import Basis, bases
from repro.analysis.ranks import alike, measured, policy_of
from repro.dataset import Campaign
from repro.report.figures.registry import NotApplicable, figure
from repro.report.figures.shared import message, plain_numbers
from repro.report.style import PAGE, POLICY_COLOUR
from repro.theory.lockstep import Steps, predict

FAR = (0.99, 0.999)
RANKS = (1, 2, 4, 6, 8, 10, 12, 16, 32)
TICKS = (1, 2, 4, 8, 16, 32)
OFFSET = {"no-freeze": 0.96, "freeze": 1.04}
"""Points of two arms stand beside each other."""


@figure
def itl_by_ranks(campaign: Campaign) -> Figure:
    """Measured P99 and P99.9 of ITL against the number of ranks, on bands predicted from one rank.

    The bands rest on one rank's pauses; the ordinary steps are those of the measured frozen group
    of that width, or of the next narrower one. Needs runs of one rank with and without the freeze.
    """
    basis = next(iter(bases(campaign)), None)
    if basis is None:
        raise NotApplicable("there are no runs of one rank with and without the freeze")
    drawn = Figure(figsize=(PAGE, 2.7), layout="constrained")
    panels = drawn.subplots(1, len(FAR), sharey=True)
    bands, points = _predicted(basis), _measured(basis)
    for quantile, axes in zip(FAR, panels, strict=True):
        for policy in ("no-freeze", "freeze"):
            _draw_band(axes, bands[(bands["quantile"] == quantile) & (bands["policy"] == policy)])
        for row in points[points["quantity"] == fmt.quantile(quantile)].itertuples():
            beyond = [[row.measured - row.low], [row.high - row.measured]]
            axes.errorbar(
                row.ranks * OFFSET[row.policy],
                row.measured,
                yerr=np.maximum(beyond, 0),
                fmt="o",
                ms=4.5,
                lw=1.2,
                color=POLICY_COLOUR[row.policy],
                mec="white",
                mew=0.5,
            )
        axes.set(xscale="log", yscale="log", xlabel="ranks in lock-step")
        axes.xaxis.set_major_locator(FixedLocator(TICKS))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:,.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_title(f"{fmt.quantile(quantile)} of ITL")
    panels[0].set(ylabel="ITL (ms)", ylim=(None, 1.35 * panels[0].get_ylim()[1]))
    plain_numbers(panels[0].yaxis)
    said = prediction.sentence(basis)
    message(drawn, f"{said[0].upper()}{said[1:]}. Points: measured; bands: predicted (95%)")
    return drawn


def _predicted(basis: Basis) -> pd.DataFrame:
    """`predict` per number of ranks, on the ordinary steps of the width or a narrower one."""
    groups = prediction.frozen_groups(basis)
    tables = []
    for arm, steps in basis.steps.items():
        for number in RANKS:
            near = [width for width in groups if width <= number]
            common = groups[max(near)].common if near else basis.steps[basis.pair.treated].common
            group: Steps = replace(steps, common=common)
            found = predict(group, ranks=[number], quantiles=FAR)
            tables.append(found.assign(policy=policy_of(basis.campaign, arm)))
    return pd.concat(tables, ignore_index=True)


def _measured(basis: Basis) -> pd.DataFrame:
    """`measured` of one rank and of every wider group under the same load."""
    campaign = basis.campaign
    wider = alike(basis).drop_duplicates("arm")
    widths = dict.fromkeys(basis.steps, 1) | dict(zip(wider["arm"], wider["ranks"], strict=True))
    return pd.concat(
        [
            measured(campaign, arm).assign(ranks=number, policy=policy_of(campaign, arm))
            for arm, number in widths.items()
        ],
        ignore_index=True,
    )


def _draw_band(axes: Axes, rows: pd.DataFrame) -> None:
    """A band around the line of the predicted value, with the arm's name at its end."""
    policy = str(rows["policy"].iloc[0])
    colour = POLICY_COLOUR[policy]
    axes.fill_between(
        rows["ranks"], rows["low_ms"], rows["high_ms"], color=colour, alpha=0.25, lw=0
    )
    axes.plot(rows["ranks"], rows["value_ms"], color=colour, lw=1.2)
    last = rows.iloc[-1]
    axes.annotate(
        policy,
        (last["ranks"], last["value_ms"]),
        (0, 6),
        textcoords="offset points",
        ha="right",
        color=colour,
        weight="bold",
    )
