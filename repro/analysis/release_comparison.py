"""The patch of this package compared with the vLLM releases on both sides of the pull request."""

from __future__ import annotations

from itertools import product

import pandas as pd

from repro import releases
from repro.analysis.arms import Pair, freezes
from repro.analysis.gc_cost import full_collections
from repro.analysis.tails import effect
from repro.dataset import Campaign, in_window, under_load
from repro.stats.estimate import Estimate, unsupported
from repro.stats.ratios import NEEDS_RUNS, ratio_of_runs

SAME_LOAD = ["machine", "model", "client", "executor", "load", "capture_policy"]
SAME_LOAD += ["tensor_parallel_size", "data_parallel_size"]


def release_pairs(campaign: Campaign) -> list[Pair]:
    """All pairs of arms with the same heap and load, from before and after the pull request.

    In one of the two arms the policy, not the release, decides the heap.
    """
    arms = under_load(campaign).runs.drop_duplicates("arm").copy()
    arms["frozen"] = [freezes(campaign, arm) for arm in arms["arm"]]
    arms["after"] = _has_freeze(arms)
    found = []
    for (*_, frozen), alike in arms.groupby([*SAME_LOAD, "frozen"]):
        if frozen == "unknown":
            continue
        before, after = (alike.loc[alike["after"] == side, "arm"] for side in (False, True))
        found += [Pair(baseline=str(b), treated=str(a)) for b, a in product(before, after)]
    return found


def release_ratios(campaign: Campaign, pair: Pair) -> dict[str, Estimate]:
    """Ratios of the arm after the pull request to the arm before it.

    Returns
    -------
    dict of str to Estimate
        Of the worker's median `full collection` and `steps between` two of them (by runs), of
        `P99 ITL` and of `tokens/s`.
    """
    full = full_collections(campaign)
    full = full[full["role"] == "worker"]
    length = full.groupby(["arm", "run"], observed=True)["duration_ns"].median()
    return {
        "full collection": _of_runs(length, pair),
        "steps between": _of_runs(steps_between(campaign, full), pair),
        "P99 ITL": effect(campaign, pair.baseline, pair.treated, 0.99),
        "tokens/s": _of_runs(campaign.runs.set_index(["arm", "run"])["tokens_per_s"], pair),
    }


def steps_between(campaign: Campaign, full: pd.DataFrame) -> pd.Series:
    """Steps of each run's window over its full collections, by arm and run."""
    steps = in_window(campaign, campaign.steps).groupby("run", observed=True).size()
    number = full.groupby(["arm", "run"], observed=True).size()
    runs = number.index.get_level_values("run")
    return pd.Series(steps.reindex(runs).to_numpy() / number.to_numpy(), index=number.index)


def freezes_itself(runs: pd.DataFrame) -> pd.Series:
    """Whether each run's vLLM freezes its workers by itself: from 0.23 on, only on a GPU."""
    return runs["gpu_name"].notna() & _has_freeze(runs)


def _has_freeze(runs: pd.DataFrame) -> pd.Series:
    after = [releases.has_freeze(version) for version in runs["vllm"]]
    return pd.Series(after, index=runs.index, dtype=bool)


def _of_runs(values: pd.Series, pair: Pair) -> Estimate:
    if not {pair.baseline, pair.treated} <= set(values.index.get_level_values("arm")):
        return unsupported(needs=NEEDS_RUNS, steps=0)
    return ratio_of_runs(values[pair.baseline].tolist(), values[pair.treated].tolist())
