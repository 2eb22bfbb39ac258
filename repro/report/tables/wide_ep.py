"""Texts and tables of the notebook `wide_ep`, of `repro predict` and of its warnings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from repro import fmt
from repro.analysis import prediction, ranks
from repro.analysis.prediction import TIMES, UNITS
from repro.analysis.prediction_basis import Basis
from repro.dataset import Campaign
from repro.stats.bootstrap import EXPECTED_BEYOND, interval
from repro.theory.lockstep import LENGTH, STALLED, Steps, burst

BEYOND = "†"
"""Marks a number that rests on fewer stalls than it takes to measure one."""


def burst_sentence(basis: Basis, number: int) -> str:
    """One burst of the group without the freeze, and what a request sees of it."""
    steps = basis.in_a_group("no-freeze")
    if steps.stalls == 0:
        return "no full collection of the one rank stalled a step: no burst is predicted"
    tokens = basis.answer_tokens
    found = burst(steps, number, tokens)
    middle = found.median()
    period = steps.period or len(steps) / len(steps.pauses)
    every = period * steps.usual / 1e9 + middle["stall_s"]
    low, high = interval(found["stalled_steps"].to_numpy())
    return (
        f"Without the freeze {fmt.plural(number, 'rank')} make one burst per "
        f"{fmt.count(period)} steps (about {fmt.figures(every)} s): "
        f"{fmt.amount(middle['stalled_steps'])} stalled steps ({low:.0f} to {high:.0f}) within "
        f"{fmt.figures(middle['length_s'])} s. A request of {tokens} tokens that meets it takes "
        f"{fmt.figures(middle['seconds'])} s in place of "
        f"{fmt.figures(tokens * steps.usual / 1e9)} s; its longest gap is "
        f"{fmt.ms(middle['longest_ms'])}"
    )


def of_one_width(basis: Basis, number: int) -> pd.DataFrame:
    """Predicted quantities of one number of ranks beside those of one rank."""
    steps = {policy: basis.in_a_group(policy) for policy in basis.steps}
    columns = {
        f"{fmt.plural(count, 'rank')}, {policy}": {
            row.quantity: _cell(row, own)
            for row in prediction.quantities(own, count, basis.tokens_per_step[policy]).itertuples()
        }
        for count in dict.fromkeys([1, number])
        for policy, own in steps.items()
    }
    names = {name: f"ITL {name} (ms)" for name in TIMES} | {"longest": "longest ITL (ms)"}
    names |= {"stalled share": "stalled steps (%)", "tokens/s": "tokens/s"}
    return pd.DataFrame(
        {"quantity": names.values()}
        | {column: [cells[name] for name in names] for column, cells in columns.items()}
    )


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
    """Parts of a question outside the measurements, one line each."""
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


def nearest_groups(campaigns: Sequence[Campaign], number: int) -> str:
    """Stalled steps per burst of the unfrozen groups nearest in width, in one line."""
    found = [ranks.bursts(each).assign(campaign=each.path.name) for each in campaigns]
    unfrozen = pd.concat(found).query("policy == 'no-freeze'") if found else pd.DataFrame()
    if unfrozen.empty:
        return "No group of several ranks was measured."
    middle = unfrozen.groupby(["campaign", "ranks"])["stalled_steps"].median().reset_index()
    away = np.abs(np.log(middle["ranks"].astype(float) / number))
    near = middle.loc[away.sort_values(kind="stable").index[:2]]
    said = fmt.listed(
        f"{fmt.amount(row.stalled_steps)} steps of {row.ranks} ranks ({row.campaign})"
        for row in near.itertuples()
    )
    return (
        f"Measured widths nearest to {number:,}: a burst stalled {said}; "
        "those ranks started together."
    )


def without_basis(campaigns: Sequence[Campaign]) -> str:
    """The one line for campaigns that nothing can be predicted from."""
    named = fmt.listed(campaign.path.name for campaign in campaigns)
    return (
        f"{named}: no runs of one rank with and without the freeze and executor mp; "
        "measure them with repro run"
    )


def against_measured(basis: Basis) -> pd.DataFrame:
    """Effects of pauses on unfrozen groups, measured and predicted."""
    found = prediction.against_measured(basis)
    return pd.DataFrame({"ranks": found["ranks"].map(str)} | _both(found))


def registered(campaign: Campaign) -> pd.DataFrame:
    """Registered predictions beside what was measured later."""
    found = prediction.registered(campaign)
    found = found[found["quantity"] != "longest"]  # not the client's in what was registered
    about = {"ranks": found["ranks"].map(str), "arm": found["policy"]}
    about["ordinary steps of"] = found["ordinary"]
    return pd.DataFrame(about | _both(found) | {"why not": found["why"]})


def requests(basis: Basis) -> pd.DataFrame:
    """One request with and without a burst, without the freeze."""
    rows = []
    names = {"seconds": "end to end (s)", "longest_ms": "longest gap (ms)"}
    names |= {"p99_ms": "P99 of its gaps (ms)"}
    for found in prediction.requests(basis).to_dict("records"):
        for column, name in names.items():
            told = "–"
            if f"{column}_predicted" in found:
                told = fmt.interval(
                    *(found[f"{column}_{of}"] for of in ("predicted", "low", "high"))
                )
            rows.append(
                {
                    "ranks": f"{found['ranks']}",
                    "a request's": name,
                    "outside bursts": fmt.figures(found[f"{column}_outside"]),
                    "through a burst": fmt.figures(found[f"{column}_measured"]),
                    "predicted": told,
                    "bursts": f"{found['bursts']}",
                }
            )
    return pd.DataFrame(rows)


def waiting(campaign: Campaign) -> pd.DataFrame:
    """Share of one rank's pause in another rank's step."""
    found = ranks.coupling(campaign).sort_values("ranks")
    return pd.DataFrame(
        {
            "ranks": found["ranks"].map(str),
            "policy": [ranks.policy_of(campaign, arm) for arm in found["arm"]],
            "pauses": found["pauses"].map(str),
            "shows in another rank's step": [
                fmt.share(row.share, row.low, row.high) for row in found.itertuples()
            ],
            "at any other time": found["chance"].map(fmt.percent),
        }
    )


def bursts(campaign: Campaign) -> pd.DataFrame:
    """Measured bursts by width and policy: medians."""
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


def offsets(campaign: Campaign) -> pd.DataFrame:
    """Each run's offsets, from its first burst in the window to its last."""
    rows = []
    for run, own in ranks.bursts(campaign).groupby("run", sort=False):
        first, last = (", ".join(map(str, own["offsets"].iloc[place])) for place in (0, -1))
        rows.append(
            {
                "run": run,
                "bursts": f"{len(own)}",
                "offsets in the first (steps)": first,
                "in the last": "the same" if last == first else last,
            }
        )
    return pd.DataFrame(rows)


def _both(found: pd.DataFrame) -> dict[str, Any]:
    rows = list(found.itertuples())
    return {
        "quantity": [f"{row.quantity} ({UNITS[row.quantity]})" for row in rows],
        "measured": [fmt.interval(row.measured, row.low, row.high) for row in rows],
        "predicted": [
            fmt.interval(row.predicted, row.predicted_low, row.predicted_high) for row in rows
        ],
        "inside": found["inside"].map({True: "yes", False: "no"}),
    }


def _cell(row: Any, steps: Steps) -> str:
    rests_on_stalls = row.unit == "ms" and row.value * 1e6 > STALLED * steps.usual
    mark = BEYOND if rests_on_stalls and steps.stalls < EXPECTED_BEYOND else ""
    return fmt.interval(row.value, row.low, row.high).replace(" (", f"{mark} (", 1)
