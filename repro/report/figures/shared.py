"""Headings, legends, axes and the choice of arms, shared by several figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from textwrap import fill
from typing import Any

from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from repro.analysis.arms import Arm, arms, pairs, repeated
from repro.dataset import Campaign
from repro.report.figures.registry import NotApplicable
from repro.report.style import POLICY_COLOUR, SETTING_LINE


def pair_to_compare(campaign: Campaign) -> list[Arm]:
    """The first two arms that differ in the freeze alone, without the freeze first.

    Raises
    ------
    NotApplicable
        If there are no two such arms, or one run per arm.
    """
    found = pairs(campaign)
    if not found:
        raise NotApplicable("there are no two arms that differ in the freeze alone")
    for pair in found:
        if repeated(campaign, pair):
            return [arm_of(campaign, label) for label in (pair.baseline, pair.treated)]
    raise NotApplicable(
        "one run per arm shows no effect beyond the run's own: measure two replicates"
    )


def arm_of(campaign: Campaign, label: str) -> Arm:
    """The arm of this label."""
    return next(arm for arm in arms(campaign) if arm.label == label)


def message(drawn: Figure, sentence: str) -> None:
    """The finding of the figure as its title, over its whole width."""
    characters = int(16.5 * drawn.get_figwidth())
    drawn.suptitle(fill(sentence, characters), x=0.01, ha="left", fontsize=8)


def effective_policy(campaign: Campaign, label: str) -> str:
    """The arm's policy. For `stock` the policy that does the same, unless it has its own arm."""
    arm = arm_of(campaign, label)
    taken = {(other.setting, other.policy) for other in arms(campaign)}
    for pair in pairs(campaign) if arm.policy == "stock" else ():
        alike = {pair.baseline: "no-freeze", pair.treated: "freeze"}.get(label)
        if alike and (arm.setting, alike) not in taken:
            return alike
    return arm.policy


def name_of(campaign: Campaign, label: str) -> str:
    """The name of an arm in a legend."""
    policy = effective_policy(campaign, label)
    return label if arm_of(campaign, label).policy == policy else f"{label} (as {policy})"


def look(campaign: Campaign, label: str) -> dict[str, Any]:
    """Colour by policy, line by setting; a solid line for a pair, which has one setting."""
    settings = list(dict.fromkeys(arm.setting for arm in arms(campaign)))
    place = 0 if pairs(campaign) else settings.index(arm_of(campaign, label).setting)
    return {
        "color": POLICY_COLOUR[effective_policy(campaign, label)],
        "linestyle": SETTING_LINE[place % len(SETTING_LINE)],
    }


def legend_of_arms(
    drawn: Figure, campaign: Campaign, labels: list[str], more: Sequence[Patch | Line2D] = ()
) -> None:
    """A legend of the arms and of other marks, in as many columns as fit."""
    lines: list[Line2D | Patch] = [
        Line2D([], [], lw=2, label=name_of(campaign, label), **look(campaign, label))
        for label in labels
    ]
    handles = [*lines, *more]
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
