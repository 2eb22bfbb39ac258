"""Times of CUDA graph captures, with the collector's share."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from repro import fmt, policy
from repro.analysis.captures import (
    BASELINE,
    CAPTURE_SETTING,
    capture_times,
    policy_effects,
    principal,
)
from repro.dataset import Campaign
from repro.report import style
from repro.report.figures.registry import NotApplicable, figure
from repro.report.figures.shared import message
from repro.report.style import COLUMN, INK, PAGE

SPREAD = 0.3
"""Points lie within so much of the middle of their bar, in the order of the captures."""

DWARFS = 3.0
"""A policy that takes this many times as long as `gc-on` gets a panel of its own: on its scale no
other difference could be seen."""

POINT = {False: "white", True: INK}
"""Whether a process had captured before -> fill of the capture's point."""

IN_ORDER = ["graphs", "model", "vllm", "runner", "comparable"]
"""`CAPTURE_SETTING`, with the versions of one model beside each other."""

TALLEST = 4
"""More panels than this stand in two columns."""

BAR, FURNITURE = 0.17, 0.29
"""Inches per bar, and inches for a panel's title and numbers."""


@figure
def capture_time(campaign: Campaign) -> Figure:
    """Time to capture CUDA graphs (on the CPU: to compile) by policy, with the collector's share.

    One panel per setting, and one more for policies that dwarf the others. A bar is the
    geometric mean, a point one capture, hollow if it was the first of its process. Needs two
    capture policies.
    """
    times = capture_times(campaign)
    if times.empty:
        raise NotApplicable("no capture was recorded")
    if times["capture_policy"].nunique() < 2:
        raise NotApplicable("there is no second capture policy to compare")
    settings = [_apart(group) for _, group in times.groupby(IN_ORDER)]
    panels = [near for near, _ in settings] + [far for _, far in settings if len(far)]
    drawn = Figure(layout="constrained")
    columns = 2 if len(panels) > TALLEST else 1
    places = _places(drawn, panels, columns)
    for axes, panel in zip(places, panels, strict=True):
        _draw_captures(axes, panel)
    kind = "CUDA graph capture" if times["kind"].iloc[0] == "capture" else "compile at warm-up"
    for axes in places[-columns:]:
        axes.set_xlabel(f"{kind} (s)")
    handles = _legend(times)
    beside = len(handles) if columns > 1 else 2
    drawn.legend(handles=handles, loc="outside lower center", ncols=beside, columnspacing=1)
    message(drawn, _capture_message(times))
    return drawn


def _places(drawn: Figure, panels: list[pd.DataFrame], columns: int) -> list[Axes]:
    """Axes for the panels, row by row, each row as high as its bars need."""
    bars = [panel["capture_policy"].nunique() for panel in panels]
    heights = [
        BAR * max(bars[first : first + columns]) + FURNITURE
        for first in range(0, len(bars), columns)
    ]
    drawn.set_size_inches(COLUMN if columns == 1 else PAGE, 1.15 + sum(heights))
    places = drawn.subplots(len(heights), columns, height_ratios=heights, squeeze=False)
    used, spare = places.flat[: len(panels)], places.flat[len(panels) :]
    for axes in spare:
        axes.set_axis_off()
    return list(used)


def _apart(times: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The captures of a setting without those that dwarf them; and these beside the baseline."""
    median = principal(times).groupby("capture_policy")["capture_s"].median()
    far = median.index[median > DWARFS * median.get(BASELINE, np.inf)]
    near = times[~times["capture_policy"].isin(far)]
    return near, times[times["capture_policy"].isin([BASELINE, *far] if len(far) else [])]


def _draw_captures(axes: Axes, times: pd.DataFrame) -> None:
    """One panel: a bar per policy, the collector's share hatched, numbers beside it."""
    names = [name for name in policy.CAPTURE if name in set(times["capture_policy"])]
    longest = times["capture_s"].max()
    for place, name in enumerate(names):
        of_name = times[times["capture_policy"] == name]
        shown = principal(of_name)
        whole = float(np.exp(np.log(shown["capture_s"]).mean()))  # as ratios are made of
        share = (shown["gc_s"] / shown["capture_s"]).median()
        axes.barh(place, whole, height=0.7, color=style.PALETTE[9], edgecolor=INK, lw=0.5)
        axes.barh(
            place, share * whole, height=0.7, color="white", edgecolor=INK, hatch="//////", lw=0.5
        )
        for again, face in POINT.items():
            seconds = of_name.loc[of_name["again"] == again, "capture_s"]
            at = place + np.linspace(-SPREAD, SPREAD, len(seconds) + 2)[1:-1]
            axes.plot(seconds, at, "o", ms=2, mec=INK, mew=0.5, mfc=face)
        said = f"{fmt.figures(whole)} s, GC {fmt.percent(share)}"
        axes.text(1.1 * longest, place, said, va="center", fontsize=6)
    axes.set(xlim=(0, 1.5 * longest), ylim=(len(names) - 0.5, -0.5))
    axes.set_xticks([tick for tick in axes.get_xticks() if tick <= longest])
    axes.set_yticks(range(len(names)), names)
    first = times.iloc[0]
    axes.set_title(fmt.setting(first["model"], first["vllm"], first["runner"]), fontsize=7)
    axes.grid(visible=False, axis="y")


def _legend(times: pd.DataFrame) -> list[Patch | Line2D]:
    handles: list[Patch | Line2D] = [
        Patch(fc="white", ec=INK, hatch="//////", lw=0.5, label="collector"),
        Patch(fc=style.PALETTE[9], ec=INK, lw=0.5, label="the rest"),
    ]
    labels = {False: "first of its process", True: "captured again"}
    return handles + [
        Line2D([], [], ls="", marker="o", ms=3, mec=INK, mew=0.6, mfc=face, label=labels[again])
        for again, face in POINT.items()
        if (times["again"] == again).any()
    ]


def _capture_message(times: pd.DataFrame) -> str:
    """The ratios of two policies and the collector's share with the baseline, over all panels."""
    shown = principal(times)
    effects = policy_effects(shown)
    said: list[str] = []
    for name in ("frozen", "collect-per-graph"):
        ratios = [r for r in effects.loc[effects["capture_policy"] == name, "ratio"] if r.supported]
        if not ratios:
            continue
        values = sorted(ratio.value for ratio in ratios)
        both = " to ".join(dict.fromkeys(map(fmt.figures, (values[0], values[-1]))))
        span = fmt.ratio(ratios[0]) if len(ratios) == 1 else f"×{both}"
        open_ = all(ratio.low <= 1 <= ratio.high for ratio in ratios)
        clear = ", no clear difference" if open_ else ""
        said.append(f"{'' if said else 'capturing '}{name} takes {span} of {BASELINE}{clear}")
    base = shown[shown["capture_policy"] == BASELINE]
    base = shown if base.empty else base
    share = (
        (base["gc_s"] / base["capture_s"])
        .groupby([base[name] for name in CAPTURE_SETTING])
        .median()
    )
    lost = " to ".join(dict.fromkeys(map(fmt.percent, (share.min(), share.max()))))
    what = "capture" if times["kind"].iloc[0] == "capture" else "compilation"
    under = f" with {BASELINE}" if times["capture_policy"].nunique() > 1 else ""
    said.append(f"the collector takes {lost} of the {what}{under}")
    return fmt.capitalised("; ".join(said))
