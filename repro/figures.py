"""The figures, one function each, drawn from a campaign's data alone.

To add one, write a function from `Campaign` to `Figure` here and decorate it with `@figure`:
`FIGURES`, `draw_all`, the notebooks and the tests then know it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from repro import dataset, policy, prediction, style, words
from repro.analysis.arms import Pair, heaps, ordered_arms, pairs
from repro.analysis.bootstrap import EXPECTED_BEYOND
from repro.analysis.captures import BASELINE, SETTING, capture_times, policy_effects, principal
from repro.analysis.common_step import predict
from repro.analysis.gc_cost import FULL, GENERATIONS, full_collections
from repro.analysis.lockstep import RANKS
from repro.analysis.one_rank import bases
from repro.analysis.ranks import measured_quantiles, several
from repro.analysis.tails import NS_PER_MS, effect, sample, step_intervals, tail_table
from repro.dataset import Campaign, in_window, under_load
from repro.style import COLUMN, INK, PAGE, POLICY_COLOUR, PROCESS_COLOUR, RANK_COLOUR, save

__all__ = ["FIGURES", "NotApplicable", "draw_all", "save"]

NS_PER_S = 1e9
MILLION = 1e6
FAR = (0.99, 0.999)
PANELS_A_ROW = 3
POINT = {False: "white", True: INK}
"""Whether a process had captured before -> how the capture's point is filled."""
HEAP_POINTS = ("ready", "window-start", "window-end", "shutdown")

Draw = Callable[[Campaign], Figure]
Floats = npt.NDArray[np.float64]
FIGURES: dict[str, Draw] = {}


class NotApplicable(ValueError):
    """A figure that this campaign has no data for; the message says what is missing."""


def figure(draw: Draw) -> Draw:
    """Enter a function into `FIGURES` under its name, and draw it in the one style."""

    @functools.wraps(draw)
    def drawn(campaign: Campaign) -> Figure:
        with style.applied():
            return draw(campaign)

    FIGURES[draw.__name__] = drawn
    return drawn


def draw_all(data_root: Path, out_dir: Path) -> list[Path]:
    """Draw what applies to each campaign under a folder.

    Parameters
    ----------
    data_root : Path
        Its folders that are campaigns are drawn; others are passed over.
    out_dir : Path
        Where `<campaign>/<figure>.png` and `.svg` go.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    repro.dataset.DatasetError
        If a campaign is damaged.
    """
    written = []
    for folder in sorted(path for path in data_root.iterdir() if dataset.is_campaign(path)):
        campaign = dataset.load(folder)
        for name, draw in FIGURES.items():
            try:
                drawn = draw(campaign)
            except NotApplicable:
                continue
            written += save(drawn, out_dir / folder.name / name)
    return written


# --- the tail -----------------------------------------------------------------------------


@figure
def itl_tail(campaign: Campaign) -> Figure:
    """How often a token comes later than x after the one before it: log survival by arm.

    One line an arm over all its runs, weighted by tokens; faint where fewer steps lie beyond
    than a quantile needs. Needs token gaps.
    """
    gaps = sample(campaign, "itl")
    if gaps.empty:
        raise NotApplicable("no gap between tokens was recorded")
    drawn = Figure(figsize=(COLUMN, 2.8), layout="constrained")
    axes = drawn.subplots()
    curves = {}
    for arm in ordered_arms(campaign):
        rows = gaps[gaps["run"].isin(_runs(campaign, arm))]
        if rows.empty:
            continue
        x, share = curves[arm] = survival(rows)
        firm = share >= EXPECTED_BEYOND / len(rows[["run", "step"]].drop_duplicates())
        look = _look(campaign, arm)
        axes.plot(x, share, alpha=0.35, **look)
        axes.plot(x[firm], share[firm], label=arm, **look)
    axes.set(xscale="log", yscale="log")
    axes.set(xlabel="ITL (ms)", ylabel="share of tokens with longer ITL")
    axes.set_ylim(min(share[-1] for _, share in curves.values()) / 2, 1.4)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.6g}%"))
    axes.yaxis.set_minor_locator(NullLocator())
    if len(curves) == 2:
        _name_on_curves(axes, curves, campaign)
    else:
        axes.legend(loc="upper right", handlelength=1.6)
    _plain_numbers(axes.xaxis)
    _message(drawn, _tail_message(campaign))
    return drawn


