"""CPython's rule held against real runs: when full collections were due, and when they came.

What decides it, of one process, from what its run recorded:

- **passes a step**: collections of every generation in the window, over its steps;
- **promoted**: what one generation-1 pass moves into the oldest generation. That is what the step
  it interrupts holds at that moment, and the survivors of the steps since the pass before: the
  objects a request keeps in the process (census, before and under load) times the requests
  finished a step;
- **long_lived_total**: what the last full collection left alive (census). A freeze makes one over
  the whole heap first, and only the next one sees how little is left.

What a step holds is the recorded `allocations` of generation-1 passes. Older runs lack it: there it
is the threshold, if the Python is 3.11 (a pass comes at once), else it is inferred from the other
arms of the campaign, never from the run itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from repro.analysis.arms import is_frozen
from repro.analysis.collector import FULL, UnknownCollector, passes_between_full, rule_for
from repro.dataset import Campaign, in_window

TOLERANCE = 0.1
"""How far a prediction may lie from what was observed."""

FIRST, LATER = "first after the freeze", "from one to the next"

WITHIN, OFF = "within 10%", "off by more than 10%"
NONE_DUE, TOO_SHORT, UNKNOWN = "none due, none came", "none came in the steps there were", "unknown"

ALIKE = ["comparable", "model", "load", "role"]
"""What processes have in common that hold as much in a step."""

COLUMNS = [
    *("run", "arm", "role", "rank", "event", "held_from", "passes_per_step", "promoted"),
    *("predicted_steps", "observed_steps", "collections", "ratio", "verdict"),
]


@dataclass(frozen=True, kw_only=True)
class Passes:
    """The collections of one process of one run, counted in its own steps.

    Attributes
    ----------
    thresholds : tuple of int
        In force before load.
    per_step : float
        Collections of all generations a step, in the measured window.
    steps : int
        Lived through, ramp included.
    full : ndarray of int, shape (n,)
        Steps entered when each full collection began.
    before_first : int
        Generation-1 passes before the first of them.
    quiet : float
        Steps of the ramp beyond those that its passes account for: too few requests, no pass.
    held : float
        Containers allocated and not yet freed at a generation-1 pass; NaN where not recorded.
    """

    thresholds: tuple[int, int, int]
    per_step: float
    steps: int
    full: npt.NDArray[np.int64]
    before_first: int
    quiet: float
    held: float

    @property
    def older_per_step(self) -> float:
        """Generation-1 passes a step, as the thresholds make them."""
        return self.per_step / (self.thresholds[1] + 2)


def trigger_table(campaign: Campaign) -> pd.DataFrame:
    """Predicted against observed full collections of every process that has steps to count by.

    Parameters
    ----------
    campaign : Campaign

    Returns
    -------
    pandas.DataFrame
        One row a process and event, columns `COLUMNS`: `event` is `FIRST` (of workers that
        were frozen) or `LATER`; `held_from` says where the containers in hand were taken from;
        `predicted_steps` is infinite for never, NaN where nothing tells; `observed_steps` is the
        mean over `collections`, NaN where none came; `ratio` is predicted over observed.
        Left out: processes not counted before load, and Pythons without a rule.
    """
    heap = _heaps(campaign)
    heap["seen"] = [_passes(campaign, row) for row in heap.to_dict("records")]
    heap = heap[heap["seen"].notna()]
    heap["kept"] = _kept_per_step(campaign, heap)
    heap["kept_in_all"] = _kept(heap) * heap["concurrency"]
    heap["inferred"] = [_inferred(row) for row in heap.to_dict("records")]
    rows = []
    for row in heap.to_dict("records"):
        held, held_from = _held(row, heap)
        promoted = held + _kept_between(row) if row["seen"].per_step else 0.0
        for event in (FIRST, LATER) if row["frozen"] and row["role"] == "worker" else (LATER,):
            rows.append(
                {name: row[name] for name in ("run", "arm", "role", "rank")}
                | {"event": event, "held_from": held_from, "promoted": promoted}
                | {"passes_per_step": row["seen"].per_step, **_outcome(row, event, promoted)}
            )
    return pd.DataFrame(rows, columns=COLUMNS)


# --- what a run recorded ------------------------------------------------------------------


def _heaps(campaign: Campaign) -> pd.DataFrame:
    """One row a process counted before load: what it then held, and its run's parameters."""
    census = campaign.census[campaign.census["point"] == "window-start"]
    about = ["run", "arm", "python", "comparable", "model", "load", "concurrency"]
    heap = census.assign(old=census["tracked"] + census["frozen"], frozen=is_frozen(census)).merge(
        campaign.runs[about], on="run"
    )
    under_load = campaign.census[campaign.census["point"] == "window-end"]
    key = ["run", "role", "rank", "pid"]
    return heap.merge(under_load[[*key, "tracked"]], on=key, how="left", suffixes=("", "_end"))


