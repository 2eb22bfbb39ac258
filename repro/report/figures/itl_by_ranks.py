"""P99 and P99.9 against the number of ranks, predicted and measured."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from repro import fmt
from repro.analysis import prediction
from repro.analysis.prediction_basis import bases
from repro.analysis.ranks import measured_quantiles
from repro.dataset import Campaign
from repro.report.figures.registry import NotApplicable, figure
from repro.report.figures.shared import effective_policy, message, name_of, plain_numbers
from repro.report.style import INK, PAGE, POLICY_COLOUR
from repro.theory.common_step import predict
from repro.theory.lockstep import RANKS

FAR = (0.99, 0.999)


@figure
def itl_by_ranks(campaign: Campaign) -> Figure:
    """P99 and P99.9 of ITL against the number of ranks in lock-step, predicted from one rank.

    A line an arm with its 95% band, dotted where too few pauses were measured to support it; a
    point with its interval for each number of ranks that was measured. Needs runs of one rank
    with and without the freeze.
    """
    basis = next(iter(bases(campaign)), None)
    if basis is None:
        raise NotApplicable("there are no runs of one rank with and without the freeze")
    policies = campaign.runs.loc[campaign.runs["run"].isin(basis.runs), "policy"]
    drawn = Figure(figsize=(PAGE, 2.7), layout="constrained")
    panels = drawn.subplots(1, len(FAR), sharey=True)
    measured = measured_quantiles(campaign, FAR)
    for quantile, axes in zip(FAR, panels, strict=True):
        for arm, steps in basis.steps.items():
            rows = predict(steps, ranks=RANKS, quantiles=[quantile])
            _draw_prediction(axes, rows, POLICY_COLOUR[effective_policy(campaign, arm)])
        seen = measured[
            (measured["quantile"] == quantile)
            & measured["supported"]
            & measured["policy"].isin(policies)
            & (measured["arm"].isin(basis.steps) | (measured["kind"] == "DP"))
        ]
        _draw_measured(
            axes, seen.assign(shown=[effective_policy(campaign, arm) for arm in seen["arm"]])
        )
        axes.set(xscale="log", yscale="log", xlabel="ranks in lock-step")
        axes.xaxis.set_major_locator(FixedLocator(RANKS[::2]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:,.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_title(fmt.quantile(quantile))
    panels[0].set_ylabel("ITL (ms)")
    plain_numbers(panels[0].yaxis)
    lines = [
        Line2D(
            [],
            [],
            lw=3,
            color=POLICY_COLOUR[effective_policy(campaign, arm)],
            label=name_of(campaign, arm),
        )
        for arm in basis.steps
    ]
    lines += [
        Line2D([], [], color=INK, marker="o", ms=4, lw=0, label="measured"),
        Line2D([], [], color=INK, lw=1.4, ls=":", label="beyond what so few pauses can tell"),
    ]
    drawn.legend(handles=lines, loc="outside lower center", ncols=len(lines))
    message(drawn, f"Predicted from one rank: {prediction.sentence(basis)}")
    return drawn


def _draw_prediction(axes: Axes, rows: pd.DataFrame, colour: str) -> None:
    """A band, and a line that is solid as far as the data support it."""
    axes.fill_between(
        rows["ranks"], rows["low_ms"], rows["high_ms"], color=colour, alpha=0.15, lw=0
    )
    firm = rows["supported"].cumprod().astype(bool)
    axes.plot(rows["ranks"], rows["value_ms"], color=colour, ls=":")
    axes.plot(rows["ranks"][firm], rows["value_ms"][firm], color=colour)


def _draw_measured(axes: Axes, rows: pd.DataFrame) -> None:
    """Points with their intervals."""
    for row in rows.itertuples():
        beyond = [[row.value_ms - row.low_ms], [row.high_ms - row.value_ms]]
        colour = POLICY_COLOUR[row.shown]
        axes.errorbar(
            row.ranks, row.value_ms, yerr=np.maximum(beyond, 0), fmt="o", ms=4, color=colour, lw=1
        )
