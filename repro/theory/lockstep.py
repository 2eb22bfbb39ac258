"""From the steps of one rank to the steps of many ranks that wait for each other.

Data-parallel ranks with expert parallelism, and tensor-parallel ranks, meet in collectives in every
step, so a step of the group lasts as long as the longest among its ranks. For ranks whose steps are
independent and alike, P(group step <= t) = P(one rank's step <= t) ** ranks: the group's quantile q
is one rank's quantile q ** (1 / ranks). Ranks may also stall together. `alignment` says how far:
each stall (a step longer than `STALL_FACTOR` x the run's median) is with this probability one that
all ranks have in the same step, and a rank's own otherwise. Ordinary steps stay independent.

`predict` and `width_at` use the closed form, `simulate` plays the measured traces against each
other; they agree. Both leave out what a rank's stall does to the steps after it, and both take
each rank for a random measured run, not all ranks for one and the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from repro.stats.bootstrap import (
    EXPECTED_BEYOND,
    LEVEL,
    RESAMPLES,
    Floats,
    Integers,
    assign_blocks,
    draw_blocks,
    interval,
    steps_needed,
    value_grid,
)

Runs = Sequence[npt.NDArray[np.integer]]
"""One array a run: the intervals between consecutive steps of one rank, in ns, in order."""

RANKS = tuple(2**power for power in range(11))
QUANTILES = (0.5, 0.99, 0.999)

STALL_FACTOR = 5.0
"""As in `attribution`: a gap this many times the run's median belongs to the tail."""

_CHUNK_STEPS = 32_768  # the group's part under work, 256 KiB, stays in a core's own cache


class LockstepError(ValueError):
    """Steps or parameters from which no group can be predicted; the message says what to change."""


@dataclass(frozen=True, kw_only=True)
class Width:
    """The number of ranks at which a quantile of the group reaches a multiple of one rank's.

    Attributes
    ----------
    ranks : float
        The smallest such number, a whole one; `math.inf` if no measured step is that long.
    low, high : float
        Its 95% interval.
    supported : bool
        Whether enough such steps were measured. If none was, `low` is what their absence shows.
    """

    ranks: float
    low: float
    high: float
    supported: bool

    @classmethod
    def of(cls, ranks: float, resampled: Floats, *, reaching: int) -> Width:
        """From the same number reckoned from resamples, `reaching` steps being long enough."""
        # Order statistics: a number of ranks and infinity have no average.
        bounds = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
        low, high = np.quantile(resampled, bounds, method="inverted_cdf")
        return cls(
            ranks=float(ranks),
            low=float(low),
            high=float(high),
            supported=reaching >= EXPECTED_BEYOND,
        )

    @classmethod
    def unseen(cls, quantile: float, *, steps: int) -> Width:
        """From no such step in so many: their share is below 3 / steps with 95% confidence."""
        share = 3 / steps
        low = math.ceil(math.log(quantile) / math.log1p(-share)) if share < 1 else 2
        return cls(ranks=math.inf, low=max(2, low), high=math.inf, supported=False)


