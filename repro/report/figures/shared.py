"""What several figures share: their headings, legends and axes."""

from __future__ import annotations

import math
from textwrap import fill
from typing import Any

import pandas as pd
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from repro.analysis.arms import ordered_arms, pairs
from repro.dataset import Campaign
from repro.report import style
from repro.report.figures.registry import NotApplicable
from repro.report.style import POLICY_COLOUR


def runs_of(campaign: Campaign, arm: str) -> pd.Series:
    """The names of an arm's runs."""
    return campaign.runs.loc[campaign.runs["arm"] == arm, "run"]


def arms_to_compare(campaign: Campaign) -> list[str]:
    """All arms in their order, where one figure can tell them apart.

    Raises
    ------
    NotApplicable
        If they differ in more than the policy and a few settings, as a sweep over loads does.
    """
    arms = ordered_arms(campaign)
    settings = {arm.removesuffix(arm.rpartition(" ")[2]) for arm in arms}
    if len(settings) > len(style.SETTING_LINE):
        raise NotApplicable(f"{len(settings)} settings are too many to tell apart in one figure")
    return arms


def message(drawn: Figure, sentence: str) -> None:
    """What the figure shows, over its whole width."""
    characters = int(16.5 * drawn.get_figwidth())
    drawn.suptitle(fill(sentence, characters), x=0.01, ha="left", fontsize=8)


def amounts_to(campaign: Campaign, arm: str) -> str:
    """The arm's policy; of `stock` the one that does the same, where that has no arm of its own."""
    arms = campaign.runs.drop_duplicates("arm").set_index("arm")["policy"]
    for pair in pairs(campaign) if arms[arm] == "stock" else ():
        alike = {pair.baseline: "no-freeze", pair.treated: "freeze"}.get(arm)
        if alike and f"{pair.setting} {alike}".strip() not in arms.index:
            return alike
    return str(arms[arm])


def name_of(campaign: Campaign, arm: str) -> str:
    """What a legend calls an arm."""
    policy = amounts_to(campaign, arm)
    return arm if arm.endswith(policy) else f"{arm} (as {policy})"


def style_of(campaign: Campaign, arm: str) -> dict[str, Any]:
    """The hue says the policy; its lightness and the kind of line what else sets the arm apart."""
    policies = campaign.runs.drop_duplicates("arm").set_index("arm")["policy"]
    settings = [label.removesuffix(name) for label, name in policies.items()]
    by_plainness = sorted(dict.fromkeys(settings), key=len)  # nothing else: the full hue
    place = by_plainness.index(arm.removesuffix(policies[arm]))
    return {
        "color": style.lighter(POLICY_COLOUR[amounts_to(campaign, arm)], place),
        "linestyle": style.SETTING_LINE[place % len(style.SETTING_LINE)],
    }


def legend_of_arms(
    drawn: Figure, campaign: Campaign, arms: list[str], more: list[Patch] | None = None
) -> None:
    """A legend of the arms in their looks, and of what else is drawn.

    In one row where they fit, else in columns; the figure grows by the rows.
    """
    lines: list[Line2D | Patch] = [
        Line2D([], [], lw=3, label=name_of(campaign, arm), **style_of(campaign, arm))
        for arm in arms
    ]
    handles = lines + (more or [])
    names = [fill(str(handle.get_label()), 42) for handle in handles]
    widths = [max(map(len, name.splitlines())) + 8 for name in names]  # in characters
    room = int(17 * drawn.get_figwidth())
    columns = len(handles) if sum(widths) <= room else max(1, room // max(widths))
    drawn.set_figheight(drawn.get_figheight() + 0.15 * (math.ceil(len(handles) / columns) - 1))
    drawn.legend(handles, names, loc="outside lower center", ncols=columns)


def plain_numbers(axis: Axis) -> None:
    """A logarithmic axis labelled 10, 20, 50, 100; over more than two decades 10, 100, 1,000."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 300 else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.set_minor_locator(NullLocator())
