"""The figures of a server's page: pauses over time, the tail, more ranks. One column wide."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from repro import fmt
from repro.analysis.gc_cost import GENERATIONS
from repro.dataset.schema import NS_PER_MS, NS_PER_S
from repro.report import style
from repro.report.figures.shared import plain_numbers
from repro.report.style import COLUMN, INK, PALETTE, PROCESS_COLOUR
from repro.server.launches import Launch
from repro.server.numbers import SLICES, Numbers
from repro.server.tail import curve
from repro.stats.bootstrap import EXPECTED_BEYOND

KIND_COLOUR = {"all steps": PALETTE[3], "without the collector": PALETTE[0]}
GENERATION_SIZE = {0: 3, 1: 8, 2: 26}
QUANTILE_LINE = {0.5: ":", 0.99: "--", 0.999: "-"}


def pauses_over_time(launch: Launch, found: Numbers) -> Figure:
    """Collections by length, one row per kind of process; the first busy step is marked."""
    roles = [role for role in fmt.PROCESS if launch.of(role)]
    with style.applied():
        drawn = Figure(figsize=(COLUMN, 0.7 + 0.95 * len(roles)), layout="constrained")
        rows = drawn.subplots(len(roles), squeeze=False, sharex=True, sharey=True)[:, 0]
        for axes, role in zip(rows, roles, strict=True):
            _dots(axes, launch, found, role)
            axes.set_title(fmt.PROCESS[role], color=PROCESS_COLOUR[role], fontweight="bold")
            if found.served:
                axes.axvline(
                    (found.window[0] - found.span[0]) / NS_PER_S, color=INK, lw=0.6, ls=":"
                )
        axes.set_xlabel("time since the launch (s); dotted: first step")
        drawn.supylabel("pause (ms)", fontsize=7)
        handles, labels = axes.get_legend_handles_labels()
        drawn.legend(handles, labels, loc="outside upper center", ncols=3, handletextpad=0)
    return drawn


def _dots(axes: Axes, launch: Launch, found: Numbers, role: str) -> None:
    begun, end = found.span
    width = (end - begun) / SLICES / NS_PER_S
    of_role = [found.own[n].slices for n, m in enumerate(launch.members) if m.role == role]
    for generation in GENERATIONS:
        of = np.array([slices[generation] for slices in of_role])
        at = np.broadcast_to((np.arange(SLICES) + 0.5) * width, of.shape)[of > 0]
        axes.scatter(
            at,
            of[of > 0] / NS_PER_MS,
            s=GENERATION_SIZE[generation],
            color=PROCESS_COLOUR[role],
            edgecolor=INK if generation == GENERATIONS[-1] else "none",
            linewidth=0.4,
            label=f"generation {generation}",
        )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def step_tail(found: Numbers) -> Figure:
    """The share of steps that last longer than x: as recorded, and without the collector."""
    with style.applied():
        drawn = Figure(figsize=(COLUMN, 2.6), layout="constrained")
        axes = drawn.subplots()
        for (name, colour), kind in zip(KIND_COLOUR.items(), ("all", "without"), strict=True):
            counts = found.tails[kind].counts
            x, share = curve(counts)
            firm = share >= EXPECTED_BEYOND / counts.sum()
            axes.plot(x / NS_PER_MS, share, color=colour, alpha=0.35)
            axes.plot(x[firm] / NS_PER_MS, share[firm], color=colour, label=name)
        axes.set(xscale="log", yscale="log")
        axes.set(xlabel="interval between steps (ms)", ylabel="share of steps that take longer")
        plain_numbers(axes.xaxis)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.legend(loc="upper right", handlelength=1.6)
    return drawn


def more_ranks(predicted: dict[str, pd.DataFrame]) -> Figure:
    """Step time of a group of ranks that wait for each other, by its number of ranks."""
    with style.applied():
        drawn = Figure(figsize=(COLUMN, 2.6), layout="constrained")
        axes = drawn.subplots()
        for name, table in predicted.items():
            for quantile, line in QUANTILE_LINE.items():
                rows = table[table["quantile"] == quantile]
                firm = rows[rows["supported"]]
                colour = KIND_COLOUR[name]
                axes.plot(rows["ranks"], rows["value_ms"], line, color=colour, alpha=0.3)
                axes.plot(
                    firm["ranks"],
                    firm["value_ms"],
                    line,
                    color=colour,
                    label=f"{fmt.quantile(quantile)}, {name}",
                )
        axes.set(xscale="log", yscale="log", xlabel="ranks in lock-step")
        axes.set_ylabel("step of the group (ms)")
        axes.set_xticks(rows["ranks"], [f"{ranks}" for ranks in rows["ranks"]])
        axes.xaxis.set_minor_locator(NullLocator())
        plain_numbers(axes.yaxis)
        drawn.legend(loc="outside lower center", ncols=2, handlelength=1.8, columnspacing=1)
    return drawn
