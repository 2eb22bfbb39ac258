"""Collections of a worker against the requests in flight, measured and predicted."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from repro import fmt
from repro.analysis.gc_cost import GENERATIONS
from repro.analysis.mechanism import collections_by_load
from repro.analysis.recorded_setting import setting_of
from repro.dataset import Campaign
from repro.report.figures.registry import NotApplicable, figure
from repro.report.figures.shared import message, plain_numbers
from repro.report.style import INK, PAGE, POLICY_COLOUR
from repro.theory.advice import Setting, advise

LOADS = 3
"""The fewest loads for a map."""

MARKERS = "osD^vP*"
"""By kind of request; the usual kind first."""

VLLM_DEFAULTS = (256, 1024)
"""Default `max_num_seqs` of a vLLM server: 1,024 from 70 GiB of GPU memory on."""


@figure
def trigger_map(campaign: Campaign) -> Figure:
    """Collections of a worker per 1,000 steps against the requests in flight, by generation.

    Measured points, CPython's rule for full collections, and vLLM's default `max_num_seqs`.
    Requests of another kind, such as with log probabilities, have their own marks. Needs one
    policy measured at three loads or more.
    """
    if campaign.runs["switch_s"].any():
        raise NotApplicable("the heap of a cross-over has two policies")
    found = collections_by_load(campaign)
    found = found[found["policy"].isin(["no-freeze", "freeze", "stock"])]
    usual = found[found["unusual"] == ""]
    loads = usual.groupby("policy")["concurrency"].nunique()
    names = [name for name in POLICY_COLOUR if loads.get(name, 0) >= LOADS]
    if not names:
        raise NotApplicable(f"no policy was measured at {LOADS} loads or more")
    kinds = ["", *sorted(set(found["unusual"]) - {""})]
    drawn = Figure(figsize=(PAGE, 2.6), layout="constrained")
    panels = drawn.subplots(1, len(GENERATIONS), sharey=True)
    for axes, generation in zip(panels, GENERATIONS, strict=True):
        of_generation = found[found["generation"] == generation]
        for name, kind in product(names, kinds):
            alike = (of_generation["policy"] == name) & (of_generation["unusual"] == kind)
            points = of_generation[alike]
            axes.plot(points["concurrency"], points["per_1000_steps"], **_mark(name, kinds, kind))
        for load in VLLM_DEFAULTS:
            axes.axvline(load, color=INK, lw=0.7, ls=":", zorder=1)
        axes.set(xscale="log", yscale="symlog", xlabel="requests in flight")
        axes.set_title(f"generation {generation}", fontsize=7, weight="bold")
        axes.set_ylim(0, 10_000)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        plain_numbers(axes.xaxis)
    for name in names:
        _draw_rule(panels[-1], campaign, name)
    panels[0].set_ylabel("collections per 1,000 steps")
    handles = [Line2D([], [], label=name, **_mark(name, kinds)) for name in names]
    handles += [Line2D([], [], label=kind, **_mark(names[0], kinds, kind)) for kind in kinds[1:]]
    handles.append(Line2D([], [], color=INK, lw=1, label="CPython's rule"))
    default = "vLLM's default: 256, on a large GPU 1,024"
    handles.append(Line2D([], [], color=INK, lw=0.7, ls=":", label=default))
    drawn.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 3))
    message(drawn, _trigger_message(usual, names[0]))
    return drawn


def _mark(policy: str, kinds: list[str], kind: str = "") -> dict[str, Any]:
    """Colour by policy, shape by kind of request."""
    colour = POLICY_COLOUR[policy]
    return {
        "marker": MARKERS[kinds.index(kind) % len(MARKERS)],
        "ls": "",
        "ms": 4.5 if policy == "freeze" else 6,
        "mfc": "white" if policy == "freeze" else colour,
        "color": colour,
    }


def _draw_rule(axes: Axes, campaign: Campaign, name: str) -> None:
    """Full collections of the campaign's worker at every load, predicted by CPython's rule."""
    runs = campaign.runs[(campaign.runs["policy"] == name) & (campaign.runs["unusual"] == "")]
    setting = setting_of(campaign, str(runs["run"].iloc[0]))
    loads = np.unique(np.geomspace(runs["concurrency"].min(), runs["concurrency"].max(), 200))
    rate = [
        1000 / advise(Setting(**{**vars(setting), "concurrency": int(load)})).period_steps
        for load in loads
    ]
    axes.plot(loads, rate, color=POLICY_COLOUR[name], lw=1)


def _trigger_message(found: pd.DataFrame, name: str) -> str:
    full = found[(found["policy"] == name) & (found["generation"] == GENERATIONS[-1])]
    some = full.loc[full["pauses"] > 0, "concurrency"]
    most = fmt.amount(full["concurrency"].max())
    if some.empty:
        return f"No full collection of a worker ({name}) was seen up to {most} requests in flight"
    none = full.loc[(full["pauses"] == 0) & (full["concurrency"] < some.min()), "concurrency"]
    until = f"none up to {fmt.amount(none.max())}, " if len(none) else ""
    return f"Full collections of a worker ({name}): {until}seen from {fmt.amount(some.min())} on"
