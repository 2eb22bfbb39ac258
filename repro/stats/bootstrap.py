"""Quantiles of weighted samples, and their uncertainty by resampling runs, then blocks of steps.

One pause of the collector delays every request in flight, so the thousand gaps of one engine step
are one observation, and steps near in time resemble each other (Künsch 1989, The jackknife and the
bootstrap for general stationary observations). What is drawn again is therefore the run, and in
it blocks of consecutive steps; never a single token. Quantities that a run gives once, such as a
capture's time, have their intervals in `ratios`.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

BLOCK_STEPS = 100
"""Longer than what one pause or one burst of prefills disturbs (a few steps); short enough for
the hundred blocks that a run of 10^4 steps then gives."""

MIN_BLOCKS = 20
"""A short run is cut into shorter blocks: fewer than this many show too little variation."""

RESAMPLES = 1000
LEVEL = 0.95
EXPECTED_BEYOND = 5
"""Steps that must be expected beyond a quantile before it is called measured."""

GRID = 2048
"""Distinct values a resample tells apart, spaced so that the share of the sample beyond a value is
off by less than 1% of itself: 0.01% for P99, far below what resampling varies."""


def steps_needed(quantile: float) -> int:
    """The fewest steps with `EXPECTED_BEYOND` of them expected beyond a quantile; 1 for the max."""
    if quantile >= 1:
        return 1
    return math.ceil(round(EXPECTED_BEYOND / (1 - quantile), 6))  # 1 - 0.999 is no exact 0.001


def weighted_quantiles(values: Floats, counts: Floats, quantiles: tuple[float, ...]) -> Floats:
    """Quantiles of each of (n,) values repeated `count` times, as `numpy.quantile` has them.

    Counts are whole numbers, not all 0. Interpolates linearly between neighbouring values of the
    expanded sample; returns a (len(quantiles),) array.
    """
    order = np.argsort(values)
    found: Floats = _sorted_quantiles(values[order], counts[order][None, :], quantiles)[0]
    return found


def mid_quantile(values: Floats, counts: Floats, quantile: float) -> float:
    """Mid-distribution quantile of (n,) rounded values, each repeated `count` times.

    Interpolates between the middles of neighbouring values' ranks, so a shift by less than a step
    of the rounding still shows. For values that are close together: it fills the gap between two.
    Counts are whole numbers above 0; the result is in the unit of `values`.

    References
    ----------
    Ma, Y., Genton, M. G. and Parzen, E. (2011). Asymptotic properties of sample quantiles of
    discrete distributions. Annals of the Institute of Statistical Mathematics 63.
    """
    distinct, which = np.unique(values, return_inverse=True)
    repeated = np.bincount(which, counts)
    below = np.cumsum(repeated) - repeated / 2
    return float(np.interp(quantile, below / repeated.sum(), distinct))


def resampled_quantiles(
    values: Floats,
    counts: Floats,
    run: Integers,
    step: Integers,
    quantiles: tuple[float, ...],
    *,
    seed: int = 0,
) -> Floats:
    """Quantiles of samples drawn again from the same runs and steps.

    Parameters
    ----------
    values, counts : (n,) arrays
        The weighted sample.
    run : (n,) array
        The run of each row, any integers.
    step : (n,) array
        The step of each row, increasing in time within a run. Rows of one step stay together.
    quantiles : tuple of float
    seed : int

    Returns
    -------
    (RESAMPLES, len(quantiles)) array
    """
    block, run_of_block = assign_blocks(run, step)
    grid = value_grid(values, counts)
    cell = np.searchsorted(grid, values)  # rounded up to the next value of the grid
    blocks = len(run_of_block)
    mass = np.bincount(block * len(grid) + cell, counts, minlength=blocks * len(grid))
    drawn = draw_blocks(run_of_block, RESAMPLES, np.random.default_rng(seed))
    return _sorted_quantiles(grid, drawn @ mass.reshape(blocks, len(grid)), quantiles)


def interval(replicates: Floats) -> Floats:
    """The (2, ...) percentile interval at `LEVEL` over the first axis."""
    beyond = (1 - LEVEL) / 2
    return np.asarray(np.quantile(replicates, (beyond, 1 - beyond), axis=0))


def _sorted_quantiles(values: Floats, counts: Floats, quantiles: tuple[float, ...]) -> Floats:
    """Quantiles of (m, n) counts over n ascending values, one row a sample: (m, quantiles)."""
    below = counts.cumsum(axis=1)
    total = below[:, -1]
    found = np.empty((len(counts), len(quantiles)))
    for column, quantile in enumerate(quantiles):
        place = (total - 1) * quantile
        lower = np.floor(place)
        upper = np.minimum(lower + 1, total - 1)
        low = values[(below <= lower[:, None]).sum(axis=1)]
        high = values[(below <= upper[:, None]).sum(axis=1)]
        found[:, column] = low + (high - low) * (place - lower)
    return found


def assign_blocks(run: Integers, step: Integers) -> tuple[Integers, Integers]:
    """The block of each row, and the run (from 0) of each block."""
    block = np.empty(len(run), dtype=np.int64)
    run_of_block: list[int] = []
    codes, inverse = np.unique(run, return_inverse=True)
    for code in range(len(codes)):
        rows = np.flatnonzero(inverse == code)
        steps, ordinal = np.unique(step[rows], return_inverse=True)
        number = max(1, len(steps) // BLOCK_STEPS, min(MIN_BLOCKS, len(steps)))
        block[rows] = len(run_of_block) + ordinal * number // len(steps)
        run_of_block += [code] * number
    return block, np.asarray(run_of_block, dtype=np.int64)


def value_grid(values: Floats, counts: Floats) -> Floats:
    """At most `GRID` ascending values of the sample, denser towards its largest."""
    order = np.argsort(values)
    below = counts[order].cumsum()
    share_above = np.geomspace(1 / below[-1], 1, GRID)
    rank = np.ceil(below[-1] * (1 - share_above))
    row = np.searchsorted(below, np.append(rank, below[-1]))
    return np.unique(values[order][row])


def draw_blocks(run_of_block: Integers, resamples: int, rng: np.random.Generator) -> Floats:
    """Counts of each block in each resample: (resamples, blocks)."""
    runs, size = np.unique(run_of_block, return_counts=True)
    times = rng.multinomial(len(runs), np.full(len(runs), 1 / len(runs)), size=resamples)
    # A run drawn k times contributes k independent draws of all its blocks.
    drawn = [
        rng.multinomial(times[:, i] * blocks, np.full(blocks, 1 / blocks))
        for i, blocks in enumerate(size)
    ]
    return np.concatenate(drawn, axis=1).astype(np.float64)
