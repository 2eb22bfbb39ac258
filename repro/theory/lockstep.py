"""Steps of many ranks in lock-step, predicted from the steps and pauses of one rank.

Ranks that share experts meet in every step, so a step of the group lasts as long as that of its
slowest rank, and a pause of one rank is a stalled step of all:

    step of the group = common part + longest pause among the ranks.

Full collections come as bursts. All ranks count from the same start at the same rate, so every rank
collects once per `period`, at an offset of a few steps from the others. The offset stays the same
from burst to burst: a full collection replaces a generation-1 pass, and these come every
`SPREAD` steps, each rank at its own phase. Two ranks that share a phase share a stalled step.

One rank cannot tell how its ordinary step grows with the number of ranks; `stretch` says it.
Predictions that do not depend on it: the stalled share, the length of a stall, the steps from
burst to burst. The model leaves out what a stall does to the steps after it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
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
RESAMPLES = 300

SPREAD = 12
"""Steps from one generation-1 pass to the next at one pass per step and CPython's thresholds."""

LENGTH = 5_000
"""Steps of a predicted measurement: as many as P99.9 needs."""

STALLED = 2.0
"""A step that lasts this many times the usual one is stalled."""

_MS = 1e6


class LockstepError(ValueError):
    """Steps or parameters from which no group can be predicted; the message says what to change."""


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The steps of one rank, taken apart: one array per run, in ns, in order.

    Attributes
    ----------
    common : tuple of (n,) arrays
        What each step would have taken without its worker's pauses.
    paused : tuple of (n,) arrays
        What the pauses added to it.
    period : float or None
        Steps from one of the rank's pauses to its next, where the runs show it. None: the pauses
        are counted, and as many are expected in as many steps.
    """

    common: tuple[Integers, ...]
    paused: tuple[Integers, ...]
    period: float | None = None

    def __len__(self) -> int:
        return sum(map(len, self.common))

    @property
    def whole(self) -> tuple[Integers, ...]:
        """The steps as they were measured."""
        return tuple(c + p for c, p in zip(self.common, self.paused, strict=True))

    @property
    def usual(self) -> float:
        """The median step without its pauses."""
        return float(np.median(np.concatenate(self.common)))

    @property
    def pauses(self) -> Integers:
        """What each pause added to its step."""
        added = np.concatenate(self.paused)
        return added[added > 0]

    @property
    def stalls(self) -> int:
        """Steps that a pause made `STALLED` times as long as usual."""
        return int((self.pauses >= (STALLED - 1) * self.usual).sum())


@dataclass(frozen=True, kw_only=True)
class Replicates:
    """Many simulated measurements of one group.

    Attributes
    ----------
    quantiles : (replicates, quantiles) array
        Of the step time, in ns.
    longest, mean : (replicates,) arrays
        Step times, in ns.
    stalled : (replicates,) array
        Share of steps at least `STALLED` times as long as the median.
    """

    quantiles: Floats
    longest: Floats
    mean: Floats
    stalled: Floats


def stalled_steps(ranks: int, spread: int = SPREAD) -> float:
    """Steps that one burst stalls, on average: offsets that at least one of the ranks has."""
    return float(spread * (1 - (1 - 1 / spread) ** ranks))


def simulate(
    steps: Steps,
    ranks: int,
    *,
    quantiles: Sequence[float] = QUANTILES,
    spread: int = SPREAD,
    stretch: float = 1.0,
    length: int = LENGTH,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Replicates:
    """Measure a group of ranks as often as `resamples` says, on resampled runs of one rank.

    Parameters
    ----------
    steps : Steps
        Of one rank.
    ranks : int
    quantiles : sequence of float
        Between 0 and 1, both excluded.
    spread : int
        Steps over which the ranks' offsets in a burst range.
    stretch : float
        The group's ordinary step over that of one rank.
    length : int
        Steps of one simulated measurement.
    resamples, seed : int

    Raises
    ------
    LockstepError
        If a parameter is out of range.
    """
    _check("ranks", ranks, 1)
    _check("spread", spread, 1)
    _check("length", length, 1)
    for quantile in quantiles:
        if not 0 < quantile < 1:
            raise LockstepError(f"quantile={quantile} must lie between 0 and 1: 0.99 for P99")
    found = np.empty((resamples, len(quantiles) + 3))
    rng = np.random.default_rng(seed)
    for row, common in enumerate(_common_parts(steps, length, resamples, rng)):
        group = common * stretch
        at, added = _bursts(steps, ranks, spread, length, rng)
        np.maximum.at(group, at, group[at] + added)  # of two pauses in one step the longer
        found[row, :-3] = np.quantile(group, quantiles)
        found[row, -3:] = group.max(), group.mean(), (group >= STALLED * np.median(group)).mean()
    return Replicates(
        quantiles=found[:, :-3], longest=found[:, -3], mean=found[:, -2], stalled=found[:, -1]
    )


def predict(
    steps: Steps,
    *,
    ranks: Sequence[int] = RANKS,
    quantiles: Sequence[float] = QUANTILES,
    **options: float,
) -> pd.DataFrame:
    """Quantiles of the step time, which is the ITL, of groups of ranks.

    Parameters
    ----------
    steps : Steps
        Of one rank.
    ranks, quantiles : sequence
    **options
        As for `simulate`.

    Returns
    -------
    pandas.DataFrame
        One row per number of ranks and quantile: `ranks`, `quantile`, `value_ms` (median of the
        simulated measurements), `low_ms`, `high_ms` (95% of them), `supported` (bool: as many
        steps, or pauses, as the value rests on were measured).

    Raises
    ------
    LockstepError
        If a parameter is out of range.
    """
    rows = []
    for number in ranks:
        found = simulate(steps, number, quantiles=quantiles, **options).quantiles  # type: ignore[arg-type]
        low, high = interval(found)
        for column, (quantile, value) in enumerate(
            zip(quantiles, np.median(found, axis=0), strict=True)
        ):
            paused = value >= STALLED * steps.usual * options.get("stretch", 1)
            enough = (
                steps.stalls >= EXPECTED_BEYOND if paused else len(steps) >= steps_needed(quantile)
            )
            rows.append(
                {
                    "ranks": number,
                    "quantile": quantile,
                    "value_ms": value / _MS,
                    "low_ms": low[column] / _MS,
                    "high_ms": high[column] / _MS,
                    "supported": enough,
                }
            )
    return pd.DataFrame(rows)


@dataclass(frozen=True, kw_only=True)
class Burst:
    """One burst of full collections, simulated many times: (replicates,) arrays.

    Attributes
    ----------
    stalled : array
        Steps that stall.
    length_ns : array
        From the beginning of the first stalled step to the end of the last.
    stall_ns : array
        All time that the pauses add.
    longest_ns : array
        The longest step.
    """

    stalled: Floats
    length_ns: Floats
    stall_ns: Floats
    longest_ns: Floats


def burst(
    steps: Steps,
    ranks: int,
    *,
    spread: int = SPREAD,
    stretch: float = 1.0,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Burst:
    """One burst of a group of ranks.

    Raises
    ------
    LockstepError
        If a parameter is out of range, or one rank made no full collection.
    """
    _check("ranks", ranks, 1)
    if len(steps.pauses) == 0:
        raise LockstepError("one rank made no full collection: there is no burst to predict")
    rng = np.random.default_rng(seed)
    usual = steps.usual * stretch
    found = np.empty((resamples, 4))
    for row in range(resamples):
        added = np.zeros(spread)
        lengths = rng.choice(rng.choice(steps.pauses, len(steps.pauses)), ranks)
        np.maximum.at(added, rng.integers(spread, size=ranks), lengths)
        at = np.flatnonzero(added)
        whole = (at[-1] - at[0] + 1) * usual + added.sum()
        found[row] = len(at), whole, added.sum(), usual + added.max()
    stalled, length_ns, stall_ns, longest_ns = found.T
    return Burst(stalled=stalled, length_ns=length_ns, stall_ns=stall_ns, longest_ns=longest_ns)


def _common_parts(
    steps: Steps, length: int, resamples: int, rng: np.random.Generator
) -> Iterator[Floats]:
    """The common part of each simulated measurement: runs drawn again, then blocks of steps."""
    size = max(1, min(BLOCK_STEPS, *(len(part) // MIN_BLOCKS for part in steps.common)))
    blocks = [part[: len(part) // size * size].reshape(-1, size) for part in steps.common]
    for _ in range(resamples):
        runs = rng.integers(len(blocks), size=len(blocks))
        drawn = [blocks[run][rng.integers(len(blocks[run]), size=len(blocks[run]))] for run in runs]
        played = rng.integers(sum(map(len, drawn)), size=math.ceil(length / size))
        yield np.concatenate(drawn)[played].ravel()[:length].astype(np.float64)


def _bursts(
    steps: Steps, ranks: int, spread: int, length: int, rng: np.random.Generator
) -> tuple[Integers, Floats]:
    """The steps in which a rank is paused, rank by rank, and what the pause adds."""
    pauses = steps.pauses
    if len(pauses) == 0:
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    # A period that no run shows is as uncertain as the count of pauses.
    period = steps.period or len(steps) / max(rng.poisson(len(pauses)), 0.5)
    starts = np.arange(rng.uniform(-spread, period - spread), length, period)
    at = (np.floor(starts)[:, None] + rng.integers(spread, size=ranks)).astype(np.int64)
    added = rng.choice(rng.choice(pauses, len(pauses)), at.shape)
    inside = (at >= 0) & (at < length)
    return at[inside], added[inside].astype(np.float64)


def _check(name: str, value: float, least: float) -> None:
    if not value >= least:
        raise LockstepError(f"{name}={value} must be {least} or more")
