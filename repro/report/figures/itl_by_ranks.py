"""P99 and P99.9 against the number of ranks: measured points on predicted bands."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from repro import fmt
from repro.analysis.prediction_basis import Basis, bases
from repro.analysis.ranks import measured, policy_of
from repro.dataset import Campaign
from repro.report.figures.registry import NotApplicable, figure
from repro.report.figures.shared import message, plain_numbers
from repro.report.style import PAGE, POLICY_COLOUR
from repro.theory.lockstep import UNIFORM, predict

FAR = (0.99, 0.999)
RANKS = (1, 2, 4, 8, 16, 32)
APART = "no-freeze, uniform offsets"
"""Predicted for ranks that do not start together."""

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
        own = dict(list(bands[bands["quantile"] == quantile].groupby("name", sort=False)))
        if APART in own and _alike(own[APART], own["no-freeze"]):
            del own[APART]
        for name, band in own.items():
            _draw_band(axes, name, band)
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
                zorder=3,
            )
        axes.set(xscale="log", yscale="log", xlabel="ranks in lock-step")
        axes.set_xlim(None, 2.1 * RANKS[-1])
        axes.xaxis.set_major_locator(FixedLocator(RANKS))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:,.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_title(f"{fmt.quantile(quantile)} of ITL")
    panels[0].set(ylabel="ITL (ms)", ylim=(None, 1.35 * panels[0].get_ylim()[1]))
    plain_numbers(panels[0].yaxis)
    message(drawn, f"{_said(points)}. Points: measured; bands: predicted (95%)")
    return drawn


def _alike(one: pd.DataFrame, other: pd.DataFrame) -> bool:
    """Whether two lines end within a tenth of each other."""
    return bool(abs(one["value_ms"].iloc[-1] / other["value_ms"].iloc[-1] - 1) < 0.1)


def _said(points: pd.DataFrame) -> str:
    """The farthest quantile that both arms have, at the widest group, in words."""
    for name in map(fmt.quantile, reversed(FAR)):
        far = points[points["quantity"] == name]
        both = far.pivot(index="ranks", columns="policy", values="measured").dropna()
        if len(both) and both.shape[1] == len(OFFSET):
            ranks = fmt.plural(int(both.index[-1]), "rank")
            without, frozen = (fmt.ms(both.iloc[-1][policy]) for policy in OFFSET)
            return f"{name} of ITL at {ranks}: {without} without the freeze, {frozen} with it"
    return "P99 and P99.9 of ITL against the number of ranks"


def _predicted(basis: Basis) -> pd.DataFrame:
    """`predict` per number of ranks, on the ordinary steps of the width or a narrower one."""
    groups = basis.groups
    frozen = set(groups.loc[groups["policy"] == "freeze", "ranks"])
    tables = []
    for number in RANKS:
        near = max((width for width in frozen if width <= number), default=None)
        common = basis.in_a_group("freeze", near).common
        for policy in OFFSET:
            steps = replace(basis.in_a_group(policy), common=common)
            found = predict(steps, ranks=[number], quantiles=FAR)
            tables.append(found.assign(name=policy))
            if policy == "no-freeze" and len(groups):
                found = predict(replace(steps, offsets=UNIFORM), ranks=[number], quantiles=FAR)
                tables.append(found.assign(name=APART))
    return pd.concat(tables, ignore_index=True)


def _measured(basis: Basis) -> pd.DataFrame:
    """`measured` of one rank and of every wider group under the same load."""
    campaign = basis.campaign
    wider = basis.groups.drop_duplicates("arm")
    widths = dict.fromkeys([basis.pair.baseline, basis.pair.treated], 1)
    widths |= dict(zip(wider["arm"], wider["ranks"], strict=True))
    return pd.concat(
        [
            measured(campaign, arm).assign(ranks=number, policy=policy_of(campaign, arm))
            for arm, number in widths.items()
        ],
        ignore_index=True,
    )


def _draw_band(axes: Axes, name: str, rows: pd.DataFrame) -> None:
    """A band around the line of the predicted value, or a dashed line, with its name at the end."""
    policy = name if name in OFFSET else "no-freeze"
    colour = POLICY_COLOUR[policy]
    line = "-" if name == policy else "--"
    axes.plot(rows["ranks"], rows["value_ms"], color=colour, lw=1.2, ls=line)
    if name == policy:
        low, high = rows["low_ms"], rows["high_ms"]
        axes.fill_between(rows["ranks"], low, high, color=colour, alpha=0.25, lw=0)
    last = rows.iloc[-1]
    beside = {"no-freeze": (8, 1), "freeze": (8, -7)}  # the points of the widest group end there
    axes.annotate(
        name,
        (last["ranks"], last["value_ms"]),
        beside.get(name, (0, 6)),
        textcoords="offset points",
        ha="left" if name in beside else "right",
        color=colour,
        weight="bold" if name == policy else "normal",
    )
