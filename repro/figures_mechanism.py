"""Figures of the mechanism: what triggers collections, what they cost, what would beat the freeze.

Entered into `repro.figures.FIGURES`, which imports this.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from repro import style, words
from repro.advice import Setting, advise, setting_of
from repro.analysis.arms import FREEZE_ALONE, ordered_arms
from repro.analysis.gc_cost import GENERATIONS
from repro.analysis.mechanism import (
    POLICIES,
    collections_by_load,
    objects_from,
    pause_by_objects,
    policies_table,
)
from repro.dataset import Campaign
from repro.figures import NotApplicable, _message, _plain_numbers, figure
from repro.style import COLUMN, INK, PAGE, POLICY_COLOUR, PROCESS_COLOUR

LOADS = 3
"""Loads that a map of the trigger needs at least."""

VLLM_DEFAULTS = {256: "vLLM's default", 1024: "on a large GPU"}
"""`max_num_seqs` of a server that is told nothing: 1,024 from 70 GiB of GPU memory on."""

MEASURES = {
    "longest_ms": "longest pause (ms)",
    "ms_per_1000_steps": "GC per 1,000 steps (ms)",
    "p99_ms": "P99 ITL (ms)",
    "p999_ms": "P99.9 ITL (ms)",
    "tokens_per_s": "tokens/s",
}

ADDED_BY = {
    "imported": "imports",
    "loaded": "model",
    "profiled": "compiling",
    "captured": "capture",
    "ready": "warm-up",
}


@figure
def trigger_map(campaign: Campaign) -> Figure:
    """Collections of a worker per 1,000 steps against the requests in flight, by generation.

    Measured points, the rule's line for full collections, vLLM's default `max_num_seqs`. Needs
    one policy measured at three loads or more.
    """
    found = collections_by_load(campaign)
    found = found[found["policy"].isin(["no-freeze", "freeze", "stock"])]
    loads = found.groupby("policy")["concurrency"].nunique()
    names = [name for name in POLICY_COLOUR if loads.get(name, 0) >= LOADS]
    if not names:
        raise NotApplicable(f"no policy was measured at {LOADS} loads or more")
    drawn = Figure(figsize=(PAGE, 2.6), layout="constrained")
    panels = drawn.subplots(1, len(GENERATIONS), sharey=True)
    for axes, generation in zip(panels, GENERATIONS, strict=True):
        for name in names:
            points = found[(found["policy"] == name) & (found["generation"] == generation)]
            points = points.sort_values("concurrency")
            axes.plot(
                points["concurrency"],
                points["per_1000_steps"],
                "o",
                ms=4.5 if name == "freeze" else 6,
                mfc="white" if name == "freeze" else POLICY_COLOUR[name],
                color=POLICY_COLOUR[name],
            )
        for load, what in VLLM_DEFAULTS.items():
            axes.axvline(load, color=INK, lw=0.7, ls=":")
            axes.annotate(
                f"{load:,}: {what}",
                (load, 1),
                (-2, -2),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                rotation=90,
                ha="right",
                va="top",
                fontsize=5.5,
            )
        axes.set(xscale="log", yscale="symlog", xlabel="requests in flight")
        axes.set_title(f"generation {generation}", fontsize=7, weight="bold")
        axes.set_ylim(0, 10_000)
        _plain_numbers(axes.xaxis)
    for name in names:
        _draw_rule(panels[-1], campaign, name)
    panels[0].set_ylabel("collections per 1,000 steps")
    lines = list(panels[0].lines[: len(names)])
    handles = [
        Line2D([], [], marker="o", ls="", mfc=line.get_mfc(), mec=line.get_mec(), label=name)
        for name, line in zip(names, lines, strict=True)
    ]
    handles.append(Line2D([], [], color=INK, lw=1, label="CPython's rule"))
    drawn.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    _message(drawn, _trigger_message(found, names[0]))
    return drawn


def _draw_rule(axes: Axes, campaign: Campaign, name: str) -> None:
    """Full collections as the rule makes them, of the campaign's worker at every load."""
    runs = campaign.runs[campaign.runs["policy"] == name]
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
    most = words.amount(full["concurrency"].max())
    if some.empty:
        return f"No full collection of a worker ({name}) was seen up to {most} requests in flight"
    none = full.loc[(full["pauses"] == 0) & (full["concurrency"] < some.min()), "concurrency"]
    until = f"none up to {words.amount(none.max())}, " if len(none) else ""
    return f"Full collections of a worker ({name}): {until}seen from {words.amount(some.min())} on"


