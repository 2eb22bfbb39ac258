"""Quantiles of latencies by arm, with intervals, and their ratios between two arms."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import pandas as pd

from repro.dataset import Campaign, in_window
from repro.dataset.schema import NS_PER_MS
from repro.stats.bootstrap import (
    Floats,
    interval,
    mid_quantile,
    resampled_quantiles,
    steps_needed,
    weighted_quantiles,
)
from repro.stats.estimate import Estimate, supported, unsupported
from repro.stats.pairs import centre_of_pairs

Metric = Literal["itl", "ttft", "end_to_end", "step_interval"]
METRICS: tuple[Metric, ...] = get_args(Metric)

TAIL_QUANTILES = (0.5, 0.99, 0.999, 1.0)
"""The last is the maximum: the largest value measured, not an estimate of the largest possible. Its
interval shows how much depends on single blocks of steps; it cannot reach above the value."""

SCATTER_NS = {"serve": 10_000_000, "async_engine": 10_000_000}
"""Client -> width of the time bins that stand for its steps. The tokens of one engine step reach
these clients spread over milliseconds: through HTTP, or from several ranks with a message each. Any
other client receives the tokens of a step at once."""

_SAMPLE_COLUMNS = ["run", "t_ns", "step", "value_ns", "count"]
_TABLE_COLUMNS = [
    *("arm", "quantile", "value_ms", "low_ms", "high_ms"),
    *("supported", "needs", "steps", "runs"),
]


def sample(campaign: Campaign, metric: Metric = "itl") -> pd.DataFrame:
    """All values of a metric in the measured windows.

    Returns
    -------
    pandas.DataFrame
        `run`, `t_ns`, `step` (increasing in time within a run; rows of one step are one
        observation), `value_ns`, `count` (occurrences of the value).

    Raises
    ------
    ValueError
        If the metric is unknown.
    """
    match metric:
        case "itl":
            rows = campaign.itl.rename(columns={"itl_ns": "value_ns"})
        case "ttft":
            rows = campaign.requests.rename(columns={"ttft_ns": "value_ns"}).assign(count=1)
        case "end_to_end":
            rows = campaign.requests.assign(count=1)
            decode = (rows["tpot_ns"] * (rows["output_tokens"] - 1)).fillna(0)
            rows = rows.assign(value_ns=rows["ttft_ns"] + decode)
        case "step_interval":
            # All ranks take one engine step together: its number makes them one observation.
            rows = step_intervals(campaign.steps).rename(columns={"interval_ns": "value_ns"})
            return in_window(campaign, rows.assign(count=1))[_SAMPLE_COLUMNS]
        case _:
            raise ValueError(f"unknown metric {metric!r}: choose one of {', '.join(METRICS)}")
    rows = in_window(campaign, rows)
    width = campaign.runs.set_index("run")["client"].map(SCATTER_NS).fillna(1).astype("int64")
    step = rows["t_ns"] // rows["run"].map(width).astype("int64")
    return rows.assign(step=step)[_SAMPLE_COLUMNS]


def step_intervals(steps: pd.DataFrame) -> pd.DataFrame:
    """Gaps between consecutive `execute_model` entries on one rank.

    Parameters
    ----------
    steps : pandas.DataFrame
        `Campaign.steps`, or rows of it without holes.

    Returns
    -------
    pandas.DataFrame
        `run`, `rank`, `step` and `t_ns` of the later entry, `interval_ns`. The first step of a
        rank has none.
    """
    ordered = steps.sort_values(["run", "rank", "start_ns"], kind="stable")
    gap = ordered.groupby(["run", "rank"], observed=True)["start_ns"].diff()
    later = ordered[gap.notna()]
    return later[["run", "rank", "step"]].assign(
        t_ns=later["start_ns"], interval_ns=gap[gap.notna()].astype("int64")
    )


def step_quantiles(
    rows: pd.DataFrame, quantiles: tuple[float, ...] = TAIL_QUANTILES, *, seed: int = 0
) -> list[Estimate]:
    """Quantiles of a sample, with intervals from resampled runs and blocks of steps.

    Parameters
    ----------
    rows : pandas.DataFrame
        From `sample`; the runs must be of one arm.
    quantiles : tuple of float
    seed : int

    Returns
    -------
    list of Estimate
        One per quantile, in the unit of `value_ns`.
    """
    steps = _count_steps(rows)
    needs = [steps_needed(quantile) for quantile in quantiles]
    if steps == 0:
        return [unsupported(needs=each, steps=0) for each in needs]
    found = _quantiles(rows, quantiles)
    bounds = interval(_replicates(rows, quantiles, seed))
    return [
        supported(*numbers, needs=each, steps=steps)
        for each, *numbers in zip(needs, found, *bounds, strict=True)
    ]


def tail_table(campaign: Campaign, metric: Metric = "itl") -> pd.DataFrame:
    """Quantiles of a metric by arm.

    Returns
    -------
    pandas.DataFrame
        `arm`, `quantile` (1 is the maximum), `value_ms`, `low_ms`, `high_ms` (NaN where not
        supported), `supported`, `needs`, `steps`, `runs`; arms in alphabetical order.
    """
    rows = sample(campaign, metric)
    table = []
    for arm, runs in campaign.runs.groupby("arm")["run"]:
        own = rows[rows["run"].isin(runs)]
        estimates = step_quantiles(own)
        for quantile, found in zip(TAIL_QUANTILES, estimates, strict=True):
            table.append(
                {
                    "arm": arm,
                    "quantile": quantile,
                    "value_ms": found.value / NS_PER_MS,
                    "low_ms": found.low / NS_PER_MS,
                    "high_ms": found.high / NS_PER_MS,
                    "supported": found.supported,
                    "needs": found.needs,
                    "steps": found.steps,
                    "runs": own["run"].nunique(),
                }
            )
    return pd.DataFrame(table, columns=_TABLE_COLUMNS)


def effect(
    campaign: Campaign,
    baseline_arm: str,
    treated_arm: str,
    quantile: float = 0.99,
    metric: Metric = "itl",
) -> Estimate:
    """The ratio of a quantile (1: the maximum) of the treated arm to the baseline's.

    Below 1 is an improvement. Arms are given by their labels.

    Raises
    ------
    ValueError
        If there is no such arm, or the metric is unknown.
    """
    rows = sample(campaign, metric)
    baseline, treated = (_rows_of_arm(campaign, rows, a) for a in (baseline_arm, treated_arm))
    steps = min(_count_steps(baseline), _count_steps(treated))
    needs = steps_needed(quantile)
    if steps == 0:
        return unsupported(needs=needs, steps=0)
    ratio = _quantiles(treated, (quantile,))[0] / _quantiles(baseline, (quantile,))[0]
    # Different seeds make the two arms independent.
    ratios = _replicates(treated, (quantile,), 0) / _replicates(baseline, (quantile,), 1)
    return supported(ratio, *interval(ratios)[:, 0], needs=needs, steps=steps)


def paired_effect(
    campaign: Campaign, baseline_arm: str, treated_arm: str, quantile: float = 0.5
) -> Estimate:
    """The ratio of ITL quantiles in neighbouring periods of cross-overs: a drift hits both of them.

    Each period gives one quantile, from its own gaps alone, and the ratio is the Hodges-Lehmann
    centre over the pairs of all engines.

    Returns
    -------
    Estimate
        `steps` and `needs` count pairs of periods.
    """
    runs = campaign.runs[campaign.runs["arm"].isin([baseline_arm, treated_arm])]
    rows = sample(campaign)
    found = {
        run: mid_quantile(
            of_run["value_ns"].to_numpy("float64"), of_run["count"].to_numpy("float64"), quantile
        )
        for run, of_run in rows[rows["run"].isin(runs["run"])].groupby("run", observed=True)
    }
    engine_period = runs["run"].str.rpartition("/")
    pair = engine_period[2].astype(int) // 2
    table = runs.assign(engine=engine_period[0], pair=pair, value=runs["run"].map(found))
    table = table.pivot_table(
        index=["engine", "pair"], columns="arm", values="value", observed=True
    )
    both = table.reindex(columns=[baseline_arm, treated_arm]).dropna()
    return centre_of_pairs(both[baseline_arm], both[treated_arm])


def _rows_of_arm(campaign: Campaign, rows: pd.DataFrame, arm: str) -> pd.DataFrame:
    runs = campaign.runs
    if arm not in set(runs["arm"]):
        arms = ", ".join(map(repr, sorted(runs["arm"].unique())))
        raise ValueError(f"no arm {arm!r} in this campaign: choose among {arms}")
    return rows[rows["run"].isin(runs.loc[runs["arm"] == arm, "run"])]


def _count_steps(rows: pd.DataFrame) -> int:
    return len(rows[["run", "step"]].drop_duplicates())


def _quantiles(rows: pd.DataFrame, quantiles: tuple[float, ...]) -> Floats:
    values, counts = rows["value_ns"].to_numpy("float64"), rows["count"].to_numpy("float64")
    return weighted_quantiles(values, counts, quantiles)


def _replicates(rows: pd.DataFrame, quantiles: tuple[float, ...], seed: int) -> Floats:
    return resampled_quantiles(
        rows["value_ns"].to_numpy("float64"),
        rows["count"].to_numpy("float64"),
        np.asarray(rows["run"].cat.codes, dtype=np.int64),
        rows["step"].to_numpy("int64"),
        quantiles,
        seed=seed,
    )
