"""Recorded runs of one rank that a prediction for many ranks rests on, taken apart."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from repro.analysis.arms import Pair, pairs
from repro.analysis.gc_cost import full_collections
from repro.analysis.ranks import bursts, policy_of, several
from repro.analysis.tails import step_intervals
from repro.dataset import Campaign, in_window
from repro.stats.spans import of_rows, overlap
from repro.theory.cpython_rule import FULL
from repro.theory.lockstep import LockstepError, Steps

DRIVERS = ("engine", "async_engine")
"""Clients that keep the engine busy. Through HTTP it may idle, and a pause then hides."""

ALIKE = ["machine", "vllm", "torch", "python", "capture_policy", "model", "executor", "load"]
"""Columns in which one-rank runs and their groups agree. The number of GPUs and of CPUs differs
by design: the runs are compared, never pooled."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Basis:
    """One rank with and without the freeze, in all else alike."""

    campaign: Campaign
    pair: Pair  # the two arms
    steps: dict[str, Steps]  # by policy, `no-freeze` and `freeze`
    concurrency: int  # requests in flight on the rank
    runs: tuple[str, ...]

    @property
    def size(self) -> int:
        """Steps of both arms."""
        return sum(map(len, self.steps.values()))

    @property
    def tokens_per_step(self) -> dict[str, float]:
        """Policy -> tokens that one rank generates per step."""
        rate = self._own.groupby("arm")["tokens_per_s"].mean()
        arms = {"no-freeze": self.pair.baseline, "freeze": self.pair.treated}
        return {
            policy: float(rate[arms[policy]] * np.concatenate(steps.whole).mean() / 1e9)
            for policy, steps in self.steps.items()
        }

    @property
    def answer_tokens(self) -> int:
        """Mean length of an answer."""
        return round(float(self._own["answer_tokens"].mean()))

    @property
    def unfrozen(self) -> Steps:
        """The steps of the arm without the freeze."""
        return self.steps["no-freeze"]

    @functools.cached_property
    def groups(self) -> pd.DataFrame:
        """The data-parallel runs under the same load: `several`, with what workers do."""
        runs = several(self.campaign)
        same = (runs[ALIKE] == self._own.iloc[0][ALIKE]).all(axis=1) & (runs["kind"] == "DP")
        policies = [policy_of(self.campaign, arm) for arm in runs.loc[same, "arm"]]
        return runs[same].assign(policy=policies)

    @property
    def _own(self) -> pd.DataFrame:
        return self.campaign.runs[self.campaign.runs["run"].isin(self.runs)]

    @functools.cached_property
    def _bursts(self) -> pd.DataFrame:
        """Each group's offsets: its first burst."""
        found = bursts(self.campaign).drop_duplicates("run")
        return found[found["run"].isin(self.groups["run"])]

    @functools.cache  # noqa: B019 - a few per basis, which lives as long as they do
    def in_a_group(self, policy: str, ranks: int | None = None) -> Steps:
        """One rank's pauses with what it cannot tell: how ordinary steps and offsets are in groups.

        Parameters
        ----------
        policy : str
        ranks : int, optional
            A measured width: its ordinary steps are those of its frozen runs, and the offsets
            those of the other widths. Without it, one rank's steps and the offsets of all.
        """
        steps, groups = self.steps[policy], self.groups
        frozen = groups.loc[(groups["policy"] == "freeze") & (groups["ranks"] == ranks), "run"]
        if len(frozen):
            steps = replace(steps, common=take_apart(self.campaign, list(frozen)).common)
        others = (self._bursts["ranks"] != ranks) & (self._bursts["policy"] == policy)
        offsets = tuple(self._bursts.loc[others, "offsets"])
        return replace(steps, offsets=offsets) if offsets else steps


def bases(campaign: Campaign) -> list[Basis]:
    """Every pair of one-rank arms of a campaign that a prediction can rest on, largest first."""
    runs = campaign.runs
    alone = runs[
        (runs["tensor_parallel_size"] * runs["data_parallel_size"] == 1)
        & (runs["executor"] == "mp")
        & runs["client"].isin(DRIVERS)
    ]
    alone = alone[alone["run"].isin(campaign.steps["run"].unique())]
    found = []
    full = full_collections(campaign) if len(alone) else pd.DataFrame()
    for pair in pairs(campaign):
        arms = [pair.baseline, pair.treated]
        if not set(arms) <= set(alone["arm"]):
            continue
        of_arm = {arm: list(alone.loc[alone["arm"] == arm, "run"]) for arm in arms}
        found.append(
            Basis(
                campaign=campaign,
                pair=pair,
                steps={
                    policy: replace(take_apart(campaign, names), period=_period(full, names))
                    for policy, names in zip(("no-freeze", "freeze"), of_arm.values(), strict=True)
                },
                concurrency=int(alone.loc[alone["arm"] == arms[0], "concurrency"].iloc[0]),
                runs=tuple(run for names in of_arm.values() for run in names),
            )
        )
    return sorted(found, key=lambda basis: -basis.size)


def _period(full: pd.DataFrame, runs: Sequence[str]) -> float | None:
    """Steps from one full collection of a worker to its next, where the runs show it."""
    own = full[full["run"].isin(runs) & (full["role"] == "worker")]
    periods = own["period_steps"].dropna()
    return float(periods.median()) if len(periods) else None


def nearest(campaigns: Sequence[Campaign], concurrency: int) -> Basis | None:
    """The basis whose load is nearest; among equals the one with the widest groups beside it."""
    found = [basis for campaign in campaigns for basis in bases(campaign)]

    def distance(basis: Basis) -> tuple[int, bool, int, int]:
        runs = basis.campaign.runs
        on_gpu, widest = runs["gpu_name"].notna().any(), int(runs["data_parallel_size"].max())
        return abs(basis.concurrency - concurrency), not on_gpu, -widest, -basis.size

    return min(found, key=distance, default=None)


def take_apart(campaign: Campaign, runs: Sequence[str]) -> Steps:
    """The steps of one rank in the measured windows, taken apart.

    A full collection adds what it makes its step longer than the run's median, but no more than it
    lasted: on a GPU the beginning of it passes while the device is still at work. Every rank makes
    a young collection in nearly every step, so these stay in the common part.

    Of several ranks the lowest is taken; simultaneous pauses of several count each.

    Raises
    ------
    LockstepError
        If no run has steps.
    """
    common, paused = [], []
    intervals = in_window(campaign, step_intervals(campaign.steps))
    pauses = campaign.pauses[campaign.pauses["generation"] == FULL]
    workers = pauses[pauses["role"] == "worker"]
    for run in runs:
        own = intervals[intervals["run"] == run].sort_values("t_ns")
        own = own[own["rank"] == own["rank"].min()]
        if len(own) < 2:
            continue
        gap = own["interval_ns"].to_numpy("int64")
        end = own["t_ns"].to_numpy("int64")
        held = overlap(of_rows(workers[workers["run"] == run]), end - gap, end)
        added = np.clip(gap - int(np.median(gap)), 0, held)
        common.append(gap - added)
        paused.append(added)
    if not common:
        raise LockstepError(f"{campaign.path.name}: no steps of one rank in the measured windows")
    return Steps(common=tuple(common), paused=tuple(paused))
