"""Headings, axes and the choice of arms, shared by several figures."""

from __future__ import annotations

from textwrap import fill

from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from repro.analysis.arms import Arm, arms, pairs, repeated
from repro.dataset import Campaign
from repro.report.figures.registry import NotApplicable
from repro.report.style import POLICY_COLOUR


def pair_to_compare(campaign: Campaign) -> list[Arm]:
    """Two arms that differ in the freeze alone, without the freeze first: those of most ranks.

    Raises
    ------
    NotApplicable
        If there are no two such arms, or one run per arm.
    """
    found = pairs(campaign)
    if not found:
        raise NotApplicable("there are no two arms that differ in the freeze alone")
    several = [pair for pair in found if repeated(campaign, pair)]
    if not several:
        raise NotApplicable(
            "one run per arm shows no effect beyond the run's own: measure two replicates"
        )
    runs = campaign.runs.drop_duplicates("arm").set_index("arm")
    ranks = runs["tensor_parallel_size"] * runs["data_parallel_size"]
    pair = max(several, key=lambda one: ranks[one.baseline])
    return [arm_of(campaign, label) for label in (pair.baseline, pair.treated)]


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


def colour_of(campaign: Campaign, label: str) -> str:
    """The colour of an arm's policy."""
    return POLICY_COLOUR[effective_policy(campaign, label)]


def plain_numbers(axis: Axis) -> None:
    """A logarithmic axis labelled 10, 20, 50, 100; over more than two decades 10, 100, 1,000."""
    low, high = axis.get_view_interval()
    few = high / low < 300
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=None if few else 6))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.set_minor_locator(NullLocator())
