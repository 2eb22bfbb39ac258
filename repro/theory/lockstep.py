"""Steps of many ranks in lock-step, predicted from the steps and pauses of one rank.

Ranks that share experts meet in every step, so a step of the group lasts as long as that of its
slowest rank, and a pause of one rank is a stalled step of all:

    step of the group = common part + longest pause among the ranks.

Full collections come as bursts. All ranks count from the same start at the same rate, so every rank
collects once per `period`, at an offset of a few steps from the others that stays the same from
burst to burst. Ranks of one offset share a stalled step. Offsets are drawn from those of measured
groups; without any they are taken as uniform over `SPREAD` steps, which gives more distinct stalled
steps than measured groups had.

One rank cannot tell how its ordinary step grows with the number of ranks: put the steps of a group
without long pauses in as `common`. The model leaves out what a stall does to the steps after it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from repro.stats.bootstrap import (
    BLOCK_STEPS,
    EXPECTED_BEYOND,
    MIN_BLOCKS,
    Floats,
    Integers,
    interval,
    steps_needed,
)

RANKS = (1, 2, 4, 8, 16, 32, 64, 128)
QUANTILES = (0.5, 0.99, 0.995, 0.999)
RESAMPLES = 150

SPREAD = 12
"""Steps from one generation-1 pass to the next at one pass per step and CPython's thresholds. A
full collection replaces such a pass."""

UNIFORM = (np.arange(SPREAD),)
"""Offsets of ranks where none were measured."""

LENGTH = 5_000
"""Steps of a predicted measurement: as many as P99.9 needs."""

STALLED = 2.0
"""A step that lasts this many times the usual one is stalled."""

_MS = 1e6


class LockstepError(ValueError):
    """Steps or parameters from which no group can be predicted; the message says what to change."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Steps:
    """The steps of one rank, taken apart: one array per run, in ns, in order. Equal if the same."""

    common: tuple[Integers, ...]  # what each step would have taken without its worker's pauses
    paused: tuple[Integers, ...]  # what the pauses added to it
    # Steps from one of the rank's pauses to its next, where the runs show it. None: the pauses are
    # counted, and as many are expected in as many steps.
    period: float | None = None
    # per measured group, steps from a burst's first pause to each rank's
    offsets: tuple[Integers, ...] = UNIFORM

    def __len__(self) -> int:
        return sum(map(len, self.common))

    @property
    def whole(self) -> tuple[Integers, ...]:
        """The steps as they were measured."""
        return tuple(c + p for c, p in zip(self.common, self.paused, strict=True))

    @functools.cached_property
    def usual(self) -> float:
        """The median step without its pauses."""
        return float(np.median(np.concatenate(self.common)))

    @property
    def pauses(self) -> Integers:
        """Time that each pause added to its step."""
        added = np.concatenate(self.paused)
        return added[added > 0]

    @property
    def stalls(self) -> int:
        """Steps that a pause made `STALLED` times as long as usual."""
        return int((self.pauses >= (STALLED - 1) * self.usual).sum())


LIFETIME = ("seconds", "longest_ms", "p99_ms")
"""Quantities of one request's life, by `lifetimes`."""


@dataclass(frozen=True, kw_only=True)
class Replicates:
    """Many simulated measurements of one group."""

    quantiles: Floats  # (replicates, quantiles) of the step time, in ns
    longest: Floats  # gap of a client, see `longest_gap`
    mean: Floats  # step time, in ns
    stalled: Floats  # share of steps at least `STALLED` times as long as the median


def stalled_steps(ranks: int) -> float:
    """Steps that one burst stalls, on average, if offsets are uniform over `SPREAD` steps."""
    return float(SPREAD * (1 - (1 - 1 / SPREAD) ** ranks))


def longest_gap(steps: Floats, usual: Floats) -> Floats:
    """The longest gap of any client over (measurements, steps) of a group with `usual` steps.

    A rank that collects in the step after another's stall has not delivered that step's tokens
    yet: its clients see both stalls as one gap, which is a usual step shorter than their sum.
    """
    stalled = steps >= STALLED * usual[:, None]
    longest: Floats = steps.max(axis=1)
    row, at = np.nonzero(stalled[:, 1:] & stalled[:, :-1])
    np.maximum.at(longest, row, steps[row, at] + steps[row, at + 1] - usual[row])
    return longest


@functools.lru_cache(maxsize=64)
def simulate(
    steps: Steps,
    ranks: int,
    *,
    quantiles: tuple[float, ...] = QUANTILES,
    length: int = LENGTH,
    seed: int = 0,
) -> Replicates:
    """`RESAMPLES` measurements of a group, on resampled runs; `LockstepError` without a rank."""
    if not ranks >= 1:
        raise LockstepError(f"ranks={ranks} must be 1 or more")
    group = _common_parts(steps, length, seed)
    rng = np.random.default_rng([seed, 1])  # apart from the common parts, which all widths share
    if len(steps.pauses):
        group = group + np.stack([_bursts(steps, ranks, length, rng) for _ in range(RESAMPLES)])
    found = np.quantile(group, [0.5, *quantiles], axis=1)
    return Replicates(
        quantiles=found[1:].T,
        longest=longest_gap(group, found[0]),
        mean=group.mean(axis=1),
        stalled=(group >= STALLED * found[0][:, None]).mean(axis=1),
    )