def _passes(campaign: Campaign, row: dict[str, Any]) -> Passes | None:
    """The passes of one process; None where there is no step to count by, or no rule."""
    try:
        rule_for(row["python"])
    except UnknownCollector:
        return None
    steps = campaign.steps[campaign.steps["run"] == row["run"]]
    of_rank = steps[steps["rank"] == row["rank"]]
    steps = steps if of_rank.empty else of_rank
    taken = len(in_window(campaign, steps))
    if not taken:
        return None
    entries = np.sort(steps["start_ns"].to_numpy("int64"))
    pauses = campaign.pauses
    pauses = pauses[(pauses["run"] == row["run"]) & (pauses["pid"] == row["pid"])]
    pauses = pauses[pauses["start_ns"].between(entries[0], entries[-1])]
    inside = in_window(campaign, pauses)
    full = np.sort(pauses.loc[pauses["generation"] == FULL, "start_ns"].to_numpy("int64"))
    older = pauses.loc[pauses["generation"] == 1, "start_ns"]
    start = int(campaign.runs.set_index("run").loc[row["run"], "window_start_ns"])
    ramp, passes = (entries < start).sum(), (pauses["start_ns"] < start).sum()
    per_step = len(inside) / taken if row["enabled"] else 0.0
    return Passes(
        thresholds=(row["threshold_0"], row["threshold_1"], row["threshold_2"]),
        per_step=per_step,
        steps=len(entries),
        full=np.searchsorted(entries, full, side="right").astype(np.int64),
        before_first=int((older < full[0]).sum()) if len(full) else 0,
        quiet=max(0.0, float(ramp - passes / per_step)) if per_step else 0.0,
        held=float(inside.loc[inside["generation"] == 1, "allocations"].mean()),
    )


def _kept_per_step(campaign: Campaign, heap: pd.DataFrame) -> pd.Series:
    """Objects born a step that stay as long as their requests do."""
    finished = in_window(campaign, campaign.requests).groupby("run", observed=True).size()
    steps = in_window(campaign, campaign.steps)
    taken = steps.groupby("run", observed=True).size()
    taken /= steps.groupby("run", observed=True)["rank"].nunique()
    kept: pd.Series = _kept(heap) * heap["run"].map((finished / taken).to_dict()).astype(float)
    return kept.fillna(0)


def _kept(heap: pd.DataFrame) -> pd.Series:
    """Objects a process keeps for each request in flight: its heap under load, less before it."""
    kept: pd.Series = (heap["tracked_end"] - heap["tracked"]).clip(lower=0) / heap["concurrency"]
    return kept


def kept_a_request(campaign: Campaign) -> float:
    """Objects that a worker keeps for each request in flight, over all workers on average.

    Returns
    -------
    float
        NaN where no worker was counted before and under load.
    """
    heap = _heaps(campaign)
    return float(_kept(heap[heap["role"] == "worker"]).mean())


# --- what a step holds --------------------------------------------------------------------


def _held(row: dict[str, Any], heap: pd.DataFrame) -> tuple[float, str]:
    """Containers in hand at a generation-1 pass, and what tells.

    Where a step makes several passes, a pass also meets what those before it moved up.
    """
    seen: Passes = row["seen"]
    several = (1 + max(1.0, seen.per_step)) / 2
    if not math.isnan(seen.held):
        return seen.held * several, "recorded"
    if rule_for(row["python"]).inside_allocation:
        return (seen.thresholds[0] + 1) * several, "threshold"
    alike = (heap[ALIKE] == pd.Series(row)[ALIKE]).all(axis=1) & (heap["arm"] != row["arm"])
    told = float(heap.loc[alike, "inferred"].median())
    return told, "nothing tells" if math.isnan(told) else "other arms"


def _inferred(row: dict[str, Any]) -> float:
    """What a step must have held for the quarter rule to fire when it did."""
    seen: Passes = row["seen"]
    if row["frozen"] and row["role"] == "worker" and len(seen.full):
        older = float(seen.before_first)
    elif not row["frozen"] and len(seen.full) > 1:
        older = float(np.diff(seen.full).mean()) * seen.older_per_step
    else:
        return math.nan
    quarter: float = row["old"] / 4 / older if older > seen.thresholds[FULL] + 1 else math.nan
    return quarter - _kept_between(row)


def _kept_between(row: dict[str, Any]) -> float:
    """Born between two generation-1 passes and still alive: at most what all requests keep."""
    return float(min(row["kept"] / row["seen"].older_per_step, row["kept_in_all"]))


# --- predicted against observed -----------------------------------------------------------


def _outcome(row: dict[str, Any], event: str, promoted: float) -> dict[str, Any]:
    seen: Passes = row["seen"]
    observed = seen.full[:1] if event == FIRST else np.diff(seen.full)
    # After a full collection of a frozen heap only what was made since is left to count.
    left = row["tracked_end"] if row["frozen"] and event == LATER else row["old"]
    predicted = math.inf
    if seen.per_step:
        predicted = _due(seen, left, promoted) / seen.per_step + (event == FIRST) * seen.quiet
    mean = float(observed.mean()) if len(observed) else math.nan
    return {
        "predicted_steps": predicted,
        "observed_steps": mean,
        "collections": len(observed),
        "ratio": predicted / mean,
        "verdict": _verdict(seen, event, predicted, mean),
    }


def _due(seen: Passes, left: float, promoted: float) -> float:
    """Passes to the next full one. What is promoted may be unknown if any amount were enough."""
    at_least = seen.thresholds[0] + 1.0  # else the pass would not have been due
    known = promoted if not math.isnan(promoted) else at_least
    due = passes_between_full(known, long_lived_total=left, thresholds=seen.thresholds)
    soonest = passes_between_full(1.0, long_lived_total=0, thresholds=seen.thresholds)
    return due if due == soonest or not math.isnan(promoted) else math.nan


def _verdict(seen: Passes, event: str, predicted: float, observed: float) -> str:
    if math.isnan(predicted):
        return UNKNOWN
    if not math.isnan(observed):
        return WITHIN if abs(predicted / observed - 1) <= TOLERANCE else OFF
    since = seen.steps if event == FIRST or not len(seen.full) else seen.steps - int(seen.full[-1])
    if math.isinf(predicted):
        return NONE_DUE
    return TOO_SHORT if predicted * (1 + TOLERANCE) > since else OFF
