"""Several ranks of one run: do they pause together, and does one wait for another?"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from repro import fmt
from repro.analysis.arms import freezes
from repro.analysis.tails import Metric, sample, step_intervals, step_quantiles
from repro.dataset import Campaign, in_window
from repro.dataset.schema import NS_PER_MS
from repro.stats.bootstrap import (
    RESAMPLES,
    Floats,
    Integers,
    assign_blocks,
    draw_blocks,
    interval,
)
from repro.stats.spans import overlap
from repro.theory.cpython_rule import FULL
from repro.theory.lockstep import QUANTILES, STALLED

SHIFTS = 1000

AROUND = 20
"""Steps on either side by which steps of two ranks are matched."""

PER_BURST = {"stalled steps per burst": "stalled_steps", "burst": "length_s"}
"""Quantity of `measured` -> column of `bursts`."""

BURST = ["run", "policy", "ranks", "start_ns", "length_s", "offsets", "spread_steps"]
BURST += ["stalled_steps", "pause_ms", "period_steps", "drift_steps"]


@dataclass(frozen=True, kw_only=True)
class _Rank:
    """One rank of a run in its window: entries of its steps, and its worker's full collections."""

    entries: Integers
    begun: Integers
    lasted: Integers


def several(campaign: Campaign) -> pd.DataFrame:
    """The runs with more than one rank: `ranks`, and `kind`, how they share the work.

    `TP`: each request; `DP`: the requests; `TP DP`: both.
    """
    tensor, data = (campaign.runs[f"{name}_parallel_size"] for name in ("tensor", "data"))
    kinds = (tensor > 1).map({True: "TP ", False: ""}) + (data > 1).map({True: "DP", False: ""})
    found = campaign.runs.assign(ranks=tensor * data, kind=kinds.str.strip())
    return found[found["ranks"] > 1]


def independence(campaign: Campaign) -> pd.DataFrame:
    """Share of full collections of different ranks that fall into one step.

    The unit is the step of the group: ranks that wait for each other enter it together. Chance is
    what the same collections give if each rank's are moved on by a random number of steps.

    Returns
    -------
    pandas.DataFrame
        One row per arm of several ranks: `arm`, `ranks`, `steps` (with a full collection of any
        rank), `together` (of at least two), `share` with Wilson's `low`, `high`, `chance` (mean
        over the shifts), `apart` (median steps to another rank's collection; NaN).
    """
    rng = np.random.default_rng(0)
    rows = []
    for arm, runs in several(campaign).groupby("arm"):
        found = [_in_steps(_ranks_of(campaign, run)) for run in runs["run"]]
        steps, together = np.sum([_count(ordinals) for ordinals, _ in found], axis=0)
        drawn = np.array(
            [
                np.sum([_count(_moved(o, length, rng)) for o, length in found], axis=0)
                for _ in range(SHIFTS)
            ]
        )
        chance = drawn[:, 1] / np.maximum(drawn[:, 0], 1)
        low, high = wilson(int(together), int(steps))
        distances = np.concatenate([_distances(ordinals) for ordinals, _ in found])
        rows.append(
            {
                "arm": arm,
                "ranks": runs["ranks"].iloc[0],
                "steps": int(steps),
                "together": int(together),
                "share": together / steps if steps else np.nan,
                "low": low,
                "high": high,
                "chance": chance.mean() if steps else np.nan,
                "apart": np.median(distances) if len(distances) else np.nan,
            }
        )
    columns = ["arm", "ranks", "steps", "together", "share", "low", "high"]
    return pd.DataFrame(rows, columns=[*columns, "chance", "apart"])


def coupling(campaign: Campaign) -> pd.DataFrame:
    """Share of one rank's full collection that shows in the step that another rank is in meanwhile.

    By the step that the other rank is in halfway through the pause: what it takes above that
    rank's median step, over the pause. 1: the other rank waits to the end. 0: it takes no notice.
    Only pauses longer than a median step can show, and only those that the other rank does not
    share.

    Returns
    -------
    pandas.DataFrame
        One row per arm of several ranks that has such pauses: `arm`, `ranks`, `pauses` (counted
        once for each rank that might have waited), `share` (median) with `low`, `high`, from
        resampled pauses, and `chance` (the same at the middle of pauses moved to random times).
    """
    rng = np.random.default_rng(0)
    rows = []
    for arm, runs in several(campaign).groupby("arm"):
        shown: list[float] = []
        anywhere: list[float] = []
        for run in runs.itertuples():
            ranks = _ranks_of(campaign, run.run)
            shown += _shown(ranks)
            anywhere += _shown(ranks, rng, (run.window_start_ns, run.window_end_ns))
        if not shown:
            continue
        drawn = rng.choice(shown, size=(RESAMPLES, len(shown)))
        low, high = interval(np.median(drawn, axis=1))
        rows.append(
            {
                "arm": arm,
                "ranks": runs["ranks"].iloc[0],
                "pauses": len(shown),
                "share": np.median(shown),
                "low": low,
                "high": high,
                "chance": np.median(anywhere) if anywhere else np.nan,
            }
        )
    columns = ["arm", "ranks", "pauses", "share", "low", "high", "chance"]
    return pd.DataFrame(rows, columns=columns)


