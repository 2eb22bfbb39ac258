"""The patch against the release: does an old vLLM with the policy behave as the new one does?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from repro import releases
from repro.analysis.arms import freezes
from repro.analysis.gc_cost import full_collections
from repro.analysis.tails import Estimate, effect
from repro.dataset import Campaign, in_window, under_load
from repro.stats.ratios import ratio_of_runs

SETTING = ["machine", "model", "client", "executor", "load", "capture_policy"]
SETTING += ["tensor_parallel_size", "data_parallel_size"]


@dataclass(frozen=True, kw_only=True)
class Twins:
    """Two arms with the same heap and the same load, one on each side of the pull request.

    Attributes
    ----------
    before, after : str
        Arms of a vLLM without and with the pull request; in one of them the policy, not the
        release, decides the heap.
    frozen : bool
        Whether the workers of both are frozen.
    """

    before: str
    after: str
    frozen: bool


def twins(campaign: Campaign) -> list[Twins]:
    """The arms to compare, of runs under load; none on one side of the pull request alone."""
    arms = under_load(campaign).runs.drop_duplicates("arm").copy()
    arms["frozen"] = [freezes(campaign, arm) for arm in arms["arm"]]
    arms["after"] = [releases.has_freeze(version) for version in arms["vllm"]]
    found = []
    for (*_, frozen), alike in arms.groupby([*SETTING, "frozen"]):
        if frozen == "unknown":
            continue
        before, after = (alike.loc[alike["after"] == side, "arm"] for side in (False, True))
        found += [
            Twins(before=str(b), after=str(a), frozen=frozen == "yes")
            for b in before
            for a in after
        ]
    return found


def likeness(campaign: Campaign, pair: Twins) -> dict[str, Estimate]:
    """What the two arms differ in, after over before the pull request, each with its interval.

    Parameters
    ----------
    campaign : Campaign
    pair : Twins

    Returns
    -------
    dict of str to Estimate
        Ratios of the `full collection`'s median length and of the `steps between` two of the
        worker (by runs), of `P99 ITL` and of `tokens/s`.
    """
    full = full_collections(campaign)
    full = full[full["role"] == "worker"]
    length = full.groupby(["arm", "run"], observed=True)["duration_ns"].median()
    return {
        "full collection": _of_runs(length, pair),
        "steps between": _of_runs(steps_between(campaign, full), pair),
        "P99 ITL": effect(campaign, pair.before, pair.after, 0.99),
        "tokens/s": _of_runs(campaign.runs.set_index(["arm", "run"])["tokens_per_s"], pair),
    }


def steps_between(campaign: Campaign, full: pd.DataFrame) -> pd.Series:
    """Steps of each run's window over its full collections, by arm and run."""
    steps = in_window(campaign, campaign.steps).groupby("run", observed=True).size()
    number = full.groupby(["arm", "run"], observed=True).size()
    runs = number.index.get_level_values("run")
    return pd.Series(steps.reindex(runs).to_numpy() / number.to_numpy(), index=number.index)


def freezes_itself(runs: pd.DataFrame) -> pd.Series:
    """Whether each run's vLLM freezes its workers unasked: from 0.23 on, and on a GPU alone.

    Parameters
    ----------
    runs : pandas.DataFrame
        `Campaign.runs`, or rows of it.
    """
    on_gpu = runs["gpu_name"].notna()
    by_itself = map(releases.has_freeze, runs["vllm"])
    return on_gpu & pd.Series(list(by_itself), index=runs.index, dtype=bool)


def _of_runs(values: pd.Series, pair: Twins) -> Estimate:
    arms = set(values.index.get_level_values("arm"))
    before, after = (
        values[arm].tolist() if arm in arms else [] for arm in (pair.before, pair.after)
    )
    if before and after:
        return ratio_of_runs(before, after)
    nan = np.nan
    return Estimate(value=nan, low=nan, high=nan, supported=False, needs=2, steps=0)
