"""How long capturing CUDA graphs took, and the collector's part in it."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from repro import policy, style, words
from repro.analysis.captures import BASELINE, SETTING, capture_times, policy_effects, principal
from repro.dataset import Campaign
from repro.figures.parts import message
from repro.figures.registry import NotApplicable, figure
from repro.style import COLUMN, INK, PAGE

PANELS_A_ROW = 3
POINT = {False: "white", True: INK}
"""Whether a process had captured before -> how the capture's point is filled."""


@figure
def capture_time(campaign: Campaign) -> Figure:
    """Time to capture CUDA graphs (on the CPU: to compile), by policy, with the collector's part.

    One panel a setting; a bar is the median, a point one capture, hollow if it was the first of
    its process. Needs a recorded capture.
    """
    times = capture_times(campaign)
    if times.empty:
        raise NotApplicable("no capture was recorded")
    names = [name for name in policy.CAPTURE if name in set(times["capture_policy"])]
    groups = [group for _, group in times.groupby(SETTING)]
    columns = min(len(groups), PANELS_A_ROW)
    rows = -(-len(groups) // columns)
    size = (PAGE if columns > 1 else COLUMN, 0.6 + rows * (0.55 + 0.27 * len(names)))
    drawn = Figure(figsize=size, layout="constrained")
    panels = drawn.subplots(rows, columns, sharey=True, squeeze=False)
    for axes in panels.flat[len(groups) :]:
        axes.remove()
    for axes, group in zip(panels.flat, groups, strict=False):
        _draw_captures(axes, group, names)
    panels[0, 0].set_yticks(range(len(names)), names)
    panels[0, 0].invert_yaxis()
    if times["again"].any():
        names_of = {False: "first of its process", True: "captured again"}
        points = [
            Line2D(
                [], [], ls="", marker="o", ms=3, mec=INK, mew=0.6, mfc=face, label=names_of[again]
            )
            for again, face in POINT.items()
        ]
        drawn.legend(handles=points, loc="outside lower center", ncols=len(points))
    message(drawn, _capture_message(times))
    return drawn


def _draw_captures(axes: Axes, times: pd.DataFrame, names: list[str]) -> None:
    """The panel of one setting: a bar a policy, the collector's part hatched, numbers beside it."""
    for place, name in enumerate(names):
        of_name = times[times["capture_policy"] == name]
        if of_name.empty:
            continue
        shown = principal(of_name)
        whole, lost = shown["capture_s"].median(), shown["gc_s"].median()
        share = (shown["gc_s"] / shown["capture_s"]).median()
        axes.barh(place, whole, height=0.6, color=style.PALETTE[9])
        axes.barh(place, lost, height=0.6, color="white", edgecolor=INK, hatch="//////", lw=0.5)
        for again, face in POINT.items():
            seconds = of_name.loc[of_name["again"] == again, "capture_s"]
            at = np.full(len(seconds), place)
            axes.plot(seconds, at, "o", ms=2.5, mec=INK, mew=0.6, mfc=face)
        axes.annotate(
            f"{words.figures(whole)} s\nGC {words.percent(share)}",
            (of_name["capture_s"].max(), place),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=6,
        )
    first = times.iloc[0]
    kind = "graph capture" if first["kind"] == "capture" else "compile at warm-up"
    axes.set(xlabel=f"{kind} (s)", xlim=(0, times["capture_s"].max() * 1.4))
    axes.set_title(words.setting(first["model"], first["vllm"], first["runner"]), fontsize=7)
    axes.grid(visible=False, axis="y")


def _capture_message(times: pd.DataFrame) -> str:
    """The collector's part with the baseline, and what two policies change, over all panels."""
    shown = principal(times)
    base = shown[shown["capture_policy"] == BASELINE]
    base = shown if base.empty else base
    share = (base["gc_s"] / base["capture_s"]).groupby(base["comparable"]).median()
    lost = " to ".join(dict.fromkeys(map(words.percent, (share.min(), share.max()))))
    what = "capture" if times["kind"].iloc[0] == "capture" else "compilation"
    under = f" with {BASELINE}" if times["capture_policy"].nunique() > 1 else ""
    message = f"The collector (hatched) takes {lost} of the {what}{under}"
    effects = policy_effects(shown)
    for name in ("frozen", "collect-per-graph"):
        ratios = [r for r in effects.loc[effects["capture_policy"] == name, "ratio"] if r.supported]
        if len(ratios) == 1:
            message += f"; {name} takes {words.ratio(ratios[0])} of {BASELINE}"
        elif ratios:
            values = sorted(ratio.value for ratio in ratios)
            both = " to ".join(dict.fromkeys(map(words.figures, (values[0], values[-1]))))
            message += f"; {name} takes ×{both} of {BASELINE}"
    return message