def predict(
    runs: Runs,
    *,
    ranks: Sequence[int] = RANKS,
    quantiles: Sequence[float] = QUANTILES,
    alignment: float = 0.0,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Quantiles of the step time of groups of ranks, in closed form.

    Parameters
    ----------
    runs : sequence of (steps,) arrays
        Step intervals of one rank in ns, one array a run.
    ranks : sequence of int
    quantiles : sequence of float
        Between 0 and 1, both excluded.
    alignment : float
        Share of the stalls that all ranks have in the same step, from 0 to 1.
    resamples, seed : int
        Of the interval, by runs, then blocks of steps.

    Returns
    -------
    DataFrame
        One row for each number of ranks and quantile: ranks, quantile, value_ms, low_ms, high_ms
        (95% interval), supported (bool), needs (steps of one rank for independent ranks; shared
        stalls need fewer), steps (measured). Where not supported, the value lies beyond the
        measured range and is no more than the longest step seen.

    Raises
    ------
    LockstepError
        A run without steps or with intervals that are none, or a parameter out of range.
    """
    traces = _checked(runs)
    check_range("ranks", ranks, 1, math.inf)
    check_quantiles(quantiles)
    check_range("alignment", [alignment], 0, 1)
    measured = _measured(traces, alignment)
    resampled = _resampled(traces, alignment, resamples, seed)
    rows = []
    for number in ranks:
        for quantile in quantiles:
            value = _group_quantile(measured, number, quantile)[0]
            low, high = interval(_group_quantile(resampled, number, quantile))
            rows.append(
                {
                    "ranks": number,
                    "quantile": quantile,
                    "value_ms": value / 1e6,
                    "low_ms": low / 1e6,
                    "high_ms": high / 1e6,
                    "supported": _longer(traces, value) >= EXPECTED_BEYOND,
                    "needs": steps_needed(quantile ** (1 / number)),
                    "steps": sum(map(len, traces)),
                }
            )
    return pd.DataFrame(rows)


def width_at(
    runs: Runs,
    ratio: float,
    *,
    quantile: float = 0.99,
    alignment: float = 0.0,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Width:
    """The number of ranks at which a quantile of the group is `ratio` times that of one rank.

    Parameters
    ----------
    runs : sequence of (steps,) arrays
        Step intervals of one rank in ns, one array a run.
    ratio : float
        Above 1: 1.1 for a rise by 10%, 2 for a doubling.
    quantile, alignment, resamples, seed
        As for `predict`.

    Raises
    ------
    LockstepError
        As `predict`.
    """
    traces = _checked(runs)
    check_quantiles([quantile])
    check_ratio(ratio)
    check_range("alignment", [alignment], 0, 1)
    alone = _measured(traces, 0.0)
    target = ratio * _group_quantile(alone, 1, quantile)
    ranks = _ranks_reaching(_measured(traces, alignment), target, quantile)[0]
    reaching = sum(int((trace >= target[0]).sum()) for trace in traces)
    if reaching == 0:  # whatever the alignment
        return Width.unseen(quantile, steps=sum(map(len, traces)))
    targets = ratio * _group_quantile(_resampled(traces, 0.0, resamples, seed), 1, quantile)
    drawn = _ranks_reaching(_resampled(traces, alignment, resamples, seed), targets, quantile)
    return Width.of(ranks, drawn, reaching=reaching)


def simulate(
    runs: Runs, *, ranks: int, steps: int, alignment: float = 0.0, seed: int = 0
) -> Integers:
    """Step times of a group in lock-step, from measured traces played at random phases.

    Each rank plays one run, chosen by length, shifted in a circle by a phase of its own. When the
    shortest run has been played through, all ranks draw anew.

    Parameters
    ----------
    runs : sequence of (n,) arrays
        Step intervals of one rank in ns, one array a run.
    ranks, steps : int
    alignment : float
        Share of the stalls that all ranks have in the same step, from 0 to 1.
    seed : int

    Returns
    -------
    (steps,) array
        In ns.

    Raises
    ------
    LockstepError
        As `predict`.
    """
    traces = _checked(runs)
    check_range("ranks", [ranks], 1, math.inf)
    check_range("steps", [steps], 1, math.inf)
    check_range("alignment", [alignment], 0, 1)
    rng = np.random.default_rng(seed)
    shortest = min(map(len, traces))
    group = np.zeros(steps, dtype=np.int64)
    own = traces
    for start in range(0, steps, shortest):
        part = group[start : start + shortest]
        if alignment > 0:
            pairs = [_share_stalls(trace, alignment, rng) for trace in traces]
            _wait_for(part, [shared for shared, _ in pairs], 1, rng)
            own = [rest for _, rest in pairs]
        _wait_for(part, own, ranks, rng)
    return group


def _wait_for(
    group: Integers, traces: list[Integers], ranks: int, rng: np.random.Generator
) -> None:
    """Lengthen each step of the group to the longest among ranks that play the traces."""
    lengths = np.array([len(trace) for trace in traces])
    run = rng.choice(len(traces), size=ranks, p=lengths / lengths.sum())
    played = list(zip(run.tolist(), rng.integers(lengths[run]).tolist(), strict=True))
    twice = [np.concatenate([trace, trace]) for trace in traces]  # a circular shift is a slice
    for start in range(0, len(group), _CHUNK_STEPS):
        part = group[start : start + _CHUNK_STEPS]
        for trace, phase in played:
            first = phase + start
            np.maximum(part, twice[trace][first : first + len(part)], out=part)


def _share_stalls(
    trace: Integers, alignment: float, rng: np.random.Generator
) -> tuple[Integers, Integers]:
    """The stalls that all ranks share (0 elsewhere), and the trace with ordinary steps in place."""
    stalled = _stalls(trace)
    chosen = stalled & (rng.random(len(trace)) < alignment)
    own = trace.copy()
    own[chosen] = rng.choice(trace[~stalled], size=int(chosen.sum()))
    return np.where(chosen, trace, 0), own


@dataclass(frozen=True)
class _Distribution:
    """How long steps are, by one or more samples of the same `m` ascending values.

    Attributes
    ----------
    values : (m,) array
        In ns.
    log_shared, log_own : (samples, m) arrays
        Log of the share of steps in which the stall that all ranks share, or what one rank adds by
        itself, is at most this long.
    """

    values: Floats
    log_shared: Floats
    log_own: Floats


def _distribution(values: Floats, mass: Floats, stalls: Floats, alignment: float) -> _Distribution:
    """From (samples, m) numbers of steps of each value, and of those that are stalls."""
    total = mass.sum(axis=1, keepdims=True)
    ordinary, stalled = (mass - stalls).cumsum(axis=1), stalls.cumsum(axis=1)
    all_stalls = stalled[:, -1:]
    shared = 1 - alignment * (all_stalls - stalled) / total
    # In place of a shared stall a rank has one more ordinary step.
    replaced = alignment * ordinary * (all_stalls / ordinary[:, -1:])
    own = np.minimum((ordinary + replaced + (1 - alignment) * stalled) / total, 1)
    own[:, -1] = 1
    with np.errstate(divide="ignore"):  # a resample may lack the shortest values
        return _Distribution(values, np.log(shared), np.log(own))


def _measured(traces: list[Integers], alignment: float) -> _Distribution:
    """The distribution of all measured steps, as one sample."""
    values, cell = np.unique(np.concatenate(traces), return_inverse=True)
    stalled = np.concatenate([_stalls(trace) for trace in traces]).astype(np.float64)
    mass = np.bincount(cell, minlength=len(values)).astype(np.float64)
    stalls = np.bincount(cell, stalled, minlength=len(values)).astype(np.float64)
    return _distribution(values.astype(np.float64), mass[None], stalls[None], alignment)


def _resampled(
    traces: list[Integers], alignment: float, resamples: int, seed: int
) -> _Distribution:
    """The distributions of samples drawn again: runs, then blocks of their steps."""
    values = np.concatenate(traces).astype(np.float64)
    stalled = np.concatenate([_stalls(trace) for trace in traces]).astype(np.float64)
    run = np.repeat(np.arange(len(traces)), [len(trace) for trace in traces])
    block, run_of_block = assign_blocks(run, np.arange(len(values)))
    grid = value_grid(values, np.ones(len(values)))
    cell = block * len(grid) + np.searchsorted(grid, values)
    shape = (len(run_of_block), len(grid))
    drawn = draw_blocks(run_of_block, resamples, np.random.default_rng(seed))
    mass = drawn @ np.bincount(cell, minlength=math.prod(shape)).reshape(shape)
    stalls = drawn @ np.bincount(cell, stalled, minlength=math.prod(shape)).reshape(shape)
    return _distribution(grid, mass, stalls, alignment)


def _group_quantile(steps: _Distribution, ranks: int, quantile: float) -> Floats:
    """The shortest value that a share `quantile` of the group's steps stays within: (samples,)."""
    within = steps.log_shared + ranks * steps.log_own >= math.log(quantile)
    return np.asarray(steps.values[within.argmax(axis=1)])


def _ranks_reaching(steps: _Distribution, target: Floats, quantile: float) -> Floats:
    """The fewest ranks whose quantile is at least the target, one target a sample."""
    sample = np.arange(len(target))
    below = np.searchsorted(steps.values, target) - 1  # the longest value short of the target
    log_shared, log_own = steps.log_shared[sample, below], steps.log_own[sample, below]
    with np.errstate(divide="ignore"):
        # Reached as soon as log_shared + ranks x log_own < log(quantile).
        ranks = np.floor((math.log(quantile) - log_shared) / log_own) + 1
    return np.where(log_own < 0, ranks, math.inf)


def _stalls(trace: Integers) -> npt.NDArray[np.bool_]:
    return np.asarray(trace > STALL_FACTOR * np.median(trace))


def _longer(traces: list[Integers], value: float) -> int:
    return sum(int((trace > value).sum()) for trace in traces)


def _checked(runs: Runs) -> list[Integers]:
    if len(runs) == 0:
        raise LockstepError("no runs: give at least one array of step intervals")
    traces = []
    for number, run in enumerate(runs):
        trace = np.asarray(run)
        if trace.ndim != 1 or len(trace) < 2:
            raise LockstepError(
                f"run {number} has shape {trace.shape}: a run is a flat array of 2 or more steps"
            )
        if not np.issubdtype(trace.dtype, np.integer) or trace.min() <= 0:
            raise LockstepError(
                f"run {number} holds intervals that are no positive whole numbers of ns: "
                "pass the gaps between consecutive steps of one rank, ramp and idle times left out"
            )
        traces.append(trace.astype(np.int64))
    return traces


def check_range(name: str, values: Sequence[float], low: float, high: float) -> None:
    """Raise `LockstepError` unless all values lie from `low` to `high`."""
    for value in values:
        if not low <= value <= high:
            allowed = f"{low} or more" if math.isinf(high) else f"from {low} to {high}"
            raise LockstepError(f"{name}={value} must be {allowed}")


def check_quantiles(quantiles: Sequence[float]) -> None:
    """Raise `LockstepError` unless all lie between 0 and 1."""
    for quantile in quantiles:
        if not 0 < quantile < 1:
            raise LockstepError(f"quantile={quantile} must lie between 0 and 1: 0.99 for P99")


def check_ratio(ratio: float) -> None:
    """Raise `LockstepError` unless it asks for a rise."""
    if not ratio > 1:
        raise LockstepError(f"ratio={ratio} must be above 1: 1.1 asks for a rise by 10%")
