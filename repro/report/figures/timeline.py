"""Steps and the collections of all processes around a long pause, on one clock."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from repro import fmt
from repro.analysis.arms import Arm
from repro.analysis.tails import step_intervals
from repro.dataset import Campaign, in_window, under_load
from repro.dataset.schema import NS_PER_MS, NS_PER_S
from repro.report.figures.registry import NotApplicable, figure
from repro.report.figures.shared import look, message, pair_to_compare, plain_numbers
from repro.report.style import INK, PAGE, PROCESS_COLOUR
from repro.theory.cpython_rule import FULL

LONG = 2.0
"""A pause worth a figure takes this many times as long as a step."""


@dataclass(frozen=True, kw_only=True)
class _Scene:
    """The longest pause of an arm's workers, and its length and that of a step."""

    arm: Arm
    run: str
    rank: int
    at_ns: int
    pause_ms: float
    step_ms: float


@figure
def timeline(campaign: Campaign) -> Figure:
    """Steps around the worker's longest pause, with all processes' pauses, on one clock.

    Without the freeze above, with it below. Needs a pause of a worker that is longer than two
    steps.
    """
    campaign = under_load(campaign)
    steps = step_intervals(in_window(campaign, campaign.steps))
    pauses = in_window(campaign, campaign.pauses)
    workers = pauses[pauses["role"] == "worker"]
    if steps.empty or workers.empty:
        missing = "engine step" if steps.empty else "collection of a worker"
        raise NotApplicable(f"no {missing} in the measured windows")
    scenes = [_scene(campaign, arm, workers, steps) for arm in pair_to_compare(campaign)]
    if scenes[0].pause_ms < LONG * scenes[0].step_ms:
        raise NotApplicable("no pause of a worker is longer than two steps")
    half_ms = max(max(2.5 * scene.pause_ms, 25 * scene.step_ms) for scene in scenes)
    roles = [role for role in fmt.PROCESS if role in set(pauses["role"])]

    drawn = Figure(figsize=(PAGE, 3.9), layout="constrained")
    heights = [1, 0.12 * len(roles)] * len(scenes)
    grid = drawn.subplots(len(heights), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for scene, upper, lower in zip(scenes, grid[::2], grid[1::2], strict=True):
        colour = look(campaign, scene.arm.label)["color"]
        _draw_steps(upper, scene, steps, half_ms, colour)
        _draw_pauses(upper, lower, scene, pauses, roles, half_ms)
        upper.set_title(scene.arm.label, fontsize=7, weight="bold", color=colour, pad=3)
    limits = [axes.get_ylim() for axes in grid[::2]]
    for axes in grid[::2]:
        axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
        plain_numbers(axes.yaxis)
    grid[-1].set(
        xlim=(-half_ms / 1e3, half_ms / 1e3),
        xlabel="time from the middle of the worker's longest pause (s)",
    )
    handles = [
        Line2D([], [], color=INK, lw=2, label="one step"),
        Line2D([], [], color=INK, ls="", marker="|", ms=5, label="one collection, below the steps"),
        Patch(color=INK, alpha=0.3, lw=0, label="full collection, in the colour of its process"),
    ]
    drawn.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    message(drawn, _message(scenes))
    return drawn


def _scene(campaign: Campaign, arm: Arm, pauses: pd.DataFrame, steps: pd.DataFrame) -> _Scene:
    own = pauses[pauses["run"].isin(arm.runs)]
    step_ms = float(steps.loc[steps["run"].isin(arm.runs), "interval_ns"].median()) / NS_PER_MS
    if own.empty:  # then the middle of a window
        first = campaign.runs[campaign.runs["run"] == arm.runs[0]].iloc[0]
        middle = (first["window_start_ns"] + first["window_end_ns"]) // 2
        return _Scene(
            arm=arm, run=first["run"], rank=0, at_ns=middle, pause_ms=0.0, step_ms=step_ms
        )
    longest = own.loc[own["duration_ns"].idxmax()]
    return _Scene(
        arm=arm,
        run=longest["run"],
        rank=longest["rank"],
        at_ns=longest["start_ns"] + longest["duration_ns"] // 2,
        pause_ms=longest["duration_ns"] / NS_PER_MS,
        step_ms=step_ms,
    )


def _draw_steps(
    axes: Axes, scene: _Scene, steps: pd.DataFrame, half_ms: float, colour: str
) -> None:
    """Each step as a bar from its entry to the next, at the height of its length."""
    own = steps[(steps["run"] == scene.run) & (steps["rank"] == scene.rank)]
    end = (own["t_ns"] - scene.at_ns) / NS_PER_S
    begin = end - own["interval_ns"] / NS_PER_S
    seen = (end > -half_ms / 1e3) & (begin < half_ms / 1e3)
    axes.hlines(own["interval_ns"][seen] / NS_PER_MS, begin[seen], end[seen], colour, lw=2)
    axes.set(yscale="log", ylabel="step interval (ms)")
    axes.margins(y=0.15)


def _draw_pauses(
    upper: Axes,
    lower: Axes,
    scene: _Scene,
    pauses: pd.DataFrame,
    roles: list[str],
    half_ms: float,
) -> None:
    """One lane per process beneath the steps; full collections shade the steps as well."""
    begin = (pauses["start_ns"] - scene.at_ns) / NS_PER_S
    end = begin + pauses["duration_ns"] / NS_PER_S
    near = (pauses["run"] == scene.run) & (end > -half_ms / 1e3) & (begin < half_ms / 1e3)
    for lane, role in enumerate(reversed(roles)):
        of_role = near & (pauses["role"] == role)
        colour = PROCESS_COLOUR[role]
        # A marker besides the bar: at this scale most collections are thinner than a line.
        lower.plot(begin[of_role], np.full(of_role.sum(), lane), "|", ms=5, mew=0.6, color=colour)
        lower.hlines(np.full(of_role.sum(), lane), begin[of_role], end[of_role], colour, lw=5)
        for row in pauses.index[of_role & (pauses["generation"] == FULL)]:
            upper.axvspan(begin[row], end[row], color=colour, alpha=0.3, lw=0)
    lower.set_yticks(range(len(roles)), [fmt.PROCESS[role] for role in reversed(roles)])
    for label, role in zip(lower.get_yticklabels(), reversed(roles), strict=True):
        label.set(color=PROCESS_COLOUR[role], weight="bold")
    lower.set_ylim(-0.7, len(roles) - 0.3)
    lower.grid(visible=False)
    lower.tick_params(axis="y", length=0)


def _message(scenes: list[_Scene]) -> str:
    each = fmt.listed(
        f"{fmt.ms(scene.pause_ms)} ({scene.arm.label})"
        if scene.pause_ms
        else f"none ({scene.arm.label})"
        for scene in scenes
    )
    step = fmt.ms(float(np.median([scene.step_ms for scene in scenes])))
    return f"The longest pause of the worker: {each}; the median step takes {step}"
