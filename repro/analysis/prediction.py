"""Predictions for many ranks from one: quantities with intervals, a register, and sentences."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from repro import fmt
from repro.analysis import ranks
from repro.analysis.prediction_basis import Basis, bases, take_apart
from repro.dataset import Campaign
from repro.stats.bootstrap import EXPECTED_BEYOND, Floats, interval
from repro.theory.lockstep import LENGTH, QUANTILES, SPREAD, Steps, burst, simulate

BEYOND = "†"
"""Marks a number that rests on fewer stalls than it takes to measure one."""

FALLS = 0.8
"""P99 with over without the freeze below which the freeze matters: a fifth lower."""

WIDTHS = (1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 20, 24, 32, 48, 64)

MODEL = (
    f"group step = common part + longest pause among the ranks; one burst per period; the ranks' "
    f"offsets in a burst are uniform over {SPREAD} steps and stay the same"
)

TIMES = {fmt.quantile(quantile): quantile for quantile in QUANTILES}


def quantities(
    basis: Basis, arm: str, number: int, *, group: Steps | None = None, length: int = LENGTH
) -> pd.DataFrame:
    """What a group of ranks would measure in `length` steps.

    Parameters
    ----------
    basis : Basis
    arm : str
        One of the basis.
    number : int
        Of ranks.
    group : Steps, optional
        Measured steps of a frozen group, whose ordinary steps are taken in place of one rank's.
    length : int

    Returns
    -------
    pandas.DataFrame
        `quantity`, `unit`, `value`, `low`, `high`: quantiles of the ITL, the longest step, the
        share of stalled steps, tokens/s.
    """
    one = basis.steps[arm]
    steps = one if group is None else replace(one, common=group.common)
    found = simulate(steps, number, length=length)
    rows: list[tuple[str, str, Floats]] = [
        (name, "ms", found.quantiles[:, column] / 1e6) for column, name in enumerate(TIMES)
    ]
    rows.append(("longest", "ms", found.longest / 1e6))
    rows.append(("stalled share", "%", 100 * found.stalled))
    per_step = number * basis.tokens_per_step[arm]
    rows.append(("tokens/s", "tokens/s", per_step / (found.mean / 1e9)))
    table = [(name, unit, np.median(drawn), *interval(drawn)) for name, unit, drawn in rows]
    return pd.DataFrame(table, columns=["quantity", "unit", "value", "low", "high"])


def register(basis: Basis, number: int, path: Path) -> Path:
    """Write a prediction to be held against a later measurement, as JSON.

    Twice: on the ordinary steps of one rank, and on those of the widest frozen group measured.
    """
    commons: dict[str, Steps | None] = {"one rank": None}
    groups = frozen_groups(basis)
    if groups:
        commons[f"{max(groups)} ranks, frozen"] = groups[max(groups)]
    rows = [
        {"ranks": number, "arm": policy, "ordinary steps of": name}
        | {key: round(value, 3) if key in numbers else value for key, value in row.items()}
        for name, group in commons.items()
        for policy, arm in (("no-freeze", basis.pair.baseline), ("freeze", basis.pair.treated))
        for numbers in [("value", "low", "high")]
        for row in quantities(basis, arm, number, group=group).to_dict("records")
    ]
    document = {
        "model": MODEL,
        "interval": f"95% of simulated measurements of {LENGTH} steps",
        "not claimed": "the ordinary step's growth with ranks, which one rank cannot tell",
        "date": date.today().isoformat(),
        "campaign": basis.campaign.path.name,
        "basis_runs": list(basis.runs),
        "period_steps": {arm: steps.period for arm, steps in basis.steps.items()},
        "predictions": rows,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    return path


def frozen_groups(basis: Basis) -> dict[int, Steps]:
    """Ranks -> steps of the frozen group measured under the same load as the basis."""
    groups = ranks.alike(basis)
    groups = groups[groups["policy"] == ranks.policy_of(basis.campaign, basis.pair.treated)]
    return {
        int(number): take_apart(basis.campaign, list(of_width["run"]))
        for number, of_width in groups.groupby("ranks")
    }


def against_measured(basis: Basis) -> pd.DataFrame:
    """Measured quantities of every wider group beside those predicted for it.

    The ordinary steps are those of the measured frozen group: one rank cannot tell how they grow.
    For P50 they are one rank's, which shows that growth.

    Returns
    -------
    pandas.DataFrame
        `arm`, `policy`, `ranks`, `quantity`, `unit`, `measured`, `low`, `high`, `predicted`,
        `predicted_low`, `predicted_high`, `inside` (the intervals overlap).
    """
    groups = frozen_groups(basis)
    tables = []
    for (number, arm), runs in ranks.alike(basis).groupby(["ranks", "arm"]):
        policy = runs["policy"].iloc[0]
        alone = {ranks.policy_of(basis.campaign, own): own for own in basis.steps}[policy]
        seen = ranks.measured(basis.campaign, str(arm))
        length = int(seen["steps"].iloc[0])
        told = quantities(basis, alone, int(number), group=groups.get(int(number)), length=length)
        own = quantities(basis, alone, int(number), length=length)
        told = pd.concat([own[own["quantity"] == "P50"], told[told["quantity"] != "P50"]])
        told = told.rename(columns={name: f"predicted_{name}" for name in ("low", "high")})
        told = told.rename(columns={"value": "predicted"})
        both = seen.merge(told, on="quantity")
        tables.append(both.assign(arm=arm, policy=policy, ranks=int(number)))
    if not tables:
        return pd.DataFrame(columns=["arm", "policy", "ranks", "quantity", "inside"])
    found = pd.concat(tables, ignore_index=True)
    inside = (found["low"] <= found["predicted_high"]) & (found["high"] >= found["predicted_low"])
    return found.assign(inside=inside)


def ratios(basis: Basis, number: int, quantile: float = 0.99) -> tuple[float, float, float]:
    """A quantile with over without the freeze, predicted: value and 95% interval."""
    without, treated = (basis.steps[arm] for arm in (basis.pair.baseline, basis.pair.treated))
    drawn = simulate(treated, number, quantiles=[quantile], seed=1).quantiles[:, 0]
    drawn = drawn / simulate(without, number, quantiles=[quantile]).quantiles[:, 0]
    low, high = interval(drawn)
    return float(np.median(drawn)), float(low), float(high)


def width(basis: Basis) -> tuple[int | None, int | None]:
    """Ranks from which P99 falls below `FALLS`, as predicted: more likely than not, and surely."""
    likely = sure = None
    for number in WIDTHS:
        value, _, high = ratios(basis, number)
        likely = likely or (number if value < FALLS else None)
        sure = sure or (number if high < FALLS else None)
        if sure:
            break
    return likely, sure


def sentence(basis: Basis) -> str:
    """The width from which the freeze moves P99, in one sentence."""
    likely, sure = width(basis)
    if likely is None:
        return f"the freeze is predicted to leave P99 as it is up to {WIDTHS[-1]} ranks"
    said = f"the freeze is predicted to lower P99 by a fifth or more from {likely:,} ranks on"
    said += f", with 95% certainty from {sure:,}" if sure else ", at no width with certainty"
    stalls = basis.unfrozen.stalls
    few = f" ({fmt.plural(stalls, 'stall')} measured, fewer than {EXPECTED_BEYOND})"
    return said + (few if stalls < EXPECTED_BEYOND else "")


def burst_sentence(basis: Basis, number: int) -> str:
    """One burst of the group without the freeze, and what a request sees of it."""
    steps = basis.unfrozen
    if steps.stalls == 0:
        return "no full collection of the one rank stalled a step: no burst is predicted"
    found = burst(steps, number)
    period = steps.period or len(steps) / len(steps.pauses)
    tokens = float(basis.answer_tokens)
    usual = steps.usual * tokens
    low, high = interval(found.stalled)
    every = (period * steps.usual + float(np.median(found.stall_ns))) / 1e9
    return (
        f"Without the freeze {fmt.plural(number, 'rank')} make one burst per "
        f"{fmt.count(period)} steps (about {fmt.figures(every)} s): "
        f"{np.median(found.stalled):.0f} stalled steps ({low:.0f} to {high:.0f}) within "
        f"{fmt.figures(float(np.median(found.length_ns)) / 1e9)} s. A request of "
        f"{fmt.amount(tokens)} tokens that lives through it takes "
        f"{fmt.figures((usual + float(np.median(found.stall_ns))) / 1e9)} s in place of "
        f"{fmt.figures(usual / 1e9)} s; its longest gap is "
        f"{fmt.ms(float(np.median(found.longest_ns)) / 1e6)}"
    )


def of_one_width(basis: Basis, number: int) -> pd.DataFrame:
    """Predicted quantities of one number of ranks beside those of one rank, as texts."""
    columns = {
        f"{fmt.plural(count, 'rank')}, {arm}": [
            _cell(row, basis.steps[arm]) for row in quantities(basis, arm, count).itertuples()
        ]
        for count in dict.fromkeys([1, number])
        for arm in basis.steps
    }
    names = [f"ITL {name} (ms)" for name in TIMES]
    names += ["longest ITL (ms)", "stalled steps (%)", "tokens/s"]
    return pd.DataFrame({"quantity": names} | columns)


def held_against(basis: Basis) -> pd.DataFrame:
    """The rows of `against_measured` as texts."""
    found = against_measured(basis)
    return pd.DataFrame(
        {
            "ranks": found["ranks"].map(str),
            "arm": found["policy"],
            "quantity": [f"{row.quantity} ({row.unit})" for row in found.itertuples()],
            "measured": [_between(r.measured, r.low, r.high) for r in found.itertuples()],
            "predicted": [
                _between(r.predicted, r.predicted_low, r.predicted_high) for r in found.itertuples()
            ],
            "agree": found["inside"].map({True: "yes", False: "no"}),
        }
    )


def waiting(campaign: Campaign) -> pd.DataFrame:
    """Share of one rank's pause in another rank's step, as texts."""
    found = ranks.coupling(campaign)
    return pd.DataFrame(
        {
            "arm": found["arm"],
            "pauses": found["pauses"].map(str),
            "shows in another rank's step": [
                fmt.share(row.share, row.low, row.high) for row in found.itertuples()
            ],
            "at any other time": found["chance"].map(fmt.percent),
        }
    )


def burst_table(campaign: Campaign) -> pd.DataFrame:
    """Measured bursts by width and policy: medians as texts."""
    found = ranks.bursts(campaign)
    rows = []
    for (number, policy), own in found.groupby(["ranks", "policy"]):
        middle = own.median(numeric_only=True)
        rows.append(
            {
                "ranks": f"{number}",
                "policy": policy,
                "bursts": f"{len(own)}",
                "length (s)": fmt.figures(middle["length_s"]),
                "first to last (steps)": fmt.amount(middle["spread_steps"]),
                "steps with a collection": fmt.amount(middle["stalled_steps"]),
                "pause (ms)": fmt.figures(middle["pause_ms"]),
                "period (steps)": fmt.figures(middle["period_steps"]),
                "largest change of an offset (steps)": fmt.figures(own["drift_steps"].max()),
            }
        )
    return pd.DataFrame(rows)


def origin(basis: Basis) -> str:
    """The runs behind the prediction, and the meaning of its marks."""
    runs = basis.campaign.runs[basis.campaign.runs["run"].isin(basis.runs)]
    first = runs.iloc[0]
    return (
        f"Predicted, not measured: one rank of {first['model']} on {first['machine']} with "
        f"{basis.concurrency:,} in flight (campaign {basis.campaign.path.name}, vLLM "
        f"{fmt.listed(sorted(runs['vllm'].unique()))}, {fmt.plural(len(runs), 'run')}, "
        f"{basis.size:,} steps). The ordinary step grows with the number of ranks, which one rank "
        f"cannot tell: the times are on one rank's. In brackets 95% intervals of a measurement of "
        f"{LENGTH:,} steps; {BEYOND} rests on fewer than {EXPECTED_BEYOND} stalls."
    )


def warnings(
    basis: Basis, number: int, concurrency: int, campaigns: Sequence[Campaign]
) -> list[str]:
    """What of a question lies outside what was measured, one line each."""
    measured = sorted({1, *(int(n) for c in campaigns for n in ranks.several(c)["ranks"])})
    said = []
    if concurrency != basis.concurrency:
        said.append(
            f"{concurrency:,} in flight per rank was not measured, this is for "
            f"{basis.concurrency:,}; how often workers pause depends on it: measure with repro run"
        )
    if number not in measured:
        near = sorted(measured, key=lambda width: abs(np.log(width / number)))[:2]
        widths = fmt.listed(f"{width:,}" for width in sorted(near))
        said.append(
            f"{fmt.plural(number, 'rank')} is a prediction; measured widths nearest to it: {widths}"
        )
    return said


def without_basis(campaigns: Sequence[Campaign]) -> str:
    """The one line for campaigns that nothing can be predicted from."""
    named = fmt.listed(campaign.path.name for campaign in campaigns)
    return (
        f"{named}: no runs of one rank with and without the freeze and executor mp; "
        "measure them with repro run"
    )


def has_basis(campaign: Campaign) -> bool:
    """Whether something can be predicted from a campaign."""
    return bool(bases(campaign))


def _cell(row: Any, steps: Steps) -> str:
    rests_on_stalls = row.unit == "ms" and row.value * 1e6 > 2 * steps.usual
    mark = BEYOND if rests_on_stalls and steps.stalls < EXPECTED_BEYOND else ""
    return _between(row.value, row.low, row.high).replace(" (", f"{mark} (", 1)


def _between(value: float, low: float, high: float) -> str:
    return f"{fmt.figures(value)} ({fmt.bounds(low, high)})"