def policy_of(campaign: Campaign, arm: str) -> str:
    """Policy of an arm's workers: `freeze` or `no-freeze`, also where the policy is `stock`."""
    return "freeze" if freezes(campaign, arm) == "yes" else "no-freeze"


def measured(campaign: Campaign, arm: str) -> pd.DataFrame:
    """Measured values of one arm for the quantities that are predicted.

    Returns
    -------
    pandas.DataFrame
        `quantity`, `measured`, `low`, `high`, `steps` (of the group). Intervals come from runs and
        from blocks of steps in them: with one run they hold for that run alone. Of the bursts the
        range is given. ITL quantiles that the sample cannot support are left out. The longest gap
        has no interval.
    """
    runs = campaign.runs[campaign.runs["arm"] == arm]
    metric: Metric = "itl" if campaign.itl["run"].isin(runs["run"]).any() else "step_interval"
    rows = sample(campaign, metric)
    rows = rows[rows["run"].isin(runs["run"])]
    found = step_quantiles(rows, (*QUANTILES, 1.0))
    names = [*(fmt.quantile(quantile) for quantile in QUANTILES), "longest"]
    table = [
        (name, each.value / NS_PER_MS, each.low / NS_PER_MS, each.high / NS_PER_MS)
        for name, each in zip(names, found, strict=True)
        if each.supported
    ]
    gaps = group_steps(campaign, list(runs["run"]))
    stalled = sum(int((gap >= STALLED * np.median(gap)).sum()) for gap in gaps)
    steps = sum(map(len, gaps))
    bounds = wilson(stalled, steps)
    table.append(("stalled share", 100 * stalled / steps, *(100 * np.array(bounds))))
    rate = token_rates(campaign, arm)
    table.append(("tokens/s", runs["tokens_per_s"].mean(), *interval(rate)))
    own = bursts(campaign, arm)
    for name, column in PER_BURST.items() if len(own) else ():
        table.append((name, own[column].median(), own[column].min(), own[column].max()))
    frame = pd.DataFrame(table, columns=["quantity", "measured", "low", "high"])
    return frame.assign(steps=steps)


def token_rates(campaign: Campaign, arm: str, seed: int = 0) -> Floats:
    """Tokens per second of an arm in (resamples,) draws of its runs and their blocks of steps."""
    runs = campaign.runs[campaign.runs["arm"] == arm]
    gaps = group_steps(campaign, list(runs["run"]))
    run = np.repeat(np.arange(len(gaps)), [len(gap) for gap in gaps])
    block, run_of_block = assign_blocks(run, np.concatenate([np.arange(len(gap)) for gap in gaps]))
    per_step = np.concatenate(
        [
            np.full(len(gap), rate * gap.mean())
            for gap, rate in zip(gaps, runs["tokens_per_s"], strict=True)
        ]
    )
    drawn = draw_blocks(run_of_block, RESAMPLES, np.random.default_rng(seed))
    tokens, time = (drawn @ np.bincount(block, each) for each in (per_step, np.concatenate(gaps)))
    return np.asarray(tokens / time)


def bursts(campaign: Campaign, arm: str | None = None) -> pd.DataFrame:
    """Bursts of full collections in the windows of runs of several data-parallel ranks.

    Of one arm, if one is named.
    Every rank's first collection in the window is of the first burst, its second of the second.

    Returns
    -------
    pandas.DataFrame
        One row per burst in which every rank collects: `run`, `policy`, `ranks`, `start_ns`,
        `length_s` (first collection's begin to last one's end), `offsets` (array: steps from the
        first collection to each rank's), `spread_steps` (the largest), `stalled_steps` (that hold
        a collection), `pause_ms` (median), `period_steps` (since the run's burst before; NaN for
        its first), `drift_steps` (the most that a rank's offset changed since then).
    """
    rows = []
    runs = several(campaign)
    runs = runs[runs["kind"].str.contains("DP") & ((runs["arm"] == arm) | (arm is None))]
    for run in runs.itertuples():
        ranks = _ranks_of(campaign, run.run)
        ordinals, _ = _in_steps(ranks)
        whole = slice(min(map(len, ordinals)))  # bursts that every rank has
        if whole.stop == 0:
            continue
        at = np.stack([own[whole] for own in ordinals])
        begun, lasted = (
            np.stack([getattr(rank, name)[whole] for rank in ranks]) for name in ("begun", "lasted")
        )
        since = np.diff(at, axis=1, prepend=np.nan)
        rows.append(
            pd.DataFrame(
                {
                    "run": run.run,
                    "policy": policy_of(campaign, run.arm),
                    "ranks": run.ranks,
                    "start_ns": begun.min(axis=0),
                    "length_s": ((begun + lasted).max(axis=0) - begun.min(axis=0)) / 1e9,
                    "offsets": list((at - at.min(axis=0)).T),
                    "spread_steps": np.ptp(at, axis=0),
                    "stalled_steps": [len(np.unique(burst)) for burst in at.T],
                    "pause_ms": np.median(lasted, axis=0) / NS_PER_MS,
                    "period_steps": np.median(since, axis=0),
                    "drift_steps": np.ptp(since, axis=0),
                }
            )
        )
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=BURST)