@figure
def pause_against_objects(campaign: Campaign) -> Figure:
    """How long a full collection takes against the objects it sees, of every process and run.

    The line is one time an object, the median over the heaps of more than 100,000; where there
    is none, over all. Needs a full collection in a process that was counted.
    """
    points = pause_by_objects(campaign)
    if points.empty:
        raise NotApplicable("no full collection in a process whose heap was counted")
    large = points[points["objects"] > 1e5]
    rate = ((large if len(large) else points).eval("median_ms / objects")).median()
    drawn = Figure(figsize=(COLUMN, 2.8), layout="constrained")
    axes = drawn.subplots()
    for (role, frozen), group in points.groupby(["role", "frozen"]):
        colour = PROCESS_COLOUR[role]
        face = "white" if frozen else colour
        axes.plot(group["objects"], group["median_ms"], "o", ms=4.5, mec=colour, mfc=face, mew=1)
    span = np.array([points["objects"].min(), points["objects"].max()])
    axes.plot(span, rate * span, color=INK, lw=0.8, zorder=1)
    axes.set(xscale="log", yscale="log", xlabel="objects seen", ylabel="full collection (ms)")
    _plain_numbers(axes.xaxis)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    _plain_numbers(axes.yaxis)
    handles = [
        Line2D([], [], marker="o", ls="", color=PROCESS_COLOUR[role], label=words.PROCESS[role])
        for role in words.PROCESS
        if role in set(points["role"])
    ]
    handles.append(
        Line2D([], [], marker="o", ls="", mec=INK, mfc="white", label="heap frozen before load")
    )
    axes.legend(handles=handles, loc="upper left", handlelength=1)
    _message(drawn, f"A full collection takes about {words.figures(1e6 * rate)} ns an object seen")
    return drawn


@figure
def objects_by_origin(campaign: Campaign) -> Figure:
    """Where the objects of a worker's heap come from: what each stage of its start adds.

    Needs workers that were counted on their way.
    """
    added = objects_from(campaign)
    if added.empty:
        raise NotApplicable("no worker was counted on its way")
    arms = [arm for arm in ordered_arms(campaign) if arm in added.index]
    drawn = Figure(figsize=(PAGE, 1.2 + 0.22 * len(arms)), layout="constrained")
    axes = drawn.subplots()
    left = np.zeros(len(arms))
    for number, (point, objects) in enumerate((added.loc[arms].clip(lower=0) / 1e6).items()):
        colour = style.PALETTE[(9, 1, 2, 4, 8)[number]]
        axes.barh(arms, objects, left=left, color=colour, label=ADDED_BY[str(point)])
        left += objects.to_numpy()
    axes.invert_yaxis()
    axes.set_xlabel("objects in the worker's heap before load (millions)")
    axes.grid(visible=False, axis="y")
    drawn.legend(loc="outside lower center", ncols=added.shape[1])
    share = (added["imported"] / added.sum(axis=1)).median()
    _message(drawn, f"{words.percent(share)} of a worker's objects are there before its model is")
    return drawn


@figure
def policies_compared(campaign: Campaign) -> Figure:
    """Longest pause, time lost, tail and throughput of every arm, one row each.

    Needs a policy beyond the pull request's, of any process.
    """
    table = policies_table(campaign)
    plain = table["policy"].isin(FREEZE_ALONE) & (table[POLICIES[1:]] == "stock").all(axis=1)
    if plain.all():
        raise NotApplicable("no policy beyond the freeze was measured")
    shown = {name: title for name, title in MEASURES.items() if table[name].notna().any()}
    place = table["policy"].map(list(POLICY_COLOUR).index)
    table = table.assign(place=place).sort_values(["place", *POLICIES[1:]])
    rows = np.arange(len(table))
    drawn = Figure(figsize=(PAGE, 1.0 + 0.22 * len(table)), layout="constrained")
    panels = drawn.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, (name, title) in zip(panels, shown.items(), strict=True):
        colours = table["policy"].map(POLICY_COLOUR)
        axes.hlines(rows, 0, table[name], colors=colours, lw=1)
        axes.scatter(table[name], rows, s=20, c=colours, zorder=2)
        axes.set(xlim=(0, 1.15 * table[name].max() or 1), xlabel=title)
        axes.locator_params(axis="x", nbins=3)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(rows, [_policies(row) for row in table.reset_index().to_dict("records")])
    panels[0].set_title("worker / engine core / front end", fontsize=6, x=0, ha="right")
    panels[0].invert_yaxis()
    longest = table["longest_ms"]
    best = _policies({"arm": longest.idxmin(), **table.loc[longest.idxmin()].to_dict()})
    _message(drawn, f"The shortest of the longest pauses: {words.ms(longest.min())} ({best})")
    return drawn


def _policies(row: dict[str, Any]) -> str:
    """What else sets an arm apart, then its policies; one word if all processes have the same."""
    worker, engine, frontend = (row[name] for name in POLICIES)
    setting = str(row["arm"]).removesuffix(worker).removesuffix(": ")
    setting = setting.removesuffix(f"engine {engine}, front end {frontend}").strip()
    names = "all " + worker if worker == engine == frontend else f"{worker} / {engine} / {frontend}"
    return f"{setting} {names}".strip()
