"""What the worker pauses of many ranks add to a step that all of the ranks share.

A step of one rank is taken apart into what its worker's collections added and the rest. Ranks are
then put together again as follows: the rest is common to all, as if they did one and the same
work, and the pauses are each rank's own, so the group waits for the longest of them:

    group step = common part + longest pause among the ranks.

`lockstep` alone would also let ordinary steps differ between ranks, so that P99 rises with their
number without any collector: right for what ranks do not share (their prompts), wrong for what
they do (the front end, the collectives). Here only the collector's part grows with the ranks.
What this leaves out: the ordinary differences between ranks, what several ranks' collectives cost,
and how one pause changes when the next one comes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from repro.analysis.tails import step_intervals
from repro.dataset import Campaign, in_window
from repro.dataset.schema import NS_PER_MS
from repro.stats.bootstrap import (
    EXPECTED_BEYOND,
    Floats,
    Integers,
    assign_blocks,
    draw_blocks,
    interval,
    steps_needed,
    value_grid,
)
from repro.theory.lockstep import (
    QUANTILES,
    RANKS,
    LockstepError,
    Width,
    check_quantiles,
    check_range,
    check_ratio,
    simulate,
)

RESAMPLES = 400
LONGEST, OTHERS = 96, 64
"""Lengths of a pause that a resample tells apart: so many of the longest, and of all others."""

WIDEST = 1 << 20
"""Ranks beyond which a width is called infinite."""

_BISECTIONS = 32  # of a range of seconds: to a nanosecond


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The steps of one rank, taken apart: one array a run, in ns, in order.

    Attributes
    ----------
    common : tuple of (n,) arrays
        What each step would have taken without its worker's pauses.
    paused : tuple of (n,) arrays
        What the pauses added to it.
    """

    common: tuple[Integers, ...]
    paused: tuple[Integers, ...]

    @property
    def whole(self) -> tuple[Integers, ...]:
        """The steps as they were measured."""
        return tuple(c + p for c, p in zip(self.common, self.paused, strict=True))

    @property
    def stalls(self) -> int:
        """Steps that a pause has made at least twice as long as they usually are."""
        usual = np.median(np.concatenate(self.common))
        return int((np.concatenate(self.paused) >= usual).sum())

    def __len__(self) -> int:
        return sum(map(len, self.common))


def take_apart(campaign: Campaign, runs: Sequence[str]) -> Steps:
    """The steps of one-rank runs in their measured windows, taken apart.

    A pause adds what it makes its step longer than the run's median, but no more than it lasted:
    on a GPU the beginning of it passes while the device is still at work.

    Parameters
    ----------
    campaign : Campaign
    runs : sequence of str
        Runs of one rank each, of one arm.

    Raises
    ------
    LockstepError
        If no run has steps.
    """
    common, paused = [], []
    intervals = in_window(campaign, step_intervals(campaign.steps))
    workers = campaign.pauses[campaign.pauses["role"] == "worker"].sort_values("start_ns")
    for run in runs:
        own = intervals[intervals["run"] == run].sort_values("t_ns")
        if len(own) < 2:
            continue
        gap = own["interval_ns"].to_numpy("int64")
        end = own["t_ns"].to_numpy("int64")
        pauses = workers[workers["run"] == run]
        begun = pauses["start_ns"].to_numpy("int64")
        over = begun + pauses["duration_ns"].to_numpy("int64")
        held = _paused_until(begun, over, end) - _paused_until(begun, over, end - gap)
        added = np.clip(gap - int(np.median(gap)), 0, held)
        common.append(gap - added)
        paused.append(added)
    if not common:
        raise LockstepError(f"{campaign.path.name}: no steps of one rank in the measured windows")
    return Steps(common=tuple(common), paused=tuple(paused))


def _paused_until(begun: Integers, over: Integers, time: Integers) -> Integers:
    """Time spent in pauses before each time; the pauses of one process do not overlap."""
    before = np.concatenate([[0], np.cumsum(over - begun)])
    number = np.searchsorted(begun, time, side="right")
    still = np.where(number > 0, over[number - 1] - time, 0) if len(over) else 0
    return np.asarray(before[number] - np.maximum(still, 0))


