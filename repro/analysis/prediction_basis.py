"""Which recorded runs of one rank a prediction for many ranks rests on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from repro.analysis.arms import Pair, pairs
from repro.dataset import Campaign
from repro.theory.common_step import Steps, take_apart

DRIVERS = ("engine", "async_engine")
"""Clients that keep the engine busy. Through HTTP it may idle, and a pause then hides."""


@dataclass(frozen=True, kw_only=True)
class Basis:
    """One rank with and without the freeze, in all else alike.

    Attributes
    ----------
    campaign : Campaign
    pair : Pair
        The two arms.
    steps : dict of str to Steps
        Arm -> its steps.
    concurrency : int
        Requests in flight on the rank.
    runs : tuple of str
    """

    campaign: Campaign
    pair: Pair
    steps: dict[str, Steps]
    concurrency: int
    runs: tuple[str, ...]

    @property
    def size(self) -> int:
        """Steps of both arms."""
        return sum(map(len, self.steps.values()))


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
    for pair in pairs(campaign):
        arms = [pair.baseline, pair.treated]
        if not set(arms) <= set(alone["arm"]):
            continue
        of_arm = {arm: list(alone.loc[alone["arm"] == arm, "run"]) for arm in arms}
        found.append(
            Basis(
                campaign=campaign,
                pair=pair,
                steps={arm: take_apart(campaign, names) for arm, names in of_arm.items()},
                concurrency=int(alone.loc[alone["arm"] == arms[0], "concurrency"].iloc[0]),
                runs=tuple(run for names in of_arm.values() for run in names),
            )
        )
    return sorted(found, key=lambda basis: -basis.size)


def nearest(campaigns: Sequence[Campaign], concurrency: int) -> Basis | None:
    """The basis whose load is nearest; among equals on a GPU, then the one with the most steps."""
    found = [basis for campaign in campaigns for basis in bases(campaign)]

    def distance(basis: Basis) -> tuple[int, bool, int]:
        on_gpu = basis.campaign.runs["gpu_name"].notna().any()
        return abs(basis.concurrency - concurrency), not on_gpu, -basis.size

    return min(found, key=distance, default=None)
