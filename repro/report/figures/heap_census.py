"""What the collector sees of each heap, and what is frozen."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from repro import fmt
from repro.analysis.arms import heaps, ordered_arms
from repro.dataset import Campaign, under_load
from repro.report.figures.registry import NotApplicable, figure
from repro.report.figures.shared import arms_to_compare, legend_of_arms, message, style_of
from repro.report.style import INK, PAGE, PROCESS_COLOUR

MILLION = 1e6
HEAP_POINTS = ("ready", "window-start", "window-end", "shutdown")


@figure
def heap_census(campaign: Campaign) -> Figure:
    """Objects the collector sees and objects frozen out of its sight, by process and moment.

    Means over the arm's runs and the role's processes. Needs a census.
    """
    campaign = under_load(campaign)
    if campaign.census.empty:
        raise NotApplicable("no heap was counted")
    census = campaign.census
    roles = [role for role in fmt.PROCESS if role in set(census["role"])]
    points = {
        role: [p for p in HEAP_POINTS if p in set(census.loc[census["role"] == role, "point"])]
        for role in roles
    }
    arms = arms_to_compare(campaign)
    width = 0.8 / len(arms)
    drawn = Figure(figsize=(PAGE, 2.5), layout="constrained")
    widths = [len(points[role]) for role in roles]
    panels = drawn.subplots(1, len(roles), sharey=True, squeeze=False, width_ratios=widths)[0]
    for axes, role in zip(panels, roles, strict=True):
        for place, point in enumerate(points[role]):
            mean = heaps(campaign, role, point).groupby("arm")[["tracked", "frozen"]].mean()
            for number, arm in enumerate(arms):
                if arm not in mean.index:
                    continue
                at = place + (number - (len(arms) - 1) / 2) * width
                tracked, frozen = mean.loc[arm] / MILLION
                colour = style_of(campaign, arm)["color"]
                bar = {"width": 0.85 * width, "edgecolor": colour, "lw": 0.7}
                axes.bar(at, tracked, color=colour, **bar)
                axes.bar(at, frozen, bottom=tracked, color="white", hatch="/////", **bar)
        axes.set_title(fmt.PROCESS[role], fontsize=7, weight="bold", color=PROCESS_COLOUR[role])
        labels = [point.replace("-", "\n") for point in points[role]]
        axes.set_xticks(range(len(labels)), labels)
        axes.grid(visible=False, axis="x")
    panels[0].set_ylabel("objects (millions)")
    kinds = [
        Patch(facecolor=INK, edgecolor=INK, label="seen by the collector"),
        Patch(facecolor="white", edgecolor=INK, hatch="/////", label="frozen"),
    ]
    legend_of_arms(drawn, campaign, arms, kinds)
    message(drawn, _heap_message(campaign, roles))
    return drawn


def _heap_message(campaign: Campaign, roles: list[str]) -> str:
    role = roles[-1]
    mean = heaps(campaign, role, "window-start").groupby("arm")[["tracked", "frozen"]].mean()
    if mean.empty:
        return "Objects in each process's heap"
    each = fmt.listed(
        f"{fmt.count(mean.loc[arm, 'tracked'])} of {fmt.count(mean.loc[arm].sum())} ({arm})"
        for arm in ordered_arms(campaign)
        if arm in mean.index
    )
    return f"Before load, the collector of the {fmt.PROCESS[role]} sees this many objects: {each}"
