"""What a test of a claim says: a verdict, the number it rests on, and the runs.

A test says what one campaign measured, or nothing where the campaign cannot tell. Every test is
one that data could fail: where an interval leaves both answers open the verdict is
`not reproduced`, never `reproduced`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from repro import fmt
from repro.analysis.tails import Estimate

SAME = (0.95, 1.05)
"""A ratio whose whole interval lies in here is called no difference."""


class Verdict(StrEnum):
    """What the data say of a claim."""

    REPRODUCED = "reproduced"
    NOT_REPRODUCED = "not reproduced"
    CONTRADICTED = "contradicted"
    PREDICTED = "predicted"
    NOT_MEASURED = "not measured here"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one campaign says of a claim.

    Attributes
    ----------
    verdict : Verdict
    number : str
        The measured number the verdict rests on, with its interval where it has one.
    reason : str
        Why this number gives this verdict.
    runs : tuple of str
        The runs used.
    """

    verdict: Verdict
    number: str
    reason: str
    runs: tuple[str, ...]


def same(ratio: Estimate, within: tuple[float, float], name: str, runs: tuple[str, ...]) -> Finding:
    """No difference, if the interval lies within the margin; a difference, if it lies outside."""
    low, high = within
    margin = fmt.bounds(low, high)
    if low <= ratio.low and ratio.high <= high:
        verdict, reason = Verdict.REPRODUCED, f"the interval lies within {margin}"
    elif ratio.high < low or ratio.low > high:
        verdict, reason = Verdict.CONTRADICTED, f"the interval lies outside {margin}"
    else:
        verdict, reason = Verdict.NOT_REPRODUCED, f"the interval is not within {margin}: undecided"
    return Finding(verdict=verdict, number=f"{name} {fmt.ratio(ratio)}", reason=reason, runs=runs)


def unsupported(
    ratio: Estimate, name: str, runs: tuple[str, ...], unit: str = "steps an arm"
) -> Finding:
    """Nothing can be said: fewer of `unit` than the ratio needs."""
    return Finding(
        verdict=Verdict.NOT_MEASURED,
        number="–",
        reason=f"{name} needs {ratio.needs:,} {unit}, there are {ratio.steps:,}",
        runs=runs,
    )
