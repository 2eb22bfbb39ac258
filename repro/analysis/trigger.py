"""Full collections predicted by CPython's rule, compared with those observed in runs.

A prediction for one process uses these records of its run:

- **passes a step**: collections of every generation in the window, over its steps;
- **promoted**: what one generation-1 pass moves into the oldest generation. That is what the step
  it interrupts holds at that moment, and the survivors of the steps since the pass before: the
  objects that all requests keep in the process (census, under load and without), over the steps
  that a request lives;
- **long_lived_total**: what the last full collection left alive (census): the heap under load, or
  before load if that was the one of the freeze. See `_left`.

What a step holds is the recorded `allocations` of generation-1 passes, once for each pass that the
step had made by then, and what came from CPython's free lists, which is young but not counted: see
`_uncounted`. Older runs lack `allocations`: there it is the threshold, if the Python is 3.11 (a
pass comes at once), else it is inferred from the other arms of the campaign, never from the run
itself.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from repro.analysis.arms import is_frozen
from repro.analysis.passes import FIRST, LATER, Passes, passes_of
from repro.dataset import Campaign, in_window
from repro.theory.cpython_rule import (
    FREE_LISTS,
    FULL,
    passes_between_full,
    rule_for,
)

TOLERANCE = 0.1
"""Largest deviation of a correct prediction from the observation."""

WITHIN, OFF = "within 10%", "off by more than 10%"
NONE_DUE, TOO_SHORT, UNKNOWN = "none due, none came", "none came in the steps there were", "unknown"
UNLIKE = "no step is the average one"
"""As where an API server hands the engine its requests in bursts."""

BLOCK_TOKENS = 16
"""Tokens of a block of vLLM's KV cache on a GPU; a CPU's blocks are so long that few start one."""

SAME_STEP = ["comparable", "model", "load", "role"]
"""Columns in which processes that hold equally many containers per step agree."""

COLUMNS = [
    *("run", "arm", "role", "rank", "event", "held_from", "promoted"),
    *("predicted_steps", "observed_steps", "collections", "ratio", "verdict"),
]


def trigger_table(campaign: Campaign) -> pd.DataFrame:
    """Predicted and observed full collections of every process with recorded steps.

    Returns
    -------
    pandas.DataFrame
        One row per process and event, columns `COLUMNS`: `event` is `FIRST` (of frozen workers)
        or `LATER`; `held_from` is the source of the containers in hand;
        `predicted_steps` is infinite for never, NaN where nothing tells; `observed_steps` is the
        mean over `collections`, NaN where none came; `ratio` is predicted over observed.
        Left out: processes not counted before load, and Pythons without a rule.
    """
    heap = _heaps(campaign)
    # Taken apart once: a group of many ranks has hundreds of processes.
    steps = dict(iter(campaign.steps.groupby("run", observed=True)))
    pauses = dict(iter(campaign.pauses.groupby(["run", "pid"], observed=True)))
    heap["seen"] = [
        passes_of(
            row,
            steps.get(row["run"], campaign.steps[:0]),
            pauses.get((row["run"], row["pid"]), campaign.pauses[:0]),
        )
        for row in heap.to_dict("records")
    ]
    heap = heap[heap["seen"].notna()]
    lifetimes = heap["run"].astype(object).map(_lifetimes(campaign)).astype(float)
    heap["kept"] = heap["kept_in_all"] / lifetimes.fillna(math.inf)
    heap["inferred"] = [_inferred(row) for row in heap.to_dict("records")]
    rows = []
    for row in heap.to_dict("records"):
        for event in (FIRST, LATER) if row["is_frozen"] and row["role"] == "worker" else (LATER,):
            held, held_from = _held(row, heap, event)
            promoted = held + _kept_between(row) if row["seen"].per_step else 0.0
            rows.append(
                {name: row[name] for name in ("run", "arm", "role", "rank")}
                | {"event": event, "held_from": held_from, "promoted": promoted}
                | _outcome(row, event, promoted)
            )
    return pd.DataFrame(rows, columns=COLUMNS)


# --- what a run recorded ------------------------------------------------------------------


def _heaps(campaign: Campaign) -> pd.DataFrame:
    """One row per process counted before load, with its heap then and later and its parameters.

    `old` is the heap before load, `grown` what it has more under load, and `kept_in_all` the same
    where it is known to be what requests in flight keep, else NaN.
    """
    census = campaign.census[campaign.census["point"] == "window-start"]
    about = ["run", "arm", "python", "comparable", "model", "load", "concurrency", "gpu_name"]
    about += ["switch_s", "backlog", "window_start_ns", "window_end_ns"]
    census = census.assign(old=census["tracked"] + census["frozen"], is_frozen=is_frozen(census))
    heap = census.merge(campaign.runs[about], on="run")
    key = ["run", "role", "rank", "pid"]
    for point, suffix in (("window-end", "_end"), ("shutdown", "_idle")):
        counted = campaign.census.loc[
            campaign.census["point"] == point, [*key, "tracked", "frozen"]
        ]
        heap = heap.merge(counted, on=key, how="left", suffixes=("", suffix))
    # The first steps free lists that warm-up has left, on the CPU backend one for each of
    # `max_num_seqs`. Before load they are still there, so that the heap without requests is the
    # one counted at shutdown; where the heap is frozen, they are out of sight. With a backlog no
    # place falls vacant, and they stay.
    shutdown = heap["tracked_idle"] + heap["frozen_idle"] - heap["frozen"]
    busy = _ended_under_load(heap)
    out_of_sight = heap["is_frozen"] | shutdown.isna() | (heap["backlog"] > 0)
    idle = heap["tracked"].where(out_of_sight | busy, shutdown)
    # What `freeze-again` has frozen since is still kept.
    frozen_since = (heap["frozen_end"] - heap["frozen"]).clip(lower=0)
    heap["grown"] = (heap["tracked_end"] + frozen_since - idle).clip(lower=0).fillna(0)
    heap["kept_in_all"] = heap["grown"].mask(busy)
    # A period of a cross-over begins under load: only of a worker frozen there is it known what
    # the requests keep, all that is tracked.
    told = heap["is_frozen"] & (heap["role"] == "worker")
    return heap[told | (heap["switch_s"] == 0)].copy()


def _ended_under_load(heap: pd.DataFrame) -> pd.Series:
    """Whether requests were in flight when a process was counted at its shutdown."""
    before, under_load, ended = (
        heap[f"tracked{suffix}"] + heap[f"frozen{suffix}"] for suffix in ("", "_end", "_idle")
    )
    return (ended - before > heap["concurrency"]) & (under_load - ended < heap["concurrency"])


def _lifetimes(campaign: Campaign) -> dict[str, float]:
    """Steps that a worker keeps a request, by run: the mean.

    From its first token to its last, and one more: vLLM schedules a step before it knows that the
    one before was the request's last. Not its tokens, of which a step may bring several; nor the
    time it waited to be scheduled, in which no process keeps it as a request in flight. A run
    through HTTP, whose client sees tokens when the API server gets round to them, is taken to have
    brought one token a step, and so is one whose requests were left out.
    """
    loaded = campaign.runs[campaign.runs["output_tokens"] > 0]
    direct = loaded.loc[loaded["client"] != "serve", "run"]
    requests = in_window(campaign, campaign.requests).dropna(subset="tpot_ns")
    requests = requests[requests["run"].isin(direct)]
    found = dict(zip(loaded["run"].astype(str), loaded["answer_tokens"] + 1, strict=True))
    for run, own in requests.groupby("run", observed=True):
        steps = campaign.steps[campaign.steps["run"] == run]
        entries = np.sort(steps["start_ns"])
        first = own["t_ns"] - own["tpot_ns"] * (own["output_tokens"] - 1)
        lived = np.searchsorted(entries, own["t_ns"]) - np.searchsorted(entries, first)
        found[str(run)] = float(lived.mean()) / max(1, steps["rank"].nunique()) + 2
    return found


def kept_a_request(campaign: Campaign) -> float:
    """Objects a worker has more for each request in flight, on average; NaN if not counted."""
    heap = _heaps(campaign)
    workers = heap[(heap["role"] == "worker") & heap["tracked_end"].notna()]
    return float((workers["grown"] / workers["concurrency"]).mean())


# --- what a step holds --------------------------------------------------------------------


def _held(row: dict[str, Any], heap: pd.DataFrame, event: str) -> tuple[float, str]:
    """Containers in hand at a generation-1 pass, and what tells.

    What the interrupted step has made to stay is among them, and among the survivors again: at
    most one step's, some hundredths of what is promoted.
    """
    seen: Passes = row["seen"]
    if not math.isnan(seen.held):
        return seen.held * seen.place[event] + _uncounted(row), "recorded"
    if rule_for(row["python"]).inside_allocation:
        return (seen.thresholds[0] + 1) * seen.place[event] + _uncounted(row), "threshold"
    alike = (heap[SAME_STEP] == pd.Series(row)[SAME_STEP]).all(axis=1) & (heap["arm"] != row["arm"])
    told = float(heap.loc[alike, "inferred"].median())
    return told, "nothing tells" if math.isnan(told) else "other arms"


def _uncounted(row: dict[str, Any]) -> float:
    """Containers of a step that came from CPython's free lists.

    All of the lists kept there, and of the tuples those that hold the new blocks of KV cache: one
    per request that starts a block (`CachedRequestData.new_block_ids` of vLLM).
    """
    blocks: float = row["seen"].tokens / BLOCK_TOKENS if row["gpu_name"] else 0.0
    return FREE_LISTS + blocks


def _inferred(row: dict[str, Any]) -> float:
    """Containers a step must have held for the quarter rule to fire when it did."""
    seen: Passes = row["seen"]
    if row["is_frozen"] and row["role"] == "worker" and len(seen.full):
        event, older = FIRST, float(seen.before_first)
    elif not row["is_frozen"] and len(seen.full) > 1:
        event, older = LATER, float(np.diff(seen.full).mean()) * seen.older_per_step
    else:
        return math.nan
    if older <= seen.thresholds[FULL] + 1:  # then it was not the quarter that it waited for
        return math.nan
    quarter: float = _left(row, event) / 4 / older
    return quarter - _kept_between(row)


def _kept_between(row: dict[str, Any]) -> float:
    """Born between two generation-1 passes and still alive: at most what all requests keep."""
    return float(min(row["kept"] / row["seen"].older_per_step, row["kept_in_all"]))


# --- predicted against observed -----------------------------------------------------------


def _outcome(row: dict[str, Any], event: str, promoted: float) -> dict[str, Any]:
    seen: Passes = row["seen"]
    observed = seen.full[:1] if event == FIRST else np.diff(seen.full)
    predicted = math.inf
    if seen.per_step:
        due = _due(seen, _left(row, event), promoted)
        predicted = due / seen.per_step + (event == FIRST) * seen.quiet
    mean = float(observed.mean()) if len(observed) else math.nan
    return {
        "predicted_steps": predicted,
        "observed_steps": mean,
        "collections": len(observed),
        "ratio": predicted / mean,
        "verdict": _verdict(predicted, mean, _waited(row, event)) if seen.alike else UNLIKE,
    }


def _left(row: dict[str, Any], event: str) -> float:
    """Objects that the last full collection left alive; a quarter of it must be promoted.

    A freeze makes one over the whole heap before load. Requests then start all at once. From there
    on as many have started as at the steady rate, and half of those in flight besides (renewal
    theory). What these keep need not be promoted any more: as if four times as much were missing.
    A cross-over freezes under load, so nothing starts at once.
    After the first collection, of a frozen heap only what was made since the freeze is left.
    """
    told = not row["switch_s"] and not math.isnan(row["kept_in_all"])
    at_once = row["kept_in_all"] / 2 if told else 0.0
    before: float = row["old"] - 4 * at_once
    return before if event == FIRST or math.isnan(row["tracked_end"]) else row["tracked_end"]


def _due(seen: Passes, left: float, promoted: float) -> float:
    """Passes to the next full one. What is promoted may be unknown if any amount were enough."""
    at_least = seen.thresholds[0] + 1.0  # else the pass would not have been due
    known = promoted if not math.isnan(promoted) else at_least
    due = passes_between_full(known, long_lived_total=left, thresholds=seen.thresholds)
    soonest = passes_between_full(1.0, long_lived_total=0, thresholds=seen.thresholds)
    return due if due == soonest or not math.isnan(promoted) else math.nan


def _waited(row: dict[str, Any], event: str) -> int:
    """Steps at the end of the run in which the event could have come, and did not."""
    seen: Passes = row["seen"]
    if event == FIRST:
        return seen.steps
    if len(seen.full):
        return seen.steps - int(seen.full[-1])
    return 0 if row["is_frozen"] and row["role"] == "worker" else seen.steps


def _verdict(predicted: float, observed: float, waited: int) -> str:
    if math.isnan(predicted):
        return UNKNOWN
    if not math.isnan(observed):
        return WITHIN if abs(predicted / observed - 1) <= TOLERANCE else OFF
    if math.isinf(predicted):
        return NONE_DUE
    return TOO_SHORT if predicted * (1 + TOLERANCE) > waited else OFF
