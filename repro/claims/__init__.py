"""The report's claims, each decided by a test on recorded campaigns.

To add one, decorate its test with `@claim` in the module of its subject, or in a new module here:
`CLAIMS`, the table, the notebook and the tests then include it.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from repro import fmt
from repro.claims.registry import REGISTERED, Claim
from repro.claims.verdict import Outcome, Ranges, Verdict, detail, judge
from repro.dataset import Campaign
from repro.stats.mean_ratio import NEEDS_SETTINGS, mean_ratio

__all__ = ["CLAIMS", "Claim", "Outcome", "Verdict", "decide", "evaluate", "to_markdown"]

FIRST = ("tail", "ranks", "capture", "heap", "release", "low_load", "mechanism", "http")
"""Modules whose claims lead the table, in this order; those of other modules follow."""

_MODULES = dict.fromkeys([*FIRST, *(module.name for module in pkgutil.iter_modules(__path__))])
for _name in _MODULES:
    importlib.import_module(f"{__name__}.{_name}")

CLAIMS = tuple(
    each for name in _MODULES for each in REGISTERED if each.test.__module__ == f"{__name__}.{name}"
)
"""By module, then in the order of definition."""

_WORST_FIRST = (Verdict.CONTRADICTED, Verdict.NO_EFFECT, Verdict.UNDECIDED, Verdict.REPRODUCED)
_UNMEASURED = (Verdict.PREDICTED, Verdict.NOT_MEASURED)
"""Order in which an outcome decides. A case without a measurement decides only if all are such."""


def evaluate(campaigns: Sequence[Campaign], ids: Collection[str] = ()) -> pd.DataFrame:
    """Test every claim, or those of the given `ids`, on every campaign.

    Returns
    -------
    pandas.DataFrame
        One row per claim, in the order of `CLAIMS`: `id`, `claim`, `source`, `criterion`,
        `verdict`, `detail`, `number`, `runs` (campaign/run, comma-separated), `reason`, all text,
        and `ratio`, an `Estimate` where the number is one, else None.
    """
    chosen = [claim for claim in CLAIMS if not ids or claim.id in ids]
    return pd.DataFrame([decide(claim, campaigns) for claim in chosen])


def to_markdown(verdicts: pd.DataFrame) -> str:
    """The table of `evaluate` in Markdown; long lists of runs are shortened to their number."""
    detail = verdicts["detail"].map(lambda text: f" ({text})" if text else "")
    short = verdicts[["claim", "verdict", "number", "reason", "criterion"]].assign(
        verdict="**" + verdicts["verdict"] + "**" + detail, runs=verdicts["runs"].map(_short_list)
    )
    return fmt.markdown_table(short)


def decide(claim: Claim, campaigns: Sequence[Campaign]) -> dict[str, Any]:
    """The row of one claim in the table of `evaluate`."""
    order = [*(reversed(_WORST_FIRST) if claim.some else _WORST_FIRST), *_UNMEASURED]
    found = [(campaign, outcome) for campaign in campaigns for outcome in claim.test(campaign)]
    row: dict[str, Any] = {
        "id": claim.id,
        "claim": claim.sentence,
        "source": claim.source,
        "criterion": claim.criterion,
        "verdict": str(Verdict.NOT_MEASURED),
        "detail": "",
        "number": "–",
        "ratio": None,
        "runs": "",
        "reason": f"needs {claim.needs}",
    }
    if not found:
        return row
    named = [
        replace(outcome, runs=tuple(f"{campaign.path.name}/{run}" for run in outcome.runs))
        for campaign, outcome in found
    ]
    decisive = min(named, key=lambda outcome: (order.index(outcome.verdict), _openness(outcome)))
    others = [outcome.verdict for outcome in named if outcome is not decisive]
    counted = [f"{others.count(verdict)} {verdict}" for verdict in order if verdict in others]
    if decisive.verdict is Verdict.UNDECIDED and claim.over_all:
        decisive = _over_all(named, decisive, claim.over_all)
    return row | {
        "verdict": str(decisive.verdict),
        "detail": decisive.detail,
        "number": decisive.number,
        "ratio": decisive.ratio,
        "runs": ", ".join(decisive.runs),
        "reason": decisive.reason + (f" (other cases: {', '.join(counted)})" if counted else ""),
    }


def _openness(outcome: Outcome) -> float:
    """Width of the interval of an undecided case, as a factor: of several the narrowest stands."""
    ratio = outcome.ratio
    if outcome.verdict is not Verdict.UNDECIDED:
        return 0.0
    return ratio.high / ratio.low if ratio and ratio.low > 0 else math.inf


def _over_all(outcomes: Sequence[Outcome], open_case: Outcome, ranges: Ranges) -> Outcome:
    """The mean over all cases if it decides; else the open case, with the mean in its reason.

    It decides only if it would do so without any one of the cases, too: an interval of three
    captures may be narrow by chance.
    """
    cases = [outcome for outcome in outcomes if outcome.ratio is not None]
    ratios = [case.ratio for case in cases if case.ratio is not None]
    if len(cases) <= NEEDS_SETTINGS:
        return open_case
    mean = mean_ratio(ratios)
    number = f"mean of {len(cases)} cases {fmt.ratio(mean)}"
    verdict = judge(mean, ranges)
    without_one = [mean_ratio(ratios[:left] + ratios[left + 1 :]) for left in range(len(ratios))]
    against = [other for other in without_one if judge(other, ranges) is not verdict]
    if verdict is Verdict.UNDECIDED or against:
        number += f", without one of them {fmt.ratio(against[0])}" if against else ""
        return replace(open_case, reason=f"{open_case.reason}; {number}")
    return Outcome(
        verdict=verdict,
        number=number,
        reason=f"the mean over all cases decides; alone this one is open: {open_case.number}",
        runs=tuple(dict.fromkeys(run for case in cases for run in case.runs)),
        detail=detail(verdict, ranges),
        ratio=mean,
    )


def _short_list(runs: str) -> str:
    names = runs.split(", ") if runs else []
    return runs if len(names) <= 4 else f"{names[0]} … {names[-1]} ({len(names)})"
