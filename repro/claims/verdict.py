"""Verdicts, and the test of a ratio's 95% interval against the ranges of a criterion."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from repro import fmt
from repro.dataset import Campaign
from repro.stats.estimate import Estimate
from repro.stats.ratios import student

SAME = (0.95, 1.05)
"""A ratio counts as no difference if its whole interval lies in here."""

SAME_TAIL = (0.9, 1.1)
"""The same for P99 ITL, which varies more between equal arms than a capture's time."""

TOO_MANY = 1000
"""A larger number of runs is reported as "over 1,000"."""


class Verdict(StrEnum):
    """Judgement of the data on a claim."""

    REPRODUCED = "reproduced"
    CONTRADICTED = "contradicted"
    NO_EFFECT = "no effect"
    UNDECIDED = "undecided"
    PREDICTED = "predicted"
    NOT_MEASURED = "not measured"


Ranges = Mapping[Verdict, list[tuple[float, float]]]
"""Ranges of a ratio by verdict. The first verdict with a range around the whole interval holds."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Result of a claim's test on one campaign."""

    verdict: Verdict
    number: str  # the measured one behind the verdict, with its interval where it has one
    reason: str  # why this number gives this verdict
    runs: tuple[str, ...]
    detail: str = ""  # the range of "no effect", the runs that an undecided claim needs
    ratio: Estimate | None = None  # the number, where it is a ratio with an interval


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The observations behind a ratio, and the cost of one more."""

    size: int  # in the smaller arm
    minutes: float  # engine time of one; NaN if unknown
    unit: str = "run"  # what one is
    group: str = "arm"  # what `size` counts them per


def sample_of(campaign: Campaign, runs: tuple[str, ...]) -> Sample:
    """Runs of two arms as a sample; older runs recorded only the length of their window."""
    used = campaign.runs[campaign.runs["run"].isin(runs)]
    window_s = (used["window_end_ns"] - used["window_start_ns"]) / 1e9
    minutes = float(used["wall_s"].fillna(window_s).median()) / 60
    return Sample(size=int(used["arm"].value_counts().min()), minutes=minutes)


def same(within: tuple[float, float]) -> Ranges:
    """Reproduced within a margin around 1, contradicted outside."""
    low, high = within
    outside = [(0.0, low), (high, math.inf)]
    return {Verdict.REPRODUCED: [within], Verdict.CONTRADICTED: outside}


def judge(ratio: Estimate, ranges: Ranges) -> Verdict:
    """The verdict whose range holds the whole interval; undecided if there is none."""
    for verdict, allowed in ranges.items():
        if any(low <= ratio.low and ratio.high <= high for low, high in allowed):
            return verdict
    return Verdict.UNDECIDED


def more_needed(ratio: Estimate, ranges: Ranges, size: int) -> float:
    """Further observations that would decide, if the ratio stays and its interval narrows.

    The interval's width, in logarithms, shrinks with the square root of the observations.

    Returns
    -------
    float
        Infinite where the ratio lies on a bound or in no range.
    """
    middle = math.log(ratio.value)
    width = max(math.log(ratio.high) - middle, middle - math.log(ratio.low))
    room = [
        min(middle - (math.log(low) if low else -math.inf), math.log(high) - middle)
        for allowed in ranges.values()
        for low, high in allowed
        if low < ratio.value < high
    ]
    if not room:
        return math.inf
    return max(0.0, math.ceil(size * (width / max(room)) ** 2) - size)


def more_for_share(share: float, seen: int, runs: int) -> float:
    """Further runs until a share's 95% interval (Wilson's) excludes one half, if the share stays.

    The share is of `seen` observations from `runs` runs.
    """
    needed = (student(math.inf) / 2 / (share - 0.5)) ** 2 if share != 0.5 else math.inf
    return math.ceil((needed - seen) * runs / seen) if math.isfinite(needed) else math.inf


def detail(verdict: Verdict, ranges: Ranges, sample: Sample | None = None, *more: float) -> str:
    """The words in brackets after a verdict; `more` as `more_needed` returns."""
    if verdict is Verdict.NO_EFFECT:
        ((low, high),) = ranges[Verdict.NO_EFFECT]
        return f"within ±{100 * max(1 - low, high - 1):.0f}%"
    if verdict is not Verdict.UNDECIDED or not more or sample is None:
        return ""
    most = max(more)
    if most > TOO_MANY:
        number = f"over {TOO_MANY:,} more {sample.unit}s"
    else:
        number = fmt.plural(int(most), f"more {sample.unit}")
    each = f" of {fmt.figures(sample.minutes)} minutes" if math.isfinite(sample.minutes) else ""
    return f"{number} per {sample.group}{each} would decide"


def outcome(
    ratio: Estimate,
    ranges: Ranges,
    sample: Sample,
    *,
    name: str,
    runs: tuple[str, ...],
    reasons: Mapping[Verdict, str],
    further: str = "",
) -> Outcome:
    """The outcome of a supported ratio of `name`; `further` is added to the verdict's reason."""
    verdict = judge(ratio, ranges)
    return Outcome(
        verdict=verdict,
        number=f"{name} {fmt.ratio(ratio)}",
        reason=reasons[verdict] + further,
        runs=runs,
        detail=detail(verdict, ranges, sample, more_needed(ratio, ranges, sample.size)),
        ratio=ratio,
    )


def sameness(
    ratio: Estimate,
    within: tuple[float, float],
    sample: Sample,
    *,
    name: str,
    runs: tuple[str, ...],
    further: str = "",
) -> Outcome:
    """The outcome of a claim that a ratio is 1, up to a margin."""
    margin = fmt.bounds(*within)
    reasons = {
        Verdict.REPRODUCED: f"the interval lies within {margin}",
        Verdict.CONTRADICTED: f"the interval lies outside {margin}",
        Verdict.UNDECIDED: f"the interval is not within {margin}",
    }
    return outcome(
        ratio, same(within), sample, name=name, runs=runs, reasons=reasons, further=further
    )


def decided(
    holds: bool, *, number: str, reason: str, runs: tuple[str, ...], otherwise: str = ""
) -> Outcome:
    """The outcome of a count: reproduced, or contradicted for the reason `otherwise`."""
    return Outcome(
        verdict=Verdict.REPRODUCED if holds else Verdict.CONTRADICTED,
        number=number,
        reason=reason if holds else otherwise or reason,
        runs=runs,
    )


def too_few(ratio: Estimate, name: str, runs: tuple[str, ...], unit: str) -> Outcome:
    """The outcome where the data have fewer of `unit` than the ratio needs."""
    return not_measured(f"{name} needs {ratio.needs:,} {unit}, there are {ratio.steps:,}", runs)


def not_measured(reason: str, runs: tuple[str, ...] = ()) -> Outcome:
    """The outcome where the data cannot tell."""
    return Outcome(verdict=Verdict.NOT_MEASURED, number="–", reason=reason, runs=runs)
