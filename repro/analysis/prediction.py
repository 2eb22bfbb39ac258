"""What many ranks would see, predicted from one: tables and sentences for page and terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from repro import fmt
from repro.analysis import ranks
from repro.analysis.prediction_basis import Basis, bases
from repro.dataset import Campaign
from repro.stats.bootstrap import EXPECTED_BEYOND
from repro.theory import lockstep
from repro.theory.common_step import predict, width_at
from repro.theory.lockstep import QUANTILES, Width

SHOWN = (1, 2, 8, 16, 32, 64, 128, 256, 1024)
BEYOND = "†"
"""Marks a number that rests on fewer stalls than it takes to measure one."""

RISE, DOUBLE = 1.1, 2.0


def by_ranks(basis: Basis, numbers: Sequence[int] = SHOWN) -> pd.DataFrame:
    """Predicted quantiles of ITL by number of ranks, with and without the freeze, as texts."""
    columns = {
        (arm, quantile): {row.ranks: _cell(row) for row in rows.itertuples()}
        for arm, steps in basis.steps.items()
        for quantile, rows in predict(steps, ranks=numbers).groupby("quantile")
    }
    order = [(arm, quantile) for quantile in QUANTILES for arm in basis.steps]
    return pd.DataFrame(
        {"ranks": [f"{number:,}" for number in numbers]}
        | {
            f"{fmt.quantile(quantile)}, {arm} (ms)": [
                columns[arm, quantile][number] for number in numbers
            ]
            for arm, quantile in order
        }
    )


def of_one_width(basis: Basis, number: int) -> pd.DataFrame:
    """Predicted quantiles of ITL of one number of ranks, beside those of one rank, as texts."""
    found = {arm: predict(steps, ranks=[1, number]) for arm, steps in basis.steps.items()}
    columns = {
        f"{fmt.plural(ranks, 'rank')}, {arm} (ms)": [
            _cell(row) for row in rows[rows["ranks"] == ranks].itertuples()
        ]
        for ranks in dict.fromkeys([1, number])
        for arm, rows in found.items()
    }
    return pd.DataFrame({"ITL": map(fmt.quantile, QUANTILES)} | columns)


def if_all_else_were_independent(
    basis: Basis, numbers: Sequence[int] = (1, 8, 32, 128)
) -> pd.DataFrame:
    """P99 if ordinary steps differed between ranks as freely as pauses do: the other extreme."""
    rows = {
        arm: lockstep.predict(steps.whole, ranks=numbers, quantiles=[0.99])
        for arm, steps in basis.steps.items()
    }
    return pd.DataFrame(
        {"ranks": [f"{number:,}" for number in numbers]}
        | {f"P99, {arm} (ms)": [_cell(row) for row in of.itertuples()] for arm, of in rows.items()}
    )


def widths(basis: Basis) -> pd.DataFrame:
    """From how many ranks on P99 rises by a tenth and doubles, with and without the freeze."""
    return pd.DataFrame(
        [
            {
                "arm": arm,
                "P99 of one rank rises by 10%": _from(width_at(steps, RISE)),
                "doubles": _from(width_at(steps, DOUBLE)),
                "steps that a pause doubled": f"{steps.stalls:,} of {len(steps):,}",
            }
            for arm, steps in basis.steps.items()
        ]
    )


def sentence(basis: Basis) -> str:
    """The widths of the arm without the freeze, in one sentence."""
    steps = basis.steps[basis.pair.baseline]
    rise, double = width_at(steps, RISE), width_at(steps, DOUBLE)
    seen = fmt.plural(steps.stalls, "such pause")
    few = "" if steps.stalls >= EXPECTED_BEYOND else f"; {seen} measured, too few to be sure"
    return (
        f"P99 of {basis.pair.baseline} is 10% above that of one rank {_from(rise)} and twice it "
        f"{_from(double)}{few}"
    )


def together(campaign: Campaign) -> pd.DataFrame:
    """Whether the ranks of a run pause in the same step, beside chance, as texts."""
    found = ranks.independence(campaign)
    return pd.DataFrame(
        {
            "arm": found["arm"],
            "ranks": found["ranks"].map(str) + " " + found["kind"],
            "steps with a full collection": found["steps"].map(str),
            "of two ranks at once": [
                fmt.share(row.share, row.low, row.high) if row.steps else "–"
                for row in found.itertuples()
            ],
            "by chance, 97.5% of the time at most": [
                fmt.percent(row.chance_high) if row.steps else "–" for row in found.itertuples()
            ],
            "steps to the nearest of another rank": found["apart"].map(fmt.figures),
        }
    )


def waiting(campaign: Campaign) -> pd.DataFrame:
    """How much of one rank's pause shows in another rank's step, as texts."""
    found = ranks.coupling(campaign)
    return pd.DataFrame(
        {
            "arm": found["arm"],
            "ranks": found["ranks"].map(str) + " " + found["kind"],
            "pauses": found["pauses"].map(str),
            "shows in another rank's step": [
                fmt.share(row.share, row.low, row.high) for row in found.itertuples()
            ],
            "at any other time": found["chance"].map(fmt.percent),
        }
    )


def held_against(campaign: Campaign) -> pd.DataFrame:
    """Measured quantiles of several ranks beside the predicted ones, as texts."""
    found = ranks.against_prediction(campaign)
    return pd.DataFrame(
        {
            "arm": found["arm"],
            "ranks": found["ranks"].map(str),
            "quantile": found["quantile"].map(fmt.quantile),
            "measured (ms)": [
                f"{fmt.figures(row.value_ms)} ({fmt.bounds(row.low_ms, row.high_ms)})"
                for row in found.itertuples()
            ],
            "predicted (ms)": [
                f"{fmt.figures(row.predicted_ms)} "
                f"({fmt.bounds(row.predicted_low_ms, row.predicted_high_ms)})"
                for row in found.itertuples()
            ],
            "inside": found["inside"].map({True: "yes", False: "no"}),
            "measured over predicted": [f"×{fmt.figures(off)}" for off in found["off"]],
        }
    )


def origin(basis: Basis) -> str:
    """What the prediction rests on, and what its marks mean."""
    runs = basis.campaign.runs[basis.campaign.runs["run"].isin(basis.runs)]
    first = runs.iloc[0]
    return (
        f"Predicted, not measured: one rank of {first['model']} on {first['machine']} with "
        f"{basis.concurrency:,} in flight (campaign {basis.campaign.path.name}, vLLM "
        f"{fmt.listed(sorted(runs['vllm'].unique()))}, {fmt.plural(len(runs), 'run')}, "
        f"{basis.size:,} steps), whose worker's pauses each rank has independently. In brackets "
        f"95% intervals; {BEYOND} beyond what so few pauses can tell."
    )


def warnings(
    basis: Basis, number: int, concurrency: int, campaigns: Sequence[Campaign]
) -> list[str]:
    """What of a question lies outside what was measured, one line each."""
    most = max([1, *(rank for c in campaigns for rank in ranks.several(c)["ranks"])])
    said = []
    if concurrency != basis.concurrency:
        said.append(
            f"{concurrency:,} in flight a rank was not measured, this is for "
            f"{basis.concurrency:,}; how often workers pause depends on it: measure with repro run"
        )
    if number > most:
        said.append(
            f"no campaign here has measured more than {fmt.plural(most, 'rank')} at once: "
            f"{fmt.plural(number, 'rank')} is a prediction"
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


def _cell(row: Any) -> str:
    mark = "" if row.supported else BEYOND
    return f"{fmt.figures(row.value_ms)}{mark} ({fmt.bounds(row.low_ms, row.high_ms)})"


def _from(width: Width) -> str:
    """`from 24 ranks on (11 to ∞)`."""
    if math.isinf(width.ranks):
        return f"at no width seen, and not before {width.low:,.0f} ranks"
    return f"from {width.ranks:,.0f} ranks on ({_ranks(width.low)} to {_ranks(width.high)})"


def _ranks(number: float) -> str:
    return "∞" if math.isinf(number) else f"{number:,.0f}"