def group_steps(campaign: Campaign, runs: list[str]) -> list[Integers]:
    """Step intervals of the lowest rank of each run in its window, in ns."""
    rows = in_window(campaign, step_intervals(campaign.steps))
    found = []
    for run in runs:
        own = rows[rows["run"] == run]
        found.append(own.loc[own["rank"] == own["rank"].min(), "interval_ns"].to_numpy("int64"))
    return found


def wilson(hits: int, trials: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share; 0 to 1 without trials.

    It says something of 0 out of 4, where resampling would give 0 to 0.

    References
    ----------
    Wilson, E. B. (1927), Journal of the American Statistical Association 22.
    """
    if trials == 0:
        return 0.0, 1.0
    z = 1.96
    share = hits / trials
    middle = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * math.sqrt(share * (1 - share) / trials + (z / trials / 2) ** 2)
    return max(0.0, middle - half), min(1.0, middle + half)


def _ranks_of(campaign: Campaign, run: str) -> list[_Rank]:
    steps = in_window(campaign, campaign.steps[campaign.steps["run"] == run])
    pauses = campaign.pauses[campaign.pauses["run"] == run]
    full = in_window(
        campaign, pauses[(pauses["role"] == "worker") & (pauses["generation"] == FULL)]
    ).sort_values("start_ns")
    ranks = []
    for rank, own in steps.groupby("rank"):
        mine = full[full["rank"] == rank]
        ranks.append(
            _Rank(
                entries=np.sort(own["start_ns"].to_numpy("int64")),
                begun=mine["start_ns"].to_numpy("int64"),
                lasted=mine["duration_ns"].to_numpy("int64"),
            )
        )
    return ranks


def _in_steps(ranks: list[_Rank]) -> tuple[list[Integers], int]:
    """The step of the group that each rank's collections fall into, and how many steps there are.

    Counted by the first rank's entries. A rank may enter its next step while another still
    collects at the end of this one, so single entries do not tell which steps belong together:
    the median over the steps around does.
    """
    clock = ranks[0].entries
    ordinals = []
    for rank in ranks:
        own = np.maximum(np.searchsorted(rank.entries, rank.begun, side="right") - 1, 0)
        after = np.clip(np.searchsorted(clock, rank.entries), 1, len(clock) - 1)
        ahead = after - (rank.entries - clock[after - 1] < clock[after] - rank.entries)
        ahead -= np.arange(len(ahead))
        around = [ahead[max(0, step - AROUND) : step + AROUND] for step in own]
        shift = np.array([np.median(steps) for steps in around]).round().astype(np.int64)
        ordinals.append(own + shift)
    return ordinals, len(clock)


def _count(ordinals: list[Integers]) -> tuple[int, int]:
    """Steps with a collection of any rank, and of at least two."""
    each = [np.unique(own) for own in ordinals]
    _, ranks = np.unique(np.concatenate(each), return_counts=True)
    return len(ranks), int((ranks > 1).sum())


def _moved(ordinals: list[Integers], steps: int, rng: np.random.Generator) -> list[Integers]:
    return [(own + rng.integers(steps)) % steps for own in ordinals]


def _distances(ordinals: list[Integers]) -> Integers:
    """From each collection to the nearest of another rank, in steps."""
    found = []
    for rank, own in enumerate(ordinals):
        others = [other for number, other in enumerate(ordinals) if number != rank]
        rest = np.concatenate(others) if others else np.zeros(0, dtype=np.int64)
        if len(rest):
            found.append(np.abs(own[:, None] - rest[None, :]).min(axis=1))
    return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)


def _shown(
    ranks: list[_Rank], rng: np.random.Generator | None = None, window: tuple[int, int] = (0, 0)
) -> list[float]:
    """Part of one rank's pauses that shows in each other rank's step; with `rng`, at any time."""
    found: list[float] = []
    for paused, other in itertools.permutations(ranks, 2):
        if len(other.entries) < 2:
            continue
        gaps = np.diff(other.entries)
        usual = np.median(gaps)
        middle = paused.begun + paused.lasted // 2
        if rng is not None:
            middle = rng.integers(*window, size=len(middle))
        step = np.searchsorted(other.entries, middle, side="right") - 1
        seen = (step >= 0) & (step < len(gaps)) & (paused.lasted > usual)
        step = np.clip(step, 0, len(gaps) - 1)
        own = other.begun, other.begun + other.lasted
        alone = overlap(own, other.entries[step], other.entries[step + 1]) == 0
        excess: Floats = (gaps[step] - usual) / np.maximum(paused.lasted, 1)
        found += excess[seen & alone].tolist()
    return found