def survival(rows: pd.DataFrame, points: int = 400) -> tuple[Floats, Floats]:
    """The gap that a share of the tokens exceeds, for shares evenly spaced in their logarithm.

    Parameters
    ----------
    rows : pandas.DataFrame
        As `tails.sample` returns, at least one.
    points : int

    Returns
    -------
    x, share : (points,) arrays
        Milliseconds, and the share of tokens with a gap of x or more, from 1 down to that of the
        longest gap.
    """
    ordered = rows.sort_values("value_ns")
    at_least = ordered["count"].to_numpy()[::-1].cumsum()[::-1]
    share = np.geomspace(1, ordered["count"].iloc[-1] / at_least[0], points)
    tokens = share * at_least[0] * (1 - 1e-9)  # a hair less: a share must not miss its own gap
    last = np.searchsorted(-at_least, -tokens, side="right") - 1
    return ordered["value_ns"].to_numpy()[last] / NS_PER_MS, share


def _tail_message(campaign: Campaign) -> str:
    found = tail_table(campaign).set_index(["arm", "quantile"])
    pair = next(iter(pairs(campaign)), None)
    if pair is None:
        longest = found.xs(1.0, level="quantile")["value_ms"].dropna()
        each = words.listed(f"{words.ms(value)} ({arm})" for arm, value in longest.items())
        return f"The longest gap between two tokens: {each}"
    both = found.loc[pair.baseline, "supported"] & found.loc[pair.treated, "supported"]
    parts = []
    for quantile in both.index[both & both.index.isin([0.99, 0.999])]:
        ratio = effect(campaign, pair.baseline, pair.treated, quantile)
        sure = "" if ratio.high < 1 or ratio.low > 1 else " (no clear difference)"
        parts.append(f"{words.quantile(quantile)} {_change(found, pair, quantile)}{sure}")
    parts.append(f"longest {_change(found, pair, 1.0)}")
    where = f"{pair.setting}: " if pair.setting else ""
    return f"{where}ITL as the worker's heap is frozen: {', '.join(parts)}"


def _change(found: pd.DataFrame, pair: Pair, quantile: float) -> str:
    before, after = (found.loc[(a, quantile), "value_ms"] for a in (pair.baseline, pair.treated))
    return f"{words.figures(before)} → {words.ms(after)}"


def _name_on_curves(
    axes: Axes, curves: dict[str, tuple[Floats, Floats]], campaign: Campaign
) -> None:
    """Name two falling curves where they are furthest apart, outside the space between them."""
    levels = np.geomspace(max(share[-1] for _, share in curves.values()), 0.3, 60)
    at = {
        arm: np.exp(np.interp(np.log(levels), np.log(share[::-1]), np.log(x[::-1])))
        for arm, (x, share) in curves.items()
    }
    left, right = sorted(at, key=lambda arm: float(at[arm].mean()))
    place = int(np.argmax(at[right] / at[left]))
    for arm, shift, across, upright in ((left, -4, "right", "top"), (right, 4, "left", "bottom")):
        axes.annotate(
            arm,
            (at[arm][place], levels[place]),
            (shift, shift / 4),
            textcoords="offset points",
            ha=across,
            va=upright,
            color=_look(campaign, arm)["color"],
            weight="bold",
        )
    low, high = axes.get_xlim()
    room = (high / low) ** 0.25
    axes.set_xlim(low / room, high * room)


