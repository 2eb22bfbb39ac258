"""Attributes long gaps between tokens to the pauses that overlap them.

A gap is attributed to a pause that overlaps it; the overlap expected by chance is reported beside
it. Chance is measured with the same pauses, shifted round the window by a random time.

Through HTTP the API server's output handler can block its event loop as well
(`repro.plugin.output_handler`). Such a hold counts as a cause of its own beside the collections.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from repro.analysis.tails import sample
from repro.dataset import Campaign
from repro.stats.bootstrap import Floats, Integers, weighted_quantiles
from repro.stats.spans import Spans, of_rows, overlap

FACTOR = 5.0
MIN_SHARE = 0.2
SHIFTS = 100
"""Random shifts of the pauses; the chance share is the mean over them."""

UNEXPLAINED = "unexplained"
NOBODY = -1
"""Rank and generation in the row of unexplained gaps."""

HANDLER = -2
"""In place of a generation: a hold by the front end's output handler."""

CAUSE = ["role", "rank", "generation"]
_COLUMNS = [
    *("run", "arm", "tail_steps"),
    *(*CAUSE, "steps", "share", "chance"),
]


@dataclass(frozen=True, kw_only=True)
class _Gaps:
    """The long gaps of one run, one array each."""

    start: Integers
    end: Integers
    needed: Floats  # overlap that explains the gap
    steps: Floats  # the gap's part in its step: its tokens over all tail tokens of the step


def attribute(campaign: Campaign, factor: float = FACTOR) -> pd.DataFrame:
    """The share of each run's tail that pauses explain, by process and generation.

    A gap belongs to the tail if it is longer than `factor` times the run's median ITL. The pause
    with the longest overlap explains it, if that overlap is at least `MIN_SHARE` of the gap's
    excess over the median. Where the tokens of one step differ in gap, they share the step.

    A hold of the event loop counts as a pause of generation `HANDLER`, unless the front end spent
    most of it collecting.

    Returns
    -------
    pandas.DataFrame
        One row per run and cause: `run`, `arm`, `tail_steps` (of the whole run), `role`, `rank`,
        `generation` (each with a pause in the run; last `unexplained`, -1, -1), `steps` (explained
        by it), `share` (of the tail's steps; NaN without a tail), `chance` (the share expected by
        coincidence).

    Raises
    ------
    ValueError
        If `factor` is not above 1.
    """
    if not factor > 1:
        raise ValueError(f"factor {factor} must be above 1: tail gaps are longer than the median")
    itl = sample(campaign, "itl")
    rng = np.random.default_rng(0)
    tables = []
    for run in campaign.runs.to_dict("records"):
        gaps = _tail(itl[itl["run"] == run["run"]], factor)
        pauses = _stops(campaign, run["run"])
        window = run["window_start_ns"], run["window_end_ns"]
        explained = _explained(gaps, pauses, window, rng.integers(*window, size=SHIFTS))
        tables.append(explained.assign(run=run["run"], arm=run["arm"]))
    if not tables:
        return pd.DataFrame(columns=_COLUMNS)
    return pd.concat(tables, ignore_index=True)[_COLUMNS]


def by_arm(attribution: pd.DataFrame) -> pd.DataFrame:
    """The rows of `attribute` pooled within each arm.

    Returns
    -------
    pandas.DataFrame
        `arm`, `role`, `rank`, `generation`, `tail_steps` (of the arm), `steps`, `share`, `chance`;
        `unexplained` last in each arm.
    """
    tails = attribution.drop_duplicates("run").groupby("arm")[["tail_steps"]].sum()
    parts = attribution.assign(chance=attribution["chance"] * attribution["tail_steps"])
    pooled = parts.groupby(["arm", *CAUSE])[["steps", "chance"]].sum().reset_index()
    pooled = pooled.merge(tails.reset_index(), on="arm")
    total = pooled["tail_steps"].where(pooled["tail_steps"] > 0)
    pooled = pooled.assign(share=pooled["steps"] / total, chance=pooled["chance"] / total)
    pooled = pooled.assign(last=pooled["role"] == UNEXPLAINED).sort_values(["arm", "last", *CAUSE])
    columns = [column for column in _COLUMNS if column != "run"]
    return pooled[columns].reset_index(drop=True)


