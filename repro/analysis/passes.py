"""Collections of one process, of any generation, counted in its own steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from repro.theory.cpython_rule import FULL, UnknownCollector, rule_for

FIRST, LATER = "first after the freeze", "from one to the next"

BURST = 3.0
"""Steps are unlike if every tenth holds more than this many times the tokens of the median."""


@dataclass(frozen=True, kw_only=True)
class Passes:
    """The collections of one process of one run, counted in its own steps."""

    thresholds: tuple[int, int, int]  # in force before load
    per_step: float  # collections of all generations a step, in the measured window
    steps: int  # lived through, ramp included
    full: npt.NDArray[np.int64]  # (n,) steps entered when each full collection began
    before_first: int  # generation-1 passes before the first of them
    quiet: float  # steps of the ramp beyond those that its passes account for: too few requests
    held: float  # allocated and not yet freed at a generation-1 pass; NaN where not recorded
    # Which pass of its step a generation-1 pass is, from 1, on average before the first full
    # collection and between full ones: it also meets what those before it moved up. Where a whole
    # number of passes comes a step, it is the same until a full one shifts it.
    place: dict[str, float]
    tokens: float  # of the median step in the window
    alike: bool  # whether steps of the window hold about as much as one another

    @property
    def older_per_step(self) -> float:
        """Generation-1 passes a step, as the thresholds make them."""
        return self.per_step / (self.thresholds[1] + 2)


def passes_of(row: dict[str, Any], steps: pd.DataFrame, pauses: pd.DataFrame) -> Passes | None:
    """The passes of one process; None without a rule, steps or generation-0 passes to count by.

    Parameters
    ----------
    row : dict
        Of the process: `python`, `rank`, `enabled`, `threshold_0` to `threshold_2`, and
        `window_start_ns` and `window_end_ns` of its run.
    steps : pandas.DataFrame
        Of its run.
    pauses : pandas.DataFrame
        Its own.
    """
    try:
        rule_for(row["python"])
    except UnknownCollector:
        return None
    start, end = row["window_start_ns"], row["window_end_ns"]
    of_rank = steps[steps["rank"] == row["rank"]]
    steps = steps if of_rank.empty else of_rank
    tokens = steps.loc[steps["start_ns"].between(start, end, inclusive="left"), "tokens"]
    taken = len(tokens)
    if not taken:
        return None
    # Collections after the window are asked for, to count what was never reclaimed.
    entries = np.sort(steps.loc[steps["start_ns"] < end, "start_ns"].to_numpy("int64"))
    pauses = pauses[pauses["start_ns"].between(entries[0], entries[-1])]
    inside = pauses[pauses["start_ns"] >= start]
    generations = set(inside["generation"])
    if 1 in generations and 0 not in generations:  # left out of data/: nothing to count passes by
        return None
    full = np.sort(pauses.loc[pauses["generation"] == FULL, "start_ns"].to_numpy("int64"))
    older = pauses.loc[pauses["generation"] == 1, "start_ns"]
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
        place=_places(pauses, entries, full, most=max(1, round(per_step))),
        tokens=float(tokens.median()),
        alike=bool(tokens.quantile(0.9) <= BURST * tokens.median()),
    )


def _places(
    pauses: pd.DataFrame,
    entries: npt.NDArray[np.int64],
    full: npt.NDArray[np.int64],
    *,
    most: int,
) -> dict[str, float]:
    """See `Passes.place`; 1 where no pass was seen. `full`: starts of the full ones, in ns.

    A step makes `most` passes: one more before the next entry is of the next step's containers,
    which can be there before the entry.
    """
    pauses = pauses.sort_values("start_ns")
    step = np.searchsorted(entries, pauses["start_ns"])
    place = np.minimum(np.arange(len(step)) - np.searchsorted(step, step) + 1, most)
    older = (pauses["generation"] == 1).to_numpy()
    began, place = pauses["start_ns"].to_numpy()[older], place[older]
    first, last = (full[0], full[-1]) if len(full) else (math.inf, math.inf)
    early = began < first
    between = (began >= first) & (began <= last) if len(full) > 1 else began >= 0
    return {
        event: float(place[of].mean()) if of.any() else 1.0
        for event, of in ((FIRST, early), (LATER, between))
    }
