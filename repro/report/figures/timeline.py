"""Steps and the collections of every process around a long pause, on one clock."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from repro import fmt
from repro.analysis.arms import pairs
from repro.analysis.gc_cost import FULL
from repro.analysis.tails import NS_PER_MS, step_intervals
from repro.dataset import Campaign, in_window, under_load
from repro.report.figures.registry import NotApplicable, figure
from repro.report.figures.shared import arms_to_compare, message, plain_numbers, style_of
from repro.report.style import PAGE, PROCESS_COLOUR

NS_PER_S = 1e9


@dataclass(frozen=True, kw_only=True)
class _Scene:
    """Where an arm's longest pause is, and how long its steps and that pause are."""

    run: str
    rank: int
    at_ns: int
    pause_ms: float
    step_ms: float


@figure
def timeline(campaign: Campaign) -> Figure:
    """Steps around the longest pause, with every process's pauses beneath, on one clock.

    Without and with the freeze one above the other, where the campaign has both. The pause is the
    longest of a worker; of any process, where no worker has a heap of its own. Needs steps and
    pauses in the measured windows.
    """
    campaign = under_load(campaign)
    steps = step_intervals(in_window(campaign, campaign.steps))
    pauses = in_window(campaign, campaign.pauses)
    if steps.empty or pauses.empty:
        missing = "engine step" if steps.empty else "collection"
        raise NotApplicable(f"no {missing} in the measured windows")
    roles = [role for role in fmt.PROCESS if role in set(pauses["role"])]
    pair = next(iter(pairs(campaign)), None)
    arms = [pair.baseline, pair.treated] if pair else arms_to_compare(campaign)[:1]
    scenes = [_scene(campaign, arm, pauses[pauses["role"] == roles[-1]], steps) for arm in arms]
    half_ms = max(max(2.5 * scene.pause_ms, 25 * scene.step_ms) for scene in scenes)

    drawn = Figure(figsize=(PAGE, 0.6 + 1.6 * len(arms)), layout="constrained")
    heights = [1, 0.12 * len(roles)] * len(arms)
    grid = drawn.subplots(len(heights), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for arm, scene, upper, lower in zip(arms, scenes, grid[::2], grid[1::2], strict=True):
        colour = style_of(campaign, arm)["color"]
        _draw_steps(upper, scene, steps, half_ms, colour)
        _draw_pauses(upper, lower, scene, pauses, roles, half_ms)
        upper.set_title(
            arm, fontsize=7, weight="bold", color=style_of(campaign, arm)["color"], pad=3
        )
    limits = [axes.get_ylim() for axes in grid[::2]]
    for axes in grid[::2]:
        axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
        plain_numbers(axes.yaxis)
    grid[-1].set(
        xlim=(-half_ms / 1e3, half_ms / 1e3),
        xlabel=f"time from the middle of the longest pause of the {fmt.PROCESS[roles[-1]]} (s)",
    )
    message(drawn, _pause_message(roles[-1], arms, scenes))
    return drawn


def _scene(campaign: Campaign, arm: str, pauses: pd.DataFrame, steps: pd.DataFrame) -> _Scene:
    runs = campaign.runs[campaign.runs["arm"] == arm]
    own = pauses[pauses["run"].isin(runs["run"])]
    step_ms = float(steps.loc[steps["run"].isin(runs["run"]), "interval_ns"].median()) / NS_PER_MS
    if own.empty:  # nothing to centre on: the middle of a window
        first = runs.iloc[0]
        middle = (first["window_start_ns"] + first["window_end_ns"]) // 2
        return _Scene(run=first["run"], rank=0, at_ns=middle, pause_ms=0.0, step_ms=step_ms)
    longest = own.loc[own["duration_ns"].idxmax()]
    return _Scene(
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
    """One lane a process beneath the steps; full collections shade the steps as well."""
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


def _pause_message(role: str, arms: list[str], scenes: list[_Scene]) -> str:
    each = fmt.listed(
        f"{fmt.ms(scene.pause_ms)} ({arm})" if scene.pause_ms else f"none ({arm})"
        for arm, scene in zip(arms, scenes, strict=True)
    )
    step = fmt.ms(float(np.median([scene.step_ms for scene in scenes])))
    return f"The longest pause of the {fmt.PROCESS[role]}: {each}; a step usually takes {step}"
