"""Numbers of one launch: what pauses hit, the tail with and without them, what many ranks make."""

from __future__ import annotations

import numpy as np
import pandas as pd

from repro.analysis.tails import sample, step_quantiles
from repro.server.launches import Launch
from repro.stats.estimate import Estimate
from repro.theory.cpython_rule import FULL
from repro.theory.lockstep import Steps, predict

HIT_SHARE = 0.1
"""A pause counts as hitting a step from this share of the median step on: a shorter one is lost in
the noise of a step, and there are thousands of them."""

QUANTILES = (0.5, 0.99, 0.999)
RANKS = (1, 2, 4, 8, 16, 32, 64, 128)

CAUSE = ["role", "generation"]


def hits(launch: Launch) -> pd.DataFrame:
    """Which intervals overlap a pause long enough to matter, by cause.

    Parameters
    ----------
    launch : Launch
        One that `served`.

    Returns
    -------
    pandas.DataFrame
        One row an interval, indexed as `launch.campaign.itl`; one boolean column a pair of role
        and generation that hit any.
    """
    itl, pauses = launch.campaign.itl, launch.campaign.pauses
    long = pauses[pauses["duration_ns"] >= HIT_SHARE * itl["itl_ns"].median()]
    found = {}
    for cause, of_cause in long.groupby(CAUSE):
        hit = pd.Series(False, index=itl.index)
        for run, rows in itl.groupby("run", observed=True):
            hit[rows.index] = _overlapped(rows, of_cause[of_cause["run"] == run])
        if hit.any():
            found[cause] = hit
    columns = pd.MultiIndex.from_tuples(list(found), names=CAUSE)
    return pd.DataFrame(dict(enumerate(found.values())), index=itl.index).set_axis(columns, axis=1)


def _overlapped(rows: pd.DataFrame, pauses: pd.DataFrame) -> np.ndarray:
    """Which of one engine's intervals, ascending and apart, share any time with a pause."""
    end = rows["t_ns"].to_numpy("int64")
    start = end - rows["itl_ns"].to_numpy("int64")
    begun = pauses["start_ns"].to_numpy("int64")
    first = np.searchsorted(end, begun, side="right")
    last = np.searchsorted(start, begun + pauses["duration_ns"].to_numpy("int64"), side="left")
    edges = np.zeros(len(rows) + 1, dtype=np.int64)
    touched = last > first
    np.add.at(edges, first[touched], 1)
    np.add.at(edges, last[touched], -1)
    return edges[:-1].cumsum() > 0


def hit_shares(launch: Launch, found: pd.DataFrame) -> pd.DataFrame:
    """Steps and tokens that pauses hit, by cause.

    Parameters
    ----------
    launch : Launch
    found : pandas.DataFrame
        As `hits` returns.

    Returns
    -------
    pandas.DataFrame
        `role`, `generation`, `steps`, `tokens`, `step_share`, `token_share` (of all).
    """
    tokens = launch.campaign.itl["tokens"]
    rows = [
        {
            "role": role,
            "generation": generation,
            "steps": int(hit.sum()),
            "tokens": int(tokens[hit].sum()),
            "step_share": hit.mean(),
            "token_share": tokens[hit].sum() / tokens.sum(),
        }
        for (role, generation), hit in found.items()
    ]
    columns = ["role", "generation", "steps", "tokens", "step_share", "token_share"]
    return pd.DataFrame(rows, columns=columns)


def untouched(found: pd.DataFrame) -> pd.Series:
    """Which intervals no pause hit: booleans, indexed as `launch.campaign.itl`."""
    clean: pd.Series = ~found.any(axis=1)
    return clean


def tails(launch: Launch, found: pd.DataFrame, *, seed: int = 0) -> dict[str, list[Estimate]]:
    """`QUANTILES` of the interval between steps, in ns: of all, and of those no pause hit."""
    rows = sample(launch.campaign, "itl")
    clean = untouched(found)[rows.index]
    return {
        "all steps": step_quantiles(rows, QUANTILES, seed=seed),
        "steps that no pause hit": step_quantiles(rows[clean], QUANTILES, seed=seed),
    }


def more_ranks(launch: Launch, found: pd.DataFrame, *, seed: int = 0) -> dict[str, pd.DataFrame]:
    """`common_step.predict` for `RANKS` whose workers pause independently, and without the pauses.

    What a pause of the worker made longer than the median step is each rank's own; the rest of a
    step is common to all.
    """
    own = found.T.groupby(level="role").any().T.get("worker", pd.Series(False, index=found.index))
    common, paused = [], []
    for _, rows in launch.campaign.itl.groupby("run", observed=True):
        gap = rows["itl_ns"].to_numpy("int64")
        added = np.where(own[rows.index], np.maximum(gap - int(np.median(gap)), 0), 0)
        common.append(gap - added)
        paused.append(added)
    recorded = Steps(common=tuple(common), paused=tuple(paused))
    spared = Steps(common=tuple(common), paused=tuple(np.zeros_like(p) for p in paused))
    kinds = {"all steps": recorded, "steps that no pause hit": spared}
    return {
        name: predict(steps, ranks=RANKS, quantiles=QUANTILES, seed=seed)
        for name, steps in kinds.items()
    }


def worker_full(shares: pd.DataFrame) -> float:
    """The share of steps that full collections of workers hit."""
    rows = shares[(shares["role"] == "worker") & (shares["generation"] == FULL)]
    return float(rows["step_share"].sum())