def predict(
    steps: Steps,
    *,
    ranks: Sequence[int] = RANKS,
    quantiles: Sequence[float] = QUANTILES,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Quantiles of the step time, which is the ITL, of groups of ranks.

    Parameters
    ----------
    steps : Steps
        Of one rank.
    ranks : sequence of int
    quantiles : sequence of float
        Between 0 and 1, both excluded.
    resamples, seed : int
        Of the interval, by runs, then blocks of steps.

    Returns
    -------
    DataFrame
        As `lockstep.predict` returns: ranks, quantile, value_ms, low_ms, high_ms, supported,
        needs, steps.

    Raises
    ------
    LockstepError
        If a number of ranks or a quantile is out of range.
    """
    check_range("ranks", ranks, 1, math.inf)
    check_quantiles(quantiles)
    measured, resampled = _measured(steps), _resampled(steps, resamples, seed)
    whole = np.sort(np.concatenate(steps.whole))
    rows = []
    for number in ranks:
        for quantile in quantiles:
            value = float(_quantile(measured, number, quantile)[0])
            low, high = interval(_quantile(resampled, number, quantile))
            beyond = len(whole) - int(np.searchsorted(whole, value, side="right"))
            rows.append(
                {
                    "ranks": number,
                    "quantile": quantile,
                    "value_ms": value / NS_PER_MS,
                    "low_ms": min(low, value) / NS_PER_MS,
                    "high_ms": max(high, value) / NS_PER_MS,
                    "supported": beyond >= EXPECTED_BEYOND,
                    "needs": steps_needed(quantile ** (1 / number)),
                    "steps": len(whole),
                }
            )
    return pd.DataFrame(rows)


def width_at(
    steps: Steps,
    ratio: float,
    *,
    quantile: float = 0.99,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Width:
    """The number of ranks at which a quantile of the group is `ratio` times that of one rank.

    Parameters
    ----------
    steps : Steps
        Of one rank.
    ratio : float
        Above 1: 1.1 for a rise by 10%, 2 for a doubling.
    quantile, resamples, seed
        As for `predict`.

    Returns
    -------
    Width
        Supported if enough pauses that long were measured; if none was, `low` is what their
        absence from so many steps shows.

    Raises
    ------
    LockstepError
        If a parameter is out of range.
    """
    check_quantiles([quantile])
    check_ratio(ratio)
    measured = _measured(steps)
    target = ratio * _quantile(measured, 1, quantile)
    usual = np.median(np.concatenate(steps.common))
    paused = np.concatenate(steps.paused)
    reaching = int((usual + paused >= target[0]).sum())
    if reaching == 0:
        return Width.unseen(quantile, steps=len(paused))
    resampled = _resampled(steps, resamples, seed)
    targets = ratio * _quantile(resampled, 1, quantile)
    drawn = _ranks_reaching(resampled, targets, quantile)
    ranks = float(_ranks_reaching(measured, target, quantile)[0])
    return Width.of(ranks, drawn, reaching=reaching)


def play(steps: Steps, *, ranks: int, number: int, seed: int = 0) -> Integers:
    """Step times of a group, from measured traces played at random phases: (number,) array in ns.

    What `predict` reckons in closed form, by `lockstep.simulate`: one trace for the common part,
    one for the pauses of each rank.
    """
    # A step takes time: 1 ns for those in which the worker was not paused.
    waiting = simulate([p + 1 for p in steps.paused], ranks=ranks, steps=number, seed=seed) - 1
    return simulate(steps.common, ranks=1, steps=number, seed=seed + 1) + waiting


@dataclass(frozen=True)
class _Parts:
    """How long both parts of a step are, by one or more samples of the same ascending values.

    Attributes
    ----------
    common : (c,) array
        In ns.
    common_within : (samples, c + 1) array
        Share of the steps whose common part is among the first values: none, one, two …
    paused : (p,) array
        In ns.
    paused_within : (samples, p) array
        Share of the steps whose pause is at most this long.
    """

    common: Floats
    common_within: Floats
    paused: Floats
    paused_within: Floats


def _measured(steps: Steps) -> _Parts:
    """The distribution of all measured steps, as one sample."""
    values, counts = [], []
    for part in (steps.common, steps.paused):
        value, count = np.unique(np.concatenate(part), return_counts=True)
        values.append(value.astype(np.float64))
        counts.append(count[None].astype(np.float64))
    return _parts(values[0], counts[0], values[1], counts[1])


def _resampled(steps: Steps, resamples: int, seed: int) -> _Parts:
    """The distributions of samples drawn again: runs, then blocks of their steps."""
    run = np.repeat(np.arange(len(steps.common)), [len(part) for part in steps.common])
    block, run_of_block = assign_blocks(run, np.arange(len(run)))
    drawn = draw_blocks(run_of_block, resamples, np.random.default_rng(seed))

    def counted(values: Floats, grid: Floats) -> Floats:
        cell = block * len(grid) + np.searchsorted(grid, values)  # rounded up
        shape = (len(run_of_block), len(grid))
        return drawn @ np.bincount(cell, minlength=math.prod(shape)).reshape(shape)

    common = np.concatenate(steps.common).astype(np.float64)
    paused = np.concatenate(steps.paused).astype(np.float64)
    grid, lengths = value_grid(common, np.ones(len(common))), _lengths(paused)
    return _parts(grid, counted(common, grid), lengths, counted(paused, lengths))


def _lengths(paused: Floats) -> Floats:
    """Values to round pauses up to. The longest are kept as they are: there, gaps are wide."""
    values = np.unique(paused)
    others, longest = values[:-LONGEST], values[-LONGEST:]
    if len(others) > OTHERS:
        others = others[np.linspace(0, len(others) - 1, OTHERS).round().astype(int)]
    return np.append(others, longest)


def _parts(common: Floats, of_common: Floats, paused: Floats, of_paused: Floats) -> _Parts:
    """From (samples, values) numbers of steps."""
    within = of_common.cumsum(axis=1) / of_common.sum(axis=1, keepdims=True)
    return _Parts(
        common=common,
        common_within=np.pad(within, ((0, 0), (1, 0))),
        paused=paused,
        paused_within=of_paused.cumsum(axis=1) / of_paused.sum(axis=1, keepdims=True),
    )


def _share_within(parts: _Parts, time: Floats, ranks: Floats) -> Floats:
    """The share of the group's steps that take at most `time`: (samples,), as both arguments."""
    longest = np.diff(parts.paused_within ** ranks[:, None], axis=1, prepend=0)
    left = time[:, None] - parts.paused
    place = np.searchsorted(parts.common, left * (1 + 1e-12), side="right")
    shares = np.take_along_axis(parts.common_within, place, axis=1)
    return np.asarray((longest * shares).sum(axis=1))


def _quantile(parts: _Parts, ranks: int, quantile: float) -> Floats:
    """The shortest time that a share `quantile` of the group's steps stays within: (samples,)."""
    samples = len(parts.common_within)
    number = np.full(samples, float(ranks))
    low = np.full(samples, parts.common[0] + parts.paused[0] - 1)
    high = np.full(samples, parts.common[-1] + parts.paused[-1])
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        enough = _share_within(parts, middle, number) >= quantile - 1e-12
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return high


def _ranks_reaching(parts: _Parts, target: Floats, quantile: float) -> Floats:
    """The fewest ranks whose quantile is at least the target, one target a sample."""
    short = np.nextafter(target, 0)
    low, high = np.ones(len(target)), np.full(len(target), float(WIDEST))
    never = _share_within(parts, short, high) >= quantile
    while np.any(high - low > 1):
        middle = np.floor((low + high) / 2)
        reached = _share_within(parts, short, middle) < quantile
        low, high = np.where(reached, low, middle), np.where(reached, middle, high)
    return np.where(never, math.inf, high)
