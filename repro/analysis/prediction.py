"""Predictions for many ranks from one: quantities, a register, and what was measured later."""

from __future__ import annotations

import bisect
import json
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from repro import fmt
from repro.analysis.prediction_basis import Basis
from repro.analysis.ranks import group_steps, measured, policy_of
from repro.dataset import Campaign
from repro.stats.bootstrap import EXPECTED_BEYOND, Floats, Integers, interval
from repro.theory.lockstep import (
    LENGTH,
    LIFETIME,
    QUANTILES,
    STALLED,
    UNIFORM,
    Steps,
    burst,
    lifetimes,
    simulate,
)

FALLS = 0.8
"""P99 with over without the freeze below which the freeze matters: a fifth lower."""

WIDTHS = (1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 20, 24, 32, 48, 64)

MODEL = (
    "group step = common part + longest pause among the ranks; one burst per period; the ranks' "
    "offsets in a burst are drawn from those of measured groups, without any uniformly over 12 "
    "steps, and stay the same"
)

TIMES = [fmt.quantile(quantile) for quantile in QUANTILES]
UNITS = {
    **dict.fromkeys([*TIMES, "longest"], "ms"),
    "stalled share": "%",
    "tokens/s": "tokens/s",
    "stalled steps per burst": "steps",
    "burst": "s",
}

BOUNDS = {"value": "predicted", "low": "predicted_low", "high": "predicted_high"}
COMPARED = ["quantity", "unit", "measured", "low", "high", "steps", *BOUNDS.values(), "inside"]


def quantities(steps: Steps, number: int, tokens: float, *, length: int = LENGTH) -> pd.DataFrame:
    """Quantities that a group of ranks would measure in `length` steps.

    Parameters
    ----------
    steps : Steps
        Of one rank.
    number : int
        Of ranks.
    tokens : float
        That one rank generates per step.
    length : int

    Returns
    -------
    pandas.DataFrame
        `quantity`, `unit`, `value`, `low`, `high`: quantiles of the ITL, the longest gap, the
        share of stalled steps, tokens/s, and of one burst its stalled steps and its length.
    """
    found = simulate(steps, number, length=length)
    drawn: dict[str, Floats | pd.Series] = dict(zip(TIMES, found.quantiles.T / 1e6, strict=True))
    drawn |= {"longest": found.longest / 1e6, "stalled share": 100 * found.stalled}
    drawn["tokens/s"] = number * tokens / (found.mean / 1e9)
    if len(steps.pauses):
        one = burst(steps, number, 1)
        drawn |= {"stalled steps per burst": one["stalled_steps"], "burst": one["length_s"]}
    table = [(name, UNITS[name], np.median(each), *interval(each)) for name, each in drawn.items()]
    return pd.DataFrame(table, columns=["quantity", "unit", "value", "low", "high"])


