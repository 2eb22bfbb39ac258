"""Steps around the worker's longest pause, without and with the freeze, on one clock."""

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
from repro.report.figures.shared import colour_of, message, pair_to_compare, plain_numbers
from repro.report.style import INK, PAGE, PROCESS_COLOUR

LONG = 2.0
"""A pause worth a figure takes this many times as long as a step."""


@dataclass(frozen=True, kw_only=True)
class _Scene:
    """The longest pause of an arm's workers, and its length and that of a step."""

    arm: Arm
    pause: pd.Series
    step_ms: float

    @property
    def pause_ms(self) -> float:
        return float(self.pause["duration_ns"]) / NS_PER_MS


@figure
def timeline(campaign: Campaign) -> Figure:
    """Steps around the worker's longest pause, on one clock, without the freeze and with it.

    Needs collections of workers in both arms, and one that is longer than two steps.
    """
    campaign = under_load(campaign)
    steps = step_intervals(in_window(campaign, campaign.steps))
    pauses = in_window(campaign, campaign.pauses)
    pauses = pauses[pauses["role"] == "worker"]
    if steps.empty or pauses.empty:
        missing = "engine step" if steps.empty else "collection of a worker"
        raise NotApplicable(f"no {missing} in the measured windows")
    scenes = [_scene(arm, pauses, steps) for arm in pair_to_compare(campaign)]
    if scenes[0].pause_ms < LONG * scenes[0].step_ms:
        raise NotApplicable("no pause of a worker is longer than two steps")
    half_s = max(2 * scenes[0].pause_ms, 20 * scenes[0].step_ms) / 1e3
    drawn = Figure(figsize=(PAGE, 2.9), layout="constrained")
    panels = drawn.subplots(len(scenes), sharex=True, sharey=True)
    for axes, scene in zip(panels, scenes, strict=True):
        _draw(axes, scene, steps, half_s, colour_of(campaign, scene.arm.label))
        axes.set_ylabel("step (ms)")
    plain_numbers(panels[0].yaxis)
    panels[-1].set(
        xlim=(-half_s, half_s), xlabel="time from the middle of the worker's longest pause (s)"
    )
    handles = [
        Line2D([], [], color=INK, lw=2, label="one step, as high as long"),
        Patch(color=PROCESS_COLOUR["worker"], label="the worker's longest pause"),
    ]
    drawn.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    each = fmt.listed(f"{fmt.ms(scene.pause_ms)} ({scene.arm.label})" for scene in scenes)
    step = fmt.ms(float(np.median([scene.step_ms for scene in scenes])))
    message(drawn, f"The worker's longest pause: {each}; the median step takes {step}")
    return drawn


def _scene(arm: Arm, pauses: pd.DataFrame, steps: pd.DataFrame) -> _Scene:
    own = pauses[pauses["run"].isin(arm.runs)]
    if own.empty:
        raise NotApplicable(f"no collection of a worker in the measured windows of {arm.label}")
    step_ms = float(steps.loc[steps["run"].isin(arm.runs), "interval_ns"].median()) / NS_PER_MS
    return _Scene(arm=arm, pause=own.loc[own["duration_ns"].idxmax()], step_ms=step_ms)


def _draw(axes: Axes, scene: _Scene, steps: pd.DataFrame, half_s: float, colour: str) -> None:
    """Each step as a bar from its entry to the next, at the height of its length; the pause."""
    pause = scene.pause
    middle_ns = pause["start_ns"] + pause["duration_ns"] // 2
    own = steps[(steps["run"] == pause["run"]) & (steps["rank"] == pause["rank"])]
    end = (own["t_ns"] - middle_ns) / NS_PER_S
    begin = end - own["interval_ns"] / NS_PER_S
    seen = (end > -half_s) & (begin < half_s)
    half_pause_s = scene.pause_ms / 2e3
    axes.axvspan(-half_pause_s, half_pause_s, color=PROCESS_COLOUR["worker"], lw=1, zorder=1)
    axes.hlines(own["interval_ns"][seen] / NS_PER_MS, begin[seen], end[seen], colour, lw=2)
    axes.set(yscale="log")
    axes.margins(y=0.15)
    axes.set_title(scene.arm.label, fontsize=7, weight="bold", color=colour, pad=3)