def predict(
    steps: Steps,
    *,
    ranks: Sequence[int] = RANKS,
    quantiles: Sequence[float] = QUANTILES,
) -> pd.DataFrame:
    """Quantiles of the step time, which is the ITL, of groups of ranks.

    Returns
    -------
    pandas.DataFrame
        One row per number of ranks and quantile: `ranks`, `quantile`, `value_ms` (median of the
        simulated measurements), `low_ms`, `high_ms` (95% of them), `supported` (bool: as many
        steps, or pauses, as the value rests on were measured).
    """
    rows = []
    for number in ranks:
        found = simulate(steps, number, quantiles=tuple(quantiles)).quantiles / _MS
        values = zip(quantiles, np.median(found, axis=0), *interval(found), strict=True)
        for quantile, value, low, high in values:
            if value >= STALLED * steps.usual / _MS:
                enough = steps.stalls >= EXPECTED_BEYOND
            else:
                enough = len(steps) >= steps_needed(quantile)
            rows.append((number, quantile, value, low, high, enough))
    columns = ["ranks", "quantile", "value_ms", "low_ms", "high_ms", "supported"]
    return pd.DataFrame(rows, columns=columns)


def burst(steps: Steps, ranks: int, tokens: int) -> pd.DataFrame:
    """One burst of a group of ranks, simulated many times, and requests of `tokens` tokens in it.

    Returns
    -------
    pandas.DataFrame
        One row per replicate: `stalled_steps`, `length_s` (beginning of the first stalled step to
        the end of the last), `stall_s` (all time that the pauses add), and `LIFETIME` (median over
        the requests that live through a stalled step).

    Raises
    ------
    LockstepError
        If one rank made no full collection.
    """
    if len(steps.pauses) == 0:
        raise LockstepError("one rank made no full collection: there is no burst to predict")
    rng = np.random.default_rng(0)
    span = max(int(group.max()) for group in steps.offsets) + 1
    added = np.stack([_added(steps, ranks, np.zeros(1), span, rng) for _ in range(RESAMPLES)])
    stalled = added > 0
    first, last = stalled.argmax(axis=1), span - stalled[:, ::-1].argmax(axis=1)
    stall_s = added.sum(axis=1) / 1e9
    # Before and after the burst as many usual steps as a request lives.
    group = steps.usual + np.pad(added, [(0, 0), (tokens, tokens)])
    lived = [lifetimes(one, tokens, steps.usual) for one in group]
    none = np.full(len(LIFETIME), np.nan)  # of pauses too short to stall a step
    inside = [np.median(seen[:, met], axis=1) if met.any() else none for met, seen in lived]
    return pd.DataFrame(
        {
            "stalled_steps": stalled.sum(axis=1),
            "length_s": (last - first) * steps.usual / 1e9 + stall_s,
            "stall_s": stall_s,
        }
        | dict(zip(LIFETIME, np.transpose(inside), strict=True))
    )


def lifetimes(
    steps: Floats | Integers, tokens: int, usual: float
) -> tuple[npt.NDArray[np.bool_], Floats]:
    """The request that would begin at each of (n,) steps, in ns, and get a token in each.

    Returns
    -------
    (requests,) array of bool
        Whether it lives through a stalled step.
    (3, requests) array
        As `LIFETIME` names them: first step to last in s, and in ms the longest and the P99 of its
        own gaps.
    """
    lived = np.lib.stride_tricks.sliding_window_view(steps, min(tokens, len(steps)))
    longest = lived.max(axis=1)
    p99 = np.quantile(lived, 0.99, axis=1)
    seen = np.stack([lived.sum(axis=1) / 1e9, longest / _MS, p99 / _MS])
    return longest >= STALLED * usual, seen


@functools.lru_cache(maxsize=4)
def _common_parts(steps: Steps, length: int, seed: int) -> Floats:
    """The common part of each simulated measurement: runs drawn again, then blocks of steps."""
    rng = np.random.default_rng(seed)
    size = max(1, min(BLOCK_STEPS, *(len(part) // MIN_BLOCKS for part in steps.common)))
    blocks = [part[: len(part) // size * size].reshape(-1, size) for part in steps.common]
    found = np.empty((RESAMPLES, length))
    for row in range(RESAMPLES):
        runs = rng.integers(len(blocks), size=len(blocks))
        drawn = [blocks[run][rng.integers(len(blocks[run]), size=len(blocks[run]))] for run in runs]
        played = rng.integers(sum(map(len, drawn)), size=math.ceil(length / size))
        found[row] = np.concatenate(drawn)[played].ravel()[:length]
    return found


def _bursts(steps: Steps, ranks: int, length: int, rng: np.random.Generator) -> Floats:
    """Time that the pauses of all bursts add to each step of a measurement."""
    # A period that no run shows is as uncertain as the count of pauses.
    period = steps.period or len(steps) / max(rng.poisson(len(steps.pauses)), 0.5)
    starts = np.arange(rng.uniform(-SPREAD, period - SPREAD), length, period)
    return _added(steps, ranks, np.asarray(starts, dtype=np.float64), length, rng)


def _added(
    steps: Steps, ranks: int, starts: Floats, length: int, rng: np.random.Generator
) -> Floats:
    """Time that bursts from the given steps on add; of two pauses in one step the longer."""
    groups = rng.integers(len(steps.offsets), size=len(steps.offsets))
    offsets = rng.choice(np.concatenate([steps.offsets[group] for group in groups]), ranks)
    at = np.floor(starts)[:, None].astype(np.int64) + offsets
    pauses = rng.choice(rng.choice(steps.pauses, len(steps.pauses)), at.shape)
    inside = (at >= 0) & (at < length)
    added = np.zeros(length)
    np.maximum.at(added, at[inside], pauses[inside])
    return added