def register(basis: Basis, number: int, path: Path) -> Path:
    """Write a prediction as JSON: on the ordinary steps of one rank, and of the widest frozen."""
    widest = basis.groups.loc[basis.groups["policy"] == "freeze", "ranks"].max()
    widths = {"one rank": None} | ({f"{widest} ranks, frozen": widest} if widest > 1 else {})
    rows = [
        {"ranks": number, "arm": policy, "ordinary steps of": name}
        | {key: round(value, 3) if key in numbers else value for key, value in row.items()}
        for name, width in widths.items()
        for policy in basis.steps
        for numbers in [("value", "low", "high")]
        for row in quantities(
            basis.in_a_group(policy, width), number, basis.tokens_per_step[policy]
        ).to_dict("records")
    ]
    document = {
        "model": MODEL,
        "interval": f"95% of simulated measurements of {LENGTH} steps",
        "not claimed": "the ordinary step's growth with ranks, which one rank cannot tell",
        "date": date.today().isoformat(),
        "campaign": basis.campaign.path.name,
        "basis_runs": list(basis.runs),
        "period_steps": {policy: steps.period for policy, steps in basis.steps.items()},
        "predictions": rows,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    return path


def against_measured(basis: Basis) -> pd.DataFrame:
    """Measured effects of pauses in every wider group, beside the prediction.

    The period and the pauses are one rank's. The ordinary steps are those of the frozen group of
    that width, and the offsets those of the other widths. Left out is what ordinary steps make:
    frozen groups, P50, tokens/s, and quantiles that are measured and predicted below a stall.

    Returns
    -------
    pandas.DataFrame
        `ranks`, `arm`, `quantity`, `unit`, `measured`, `low`, `high`, `predicted`,
        `predicted_low`, `predicted_high`, `inside` (the intervals overlap).
    """
    groups = basis.groups
    frozen = groups.loc[groups["policy"] == "freeze", "ranks"]
    groups = groups[(groups["policy"] == "no-freeze") & groups["ranks"].isin(frozen)]
    tables = [pd.DataFrame(columns=[*COMPARED, "ranks", "arm"])]
    for (number, arm), _ in groups.groupby(["ranks", "arm"]):
        seen = measured(basis.campaign, arm)
        steps = basis.in_a_group("no-freeze", number)
        tokens = basis.tokens_per_step["no-freeze"]
        told = quantities(steps, number, tokens, length=int(seen["steps"].iloc[0]))
        found = _compared(seen, told).assign(ranks=number, arm=arm)
        most = found[["measured", "predicted"]].max(axis=1)
        ordinary = (found["unit"] == "ms") & (most < STALLED * steps.usual / 1e6)
        tables.append(found[~ordinary & (found["unit"] != "tokens/s")])
    return pd.concat(tables[1:] or tables, ignore_index=True)


def registered(campaign: Campaign) -> pd.DataFrame:
    """Predictions in `predictions/` beside `campaign`, as registered, with what it measured later.

    Returns
    -------
    pandas.DataFrame
        As `against_measured`, with `policy`, `ordinary` (whose ordinary steps) and `why` (of what
        is not inside). Groups that were not measured have NaN.
    """
    runs = campaign.runs
    arms = {
        (int(own["data_parallel_size"].iloc[0]), policy_of(campaign, arm)): arm
        for arm, own in runs.groupby("arm")
    }
    tables = []
    for path in sorted((campaign.path.parent / "predictions").glob("*.json")):
        document = json.loads(path.read_text())
        if document["campaign"] != campaign.path.name:
            continue
        rows = pd.DataFrame(document["predictions"]).rename(columns={"arm": "policy"})
        keys = ["ranks", "policy", "ordinary steps of"]
        for (number, policy, ordinary), told in rows.groupby(keys, sort=False):
            arm = arms.get((number, policy))
            if arm is None:
                continue
            seen = measured(campaign, arm)
            found = _compared(seen, told[["quantity", "unit", *BOUNDS]])
            by_name = seen.set_index("quantity")["measured"]
            growth = by_name["P50"] / found.set_index("quantity")["predicted"]["P50"]
            per_burst = by_name.get("stalled steps per burst", np.nan)
            found["why"] = [_reason(row, growth, per_burst) for row in found.itertuples()]
            tables.append(found.assign(ranks=number, policy=policy, ordinary=ordinary, arm=arm))
    if not tables:
        return pd.DataFrame(columns=[*COMPARED, "why", "ranks", "policy", "ordinary", "arm"])
    return pd.concat(tables, ignore_index=True).sort_values("ranks", kind="stable")


def _compared(seen: pd.DataFrame, told: pd.DataFrame) -> pd.DataFrame:
    both = seen.merge(told.rename(columns=BOUNDS), on="quantity")
    inside = (both["low"] <= both["predicted_high"]) & (both["high"] >= both["predicted_low"])
    return both.assign(inside=inside)[COMPARED]


def _reason(row: Any, growth: float, per_burst: float) -> str:
    """Reason why a registered quantity is not inside, by the two things not known.

    Parameters
    ----------
    row : namedtuple
        Of `_compared`.
    growth : float
        The measured P50 over the registered one.
    per_burst : float
        Measured stalled steps per burst.
    """
    if row.inside:
        return ""
    scale = growth if row.unit == "ms" else 1 / growth
    low, high = row.predicted_low * scale, row.predicted_high * scale
    if row.unit == "tokens/s" or (row.unit == "ms" and row.low <= high and row.high >= low):
        return f"ordinary step ×{fmt.figures(growth)}"
    if row.unit == "%" or row.measured < row.predicted * growth:
        return f"ranks share stalled steps: {fmt.amount(per_burst)} per burst"
    return f"ordinary step ×{fmt.figures(growth)}, its tail more"


def requests(basis: Basis) -> pd.DataFrame:
    """Requests of mean length, from steps: those that meet a burst and those that do not.

    A request gets one token per step. Nothing is taken from the table `requests`.

    Returns
    -------
    pandas.DataFrame
        One row per number of ranks: `ranks`, `bursts`, and per column of `LIFETIME` the medians
        `<column>_outside`, `<column>_measured` (through a burst) and `<column>_predicted`, with
        `<column>_low` and `<column>_high` (95% of predicted bursts).
    """
    groups = basis.groups
    widths = {1: basis.campaign.runs.query("arm == @basis.pair.baseline")["run"]}
    unfrozen = groups[groups["policy"] == "no-freeze"]
    widths |= {int(number): own["run"] for number, own in unfrozen.groupby("ranks")}
    rows = []
    for number, runs in widths.items():
        gaps = group_steps(basis.campaign, list(runs))
        lived = [lifetimes(gap, basis.answer_tokens, float(np.median(gap))) for gap in gaps]
        # Requests that meet one burst begin at consecutive steps.
        met_bursts = sum(int((np.diff(met, prepend=False) & met).sum()) for met, _ in lived)
        row: dict[str, Any] = {"ranks": number, "bursts": met_bursts}
        met, seen = (np.concatenate(parts, axis=-1) for parts in zip(*lived, strict=True))
        steps = basis.in_a_group("no-freeze", number)
        told = pd.DataFrame()
        if len(steps.pauses) and number in {1, *groups.loc[groups["policy"] == "freeze", "ranks"]}:
            told = burst(steps, number, basis.answer_tokens)
        for column, values in zip(LIFETIME, seen, strict=True):
            for name, chosen in (("outside", values[~met]), ("measured", values[met])):
                row[f"{column}_{name}"] = np.median(chosen) if len(chosen) else np.nan
            if column in told:
                low, high = interval(told[column].to_numpy())
                row |= {f"{column}_predicted": told[column].median()}
                row |= {f"{column}_low": low, f"{column}_high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def width(basis: Basis, offsets: tuple[Integers, ...] = ()) -> tuple[int | None, int | None]:
    """Ranks from which P99 likely, and surely, falls below `FALLS`; `offsets` else as measured."""
    frozen, without = basis.steps["freeze"], basis.in_a_group("no-freeze")
    without = replace(without, offsets=offsets or without.offsets)

    def ratio(number: int) -> Floats:
        # Different seeds make the two arms independent.
        found = simulate(frozen, number, quantiles=(0.99,), seed=1).quantiles[:, 0]
        return np.asarray(found / simulate(without, number, quantiles=(0.99,)).quantiles[:, 0])

    # Wider groups stall more often: the ratio falls with the width.
    likely = bisect.bisect(WIDTHS, -FALLS, key=lambda number: -float(np.median(ratio(number))))
    sure = bisect.bisect(WIDTHS, -FALLS, key=lambda number: -float(interval(ratio(number))[1]))
    widths = dict(enumerate(WIDTHS))
    return widths.get(likely), widths.get(sure)


def sentence(basis: Basis) -> str:
    """The width from which the freeze moves P99, in one sentence."""
    likely, sure = width(basis)
    measured_groups = basis.in_a_group("no-freeze").offsets is not UNIFORM
    if likely is None:
        said = f"the freeze is predicted to leave P99 as it is up to {WIDTHS[-1]} ranks"
    else:
        said = f"the freeze is predicted to lower P99 by a fifth or more from {likely:,} ranks on"
        said += f", with 95% certainty from {sure:,}" if sure else ", at no width with certainty"
    if measured_groups:
        apart, _ = width(basis, UNIFORM)
        said += f" (from {apart} if the ranks' offsets were uniform)" if apart else ""
    stalls = basis.unfrozen.stalls
    few = f" ({fmt.plural(stalls, 'stall')} measured, fewer than {EXPECTED_BEYOND})"
    return said + (few if stalls < EXPECTED_BEYOND else "")