# --- the time line ------------------------------------------------------------------------


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
    roles = [role for role in words.PROCESS if role in set(pauses["role"])]
    pair = next(iter(pairs(campaign)), None)
    arms = [pair.baseline, pair.treated] if pair else ordered_arms(campaign)[:1]
    scenes = [_scene(campaign, arm, pauses[pauses["role"] == roles[-1]], steps) for arm in arms]
    half_ms = max(max(2.5 * scene.pause_ms, 25 * scene.step_ms) for scene in scenes)

    drawn = Figure(figsize=(PAGE, 0.6 + 1.6 * len(arms)), layout="constrained")
    heights = [1, 0.12 * len(roles)] * len(arms)
    grid = drawn.subplots(len(heights), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for arm, scene, upper, lower in zip(arms, scenes, grid[::2], grid[1::2], strict=True):
        _draw_steps(upper, scene, steps, half_ms, _look(campaign, arm)["color"])
        _draw_pauses(upper, lower, scene, pauses, roles, half_ms)
        upper.set_title(arm, fontsize=7, weight="bold", color=_look(campaign, arm)["color"], pad=3)
    limits = [axes.get_ylim() for axes in grid[::2]]
    for axes in grid[::2]:
        axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
        _plain_numbers(axes.yaxis)
    grid[-1].set(
        xlim=(-half_ms / 1e3, half_ms / 1e3),
        xlabel=f"time from the middle of the longest pause of the {words.PROCESS[roles[-1]]} (s)",
    )
    _message(drawn, _pause_message(roles[-1], arms, scenes))
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
    lower.set_yticks(range(len(roles)), [words.PROCESS[role] for role in reversed(roles)])
    for label, role in zip(lower.get_yticklabels(), reversed(roles), strict=True):
        label.set(color=PROCESS_COLOUR[role], weight="bold")
    lower.set_ylim(-0.7, len(roles) - 0.3)
    lower.grid(visible=False)
    lower.tick_params(axis="y", length=0)


def _pause_message(role: str, arms: list[str], scenes: list[_Scene]) -> str:
    each = words.listed(
        f"{words.ms(scene.pause_ms)} ({arm})" if scene.pause_ms else f"none ({arm})"
        for arm, scene in zip(arms, scenes, strict=True)
    )
    step = words.ms(float(np.median([scene.step_ms for scene in scenes])))
    return f"The longest pause of the {words.PROCESS[role]}: {each}; a step usually takes {step}"


# --- pauses -------------------------------------------------------------------------------


@figure
def pauses_by_process(campaign: Campaign) -> Figure:
    """How long pauses are, by process, generation and arm: from shortest to longest, and median.

    The number over each bar is how many there were in the measured windows of the arm's runs.
    Needs a pause in them.
    """
    campaign = under_load(campaign)
    pauses = in_window(campaign, campaign.pauses)
    if pauses.empty:
        raise NotApplicable("no collection in the measured windows")
    roles = [role for role in words.PROCESS if role in set(pauses["role"])]
    arms = ordered_arms(campaign)
    spread = 0.7 / len(arms)
    drawn = Figure(figsize=(PAGE, 2.5), layout="constrained")
    panels = drawn.subplots(1, len(roles), sharey=True, squeeze=False)[0]
    for axes, role in zip(panels, roles, strict=True):
        for number, arm in enumerate(arms):
            look = _look(campaign, arm)
            of_arm = pauses[pauses["run"].isin(_runs(campaign, arm)) & (pauses["role"] == role)]
            for generation, group in of_arm.groupby("generation")["duration_ns"]:
                at = generation + (number - (len(arms) - 1) / 2) * spread
                shortest, median, longest = np.quantile(group / NS_PER_MS, (0, 0.5, 1))
                axes.vlines(at, shortest, longest, lw=2, **look)
                axes.plot(at, median, "o", ms=4.5, mfc="white", mec=look["color"], mew=1.2)
                axes.annotate(
                    _compact(len(group)),
                    (at, longest),
                    (0, 3),
                    textcoords="offset points",
                    ha="center",
                    fontsize=6,
                    rotation=90 if len(arms) > 2 else 0,
                    color=look["color"],
                )
        axes.set_title(words.PROCESS[role], fontsize=7, weight="bold", color=PROCESS_COLOUR[role])
        axes.set(yscale="log", xlabel="generation collected", xlim=(-0.6, FULL + 0.6))
        axes.set_xticks(GENERATIONS)
        axes.margins(y=0.15)
        axes.grid(visible=False, axis="x")
    _plain_numbers(panels[0].yaxis)
    panels[0].set_ylabel("pause (ms)")
    _legend_of_arms(drawn, campaign, arms)
    _message(drawn, _full_message(campaign, roles))
    return drawn


def _full_message(campaign: Campaign, roles: list[str]) -> str:
    full = full_collections(campaign)
    longest = full.groupby(["role", "arm"])["duration_ns"].max() / NS_PER_MS
    pair = next(iter(pairs(campaign)), None)
    arms = [pair.baseline, pair.treated] if pair else ordered_arms(campaign)[:1]
    parts = []
    for role in roles:
        values = [longest.get((role, arm)) for arm in arms]
        said = ["none" if value is None else words.ms(value) for value in values]
        parts.append(f"{words.PROCESS[role]} {' → '.join(dict.fromkeys(said))}")
    return f"Longest full collection ({' → '.join(arms)}): {', '.join(parts)}"


def _compact(count: int) -> str:
    return f"{count}" if count < 10_000 else f"{count / 1000:.0f}k"


# --- the heap -----------------------------------------------------------------------------


@figure
def heap_census(campaign: Campaign) -> Figure:
    """Objects the collector sees and objects frozen out of its sight, by process and moment.

    Means over the arm's runs and the role's processes. Needs a census.
    """
    campaign = under_load(campaign)
    if campaign.census.empty:
        raise NotApplicable("no heap was counted")
    census = campaign.census
    roles = [role for role in words.PROCESS if role in set(census["role"])]
    points = {
        role: [p for p in HEAP_POINTS if p in set(census.loc[census["role"] == role, "point"])]
        for role in roles
    }
    arms = ordered_arms(campaign)
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
                colour = _look(campaign, arm)["color"]
                bar = {"width": 0.85 * width, "edgecolor": colour, "lw": 0.7}
                axes.bar(at, tracked, color=colour, **bar)
                axes.bar(at, frozen, bottom=tracked, color="white", hatch="/////", **bar)
        axes.set_title(words.PROCESS[role], fontsize=7, weight="bold", color=PROCESS_COLOUR[role])
        labels = [point.replace("-", "\n") for point in points[role]]
        axes.set_xticks(range(len(labels)), labels)
        axes.grid(visible=False, axis="x")
    panels[0].set_ylabel("objects (millions)")
    kinds = [
        Patch(facecolor=INK, edgecolor=INK, label="seen by the collector"),
        Patch(facecolor="white", edgecolor=INK, hatch="/////", label="frozen"),
    ]
    _legend_of_arms(drawn, campaign, arms, kinds)
    _message(drawn, _heap_message(campaign, roles))
    return drawn


def _heap_message(campaign: Campaign, roles: list[str]) -> str:
    role = roles[-1]
    mean = heaps(campaign, role, "window-start").groupby("arm")[["tracked", "frozen"]].mean()
    if mean.empty:
        return "Objects in each process's heap"
    each = words.listed(
        f"{words.count(mean.loc[arm, 'tracked'])} of {words.count(mean.loc[arm].sum())} ({arm})"
        for arm in ordered_arms(campaign)
        if arm in mean.index
    )
    return f"Before load, the collector of the {words.PROCESS[role]} sees this many objects: {each}"


# --- the capture --------------------------------------------------------------------------


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
    _message(drawn, _capture_message(times))
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


# --- many ranks ---------------------------------------------------------------------------


@figure
def itl_by_ranks(campaign: Campaign) -> Figure:
    """P99 and P99.9 of ITL against the number of ranks in lock-step, predicted from one rank.

    A line an arm with its 95% band, dotted where too few pauses were measured to support it; a
    point with its interval for each number of ranks that was measured. Needs runs of one rank
    with and without the freeze.
    """
    basis = next(iter(bases(campaign)), None)
    if basis is None:
        raise NotApplicable("there are no runs of one rank with and without the freeze")
    of_basis = campaign.runs[campaign.runs["run"].isin(basis.runs)]
    policies = dict(zip(of_basis["arm"], of_basis["policy"], strict=True))
    drawn = Figure(figsize=(PAGE, 2.7), layout="constrained")
    panels = drawn.subplots(1, len(FAR), sharey=True)
    measured = measured_quantiles(campaign, FAR)
    for quantile, axes in zip(FAR, panels, strict=True):
        for arm, steps in basis.steps.items():
            rows = predict(steps, ranks=RANKS, quantiles=[quantile])
            _draw_prediction(axes, rows, POLICY_COLOUR[policies[arm]])
        seen = measured[
            (measured["quantile"] == quantile)
            & measured["supported"]
            & measured["policy"].isin(policies.values())
            & (measured["arm"].isin(basis.steps) | (measured["kind"] == "DP"))
        ]
        _draw_measured(axes, seen)
        axes.set(xscale="log", yscale="log", xlabel="ranks in lock-step")
        axes.xaxis.set_major_locator(FixedLocator(RANKS[::2]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:,.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_title(words.quantile(quantile))
    panels[0].set_ylabel("ITL (ms)")
    _plain_numbers(panels[0].yaxis)
    lines = [
        Line2D([], [], lw=3, color=POLICY_COLOUR[policy], label=arm)
        for arm, policy in ((arm, policies[arm]) for arm in basis.steps)
    ]
    lines += [
        Line2D([], [], color=INK, marker="o", ms=4, lw=0, label="measured"),
        Line2D([], [], color=INK, lw=1.4, ls=":", label="beyond what so few pauses can tell"),
    ]
    drawn.legend(handles=lines, loc="outside lower center", ncols=len(lines))
    _message(drawn, f"Predicted from one rank: {prediction.sentence(basis)}")
    return drawn


def _draw_prediction(axes: Axes, rows: pd.DataFrame, colour: str) -> None:
    """A band, and a line that is solid as far as the data support it."""
    axes.fill_between(
        rows["ranks"], rows["low_ms"], rows["high_ms"], color=colour, alpha=0.15, lw=0
    )
    firm = rows["supported"].cumprod().astype(bool)
    axes.plot(rows["ranks"], rows["value_ms"], color=colour, ls=":")
    axes.plot(rows["ranks"][firm], rows["value_ms"][firm], color=colour)


def _draw_measured(axes: Axes, rows: pd.DataFrame) -> None:
    """Points with their intervals."""
    for row in rows.itertuples():
        beyond = [[row.value_ms - row.low_ms], [row.high_ms - row.value_ms]]
        colour = POLICY_COLOUR[row.policy]
        axes.errorbar(
            row.ranks, row.value_ms, yerr=np.maximum(beyond, 0), fmt="o", ms=4, color=colour, lw=1
        )


@figure
def rank_timelines(campaign: Campaign) -> Figure:
    """Steps of two ranks above each other around the longest pause of a worker, on one clock.

    Shaded where a worker was in a full collection, in the colour of its rank. Needs a run of
    several ranks with a full collection of a worker.
    """
    runs = several(campaign)
    if runs.empty:
        raise NotApplicable("there are no runs of several ranks")
    full = full_collections(campaign)
    full = full[(full["role"] == "worker") & full["run"].isin(runs["run"])]
    if full.empty:
        raise NotApplicable("there is no full collection of a worker among several ranks")
    longest = full.loc[full["duration_ns"].idxmax()]
    steps = step_intervals(campaign.steps[campaign.steps["run"] == longest["run"]])
    middle = longest["start_ns"] + longest["duration_ns"] // 2
    ranks = [longest["rank"], *sorted(set(steps["rank"]) - {longest["rank"]})][:2]
    usual_ms = float(steps["interval_ns"].median()) / NS_PER_MS
    half_s = max(2.5 * longest["duration_ns"] / NS_PER_MS, 25 * usual_ms) / 1e3
    drawn = Figure(figsize=(PAGE, 3.0), layout="constrained")
    panels = drawn.subplots(len(ranks), sharex=True, sharey=True, squeeze=False)[:, 0]
    colours = dict(zip(ranks, RANK_COLOUR, strict=False))
    for rank, axes in zip(ranks, panels, strict=True):
        own = steps[steps["rank"] == rank]
        end = (own["t_ns"] - middle) / NS_PER_S
        begin = end - own["interval_ns"] / NS_PER_S
        seen = (end > -half_s) & (begin < half_s)
        took = own["interval_ns"][seen] / NS_PER_MS
        axes.hlines(took, begin[seen], end[seen], colours[rank], lw=2)
        for row in full[(full["run"] == longest["run"]) & full["rank"].isin(ranks)].itertuples():
            start = (row.start_ns - middle) / NS_PER_S
            if abs(start) < half_s:
                span = start, start + row.duration_ns / NS_PER_S
                axes.axvspan(*span, color=colours[row.rank], alpha=0.25, lw=0)
        axes.set(yscale="log", ylabel="step interval (ms)")
        axes.set_title(f"rank {rank}", fontsize=7, weight="bold", color=colours[rank], pad=3)
    panels[0].margins(y=0.15)
    _plain_numbers(panels[0].yaxis)
    panels[-1].set(
        xlim=(-half_s, half_s), xlabel=f"time from the middle of rank {ranks[0]}'s pause (s)"
    )
    _message(drawn, _waiting_message(steps, longest, ranks, middle))
    return drawn


def _waiting_message(steps: pd.DataFrame, pause: pd.Series, ranks: list[int], at_ns: int) -> str:
    other = steps[steps["rank"] == ranks[-1]]
    during = other[(other["t_ns"] > at_ns) & (other["t_ns"] - other["interval_ns"] <= at_ns)]
    took = during["interval_ns"].max() / NS_PER_MS
    usual = other["interval_ns"].median() / NS_PER_MS
    return (
        f"While the worker of rank {ranks[0]} collects for "
        f"{words.ms(pause['duration_ns'] / NS_PER_MS)} (shaded), the step of rank {ranks[-1]} "
        f"takes {words.ms(took)}, where it usually takes {words.ms(usual)} (run {pause['run']})"
    )


# --- shared -------------------------------------------------------------------------------


def _runs(campaign: Campaign, arm: str) -> pd.Series:
    return campaign.runs.loc[campaign.runs["arm"] == arm, "run"]


def _message(drawn: Figure, sentence: str) -> None:
    """What the figure shows, over its whole width."""
    characters = int(16.5 * drawn.get_figwidth())
    drawn.suptitle(fill(sentence, characters), x=0.01, ha="left", fontsize=8)


def _look(campaign: Campaign, arm: str) -> dict[str, Any]:
    """The hue says the policy; its lightness and the kind of line what else sets the arm apart."""
    policies = campaign.runs.drop_duplicates("arm").set_index("arm")["policy"]
    settings = [label.removesuffix(name) for label, name in policies.items()]
    place = list(dict.fromkeys(settings)).index(arm.removesuffix(policies[arm]))
    return {
        "color": style.lighter(POLICY_COLOUR[policies[arm]], place),
        "linestyle": style.SETTING_LINE[place % len(style.SETTING_LINE)],
    }


def _legend_of_arms(
    drawn: Figure, campaign: Campaign, arms: list[str], more: list[Patch] | None = None
) -> None:
    lines: list[Line2D | Patch] = [
        Line2D([], [], lw=3, label=arm, **_look(campaign, arm)) for arm in arms
    ]
    handles = lines + (more or [])
    drawn.legend(handles=handles, loc="outside lower center", ncols=len(handles))


def _plain_numbers(axis: Axis) -> None:
    """A logarithmic axis labelled 10, 20, 50, 100; over more than two decades 10, 100, 1,000."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 300 else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.set_minor_locator(NullLocator())


from repro import figures_mechanism  # noqa: E402, F401 (they enter themselves)
