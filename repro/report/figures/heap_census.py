"""Objects tracked by the collector and frozen objects, by process."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from repro import fmt
from repro.analysis.arms import heaps
from repro.dataset import Campaign, under_load
from repro.report.figures.registry import NotApplicable, figure
from repro.report.figures.shared import legend_of_arms, look, message, pair_to_compare
from repro.report.style import INK, PAGE, PROCESS_COLOUR

MILLION = 1e6
HEAP_POINTS = ("window-start", "window-end", "shutdown")


@figure
def heap_census(campaign: Campaign) -> Figure:
    """Tracked and frozen objects by process and moment, without and with the freeze.

    Means over the arm's runs and the role's processes. Needs a census of the worker.
    """
    campaign = under_load(campaign)
    census = campaign.census
    if not census["role"].eq("worker").any():
        raise NotApplicable("no worker's heap was counted")
    arms = [arm.label for arm in pair_to_compare(campaign)]
    if not set(arms) <= set(heaps(campaign, "worker", "window-start")["arm"]):
        raise NotApplicable("no worker's heap was counted in one of the two arms")
    roles = [role for role in fmt.PROCESS if role in set(census["role"])]
    points = {
        role: [p for p in HEAP_POINTS if p in set(census.loc[census["role"] == role, "point"])]
        for role in roles
    }
    drawn = Figure(figsize=(PAGE, 2.3), layout="constrained")
    widths = [len(points[role]) for role in roles]
    panels = drawn.subplots(1, len(roles), sharey=True, squeeze=False, width_ratios=widths)[0]
    for axes, role in zip(panels, roles, strict=True):
        for place, point in enumerate(points[role]):
            mean = heaps(campaign, role, point).groupby("arm")[["tracked", "frozen"]].mean()
            for side, arm in zip((-0.2, 0.2), arms, strict=True):
                if arm not in mean.index:
                    continue
                tracked, frozen = mean.loc[arm] / MILLION
                colour = look(campaign, arm)["color"]
                bar = {"width": 0.34, "edgecolor": colour, "lw": 0.7}
                axes.bar(place + side, tracked, color=colour, **bar)
                axes.bar(place + side, frozen, bottom=tracked, color="white", hatch="/////", **bar)
        axes.set_title(fmt.PROCESS[role], fontsize=7, weight="bold", color=PROCESS_COLOUR[role])
        labels = [point.replace("-", "\n") for point in points[role]]
        axes.set_xticks(range(len(labels)), labels)
        axes.grid(visible=False, axis="x")
    panels[0].set_ylabel("objects (millions)")
    kinds = [
        Patch(facecolor=INK, edgecolor=INK, label="tracked by the collector"),
        Patch(facecolor="white", edgecolor=INK, hatch="/////", label="frozen"),
    ]
    legend_of_arms(drawn, campaign, arms, kinds)
    mean = heaps(campaign, "worker", "window-start").groupby("arm")[["tracked", "frozen"]].mean()
    each = fmt.listed(
        f"{fmt.count(mean.loc[arm, 'tracked'])} of {fmt.count(mean.loc[arm].sum())} objects ({arm})"
        for arm in arms
    )
    message(drawn, f"Before load a full collection of the worker visits {each}")
    return drawn