def _stops(campaign: Campaign, run: str) -> pd.DataFrame:
    """The pauses of one run, and the holds of its event loop that are not collections."""
    pauses = campaign.pauses[campaign.pauses["run"] == run]
    holds = campaign.holds[campaign.holds["run"] == run]
    if holds.empty:
        return pauses
    start, end = of_rows(holds)
    collecting = overlap(of_rows(pauses[pauses["role"] == "frontend"]), start, end)
    holds = holds.loc[collecting <= (end - start) / 2, ["run", "start_ns", "duration_ns"]]
    return pd.concat([pauses, holds.assign(role="frontend", rank=0, generation=HANDLER)])


def _tail(itl: pd.DataFrame, factor: float) -> _Gaps:
    """The gaps of one run above `factor` times its median gap."""
    gap, count = itl["value_ns"].to_numpy("int64"), itl["count"].to_numpy("float64")
    median = weighted_quantiles(gap.astype("float64"), count, (0.5,))[0] if len(itl) else np.nan
    long = gap > factor * median
    end, step, tokens = itl["t_ns"].to_numpy("int64")[long], itl["step"][long], count[long]
    _, which = np.unique(step, return_inverse=True)
    return _Gaps(
        start=end - gap[long],
        end=end,
        needed=MIN_SHARE * (gap[long] - median),
        steps=tokens / np.bincount(which, tokens)[which] if len(end) else tokens,
    )


def _explained(
    gaps: _Gaps, pauses: pd.DataFrame, window: tuple[int, int], shifts: Integers
) -> pd.DataFrame:
    """The causes of one run, with the steps each explains and the share expected by chance."""
    causes, trains = _trains(pauses, at_least=gaps.needed.min(initial=np.inf))
    culprits = _culprits(gaps, trains)
    steps = _weigh(culprits, gaps.steps, len(causes))
    moved = (_culprits(gaps, _shift(trains, window, by)) for by in shifts)
    by_chance = np.mean([_weigh(found, gaps.steps, len(causes)) for found in moved], axis=0)
    total = gaps.steps.sum() or np.nan
    return causes.assign(
        tail_steps=round(gaps.steps.sum()),
        steps=steps,
        share=steps / total,
        chance=by_chance / total,
    )


def _trains(pauses: pd.DataFrame, at_least: float) -> tuple[pd.DataFrame, list[Spans]]:
    """The causes of one run, `unexplained` last, and of others the pauses `at_least` so long."""
    causes, trains = [], []
    for cause, group in pauses.sort_values("start_ns").groupby(CAUSE):
        causes.append(cause)
        trains.append(of_rows(group[group["duration_ns"] >= at_least]))
    return pd.DataFrame([*causes, (UNEXPLAINED, NOBODY, NOBODY)], columns=CAUSE), trains


def _shift(trains: list[Spans], window: tuple[int, int], by: int) -> list[Spans]:
    """The pauses that begin in the window, all shifted by one time, wrapped at its end."""
    first, last = window
    moved = []
    for start, end in trains:
        inside = (start >= first) & (start < last)
        shifted = first + (start[inside] - first + by) % (last - first)
        order = np.argsort(shifted)
        moved.append((shifted[order], (shifted + end[inside] - start[inside])[order]))
    return moved


def _culprits(gaps: _Gaps, trains: list[Spans]) -> Integers:
    """The number of the cause that explains each gap; the number of causes where none does."""
    culprit = np.full(len(gaps.start), len(trains), dtype=np.int64)
    most = np.zeros(len(gaps.start))
    for cause, train in enumerate(trains):
        overlap = _longest_overlap(gaps, train)
        better = (overlap >= gaps.needed) & (overlap > most)
        culprit[better], most[better] = cause, overlap[better]
    return culprit


def _longest_overlap(gaps: _Gaps, train: Spans) -> Floats:
    """The longest overlap of each gap with one pause, 0 where none overlaps."""
    start, end = train
    first = np.searchsorted(end, gaps.start, side="right")
    number = np.maximum(np.searchsorted(start, gaps.end) - first, 0)
    # One row per pair of a gap and a pause that touches it.
    gap = np.repeat(np.arange(len(number)), number)
    pause = np.arange(number.sum()) + np.repeat(first - number.cumsum() + number, number)
    shared = np.minimum(end[pause], gaps.end[gap]) - np.maximum(start[pause], gaps.start[gap])
    longest = np.zeros(len(number))
    np.maximum.at(longest, gap, shared)
    return longest


def _weigh(culprits: Integers, weights: Floats, causes: int) -> Floats:
    return np.bincount(culprits, weights, minlength=causes).astype(np.float64)
