"""The mean over settings weighs them by their intervals and shows how much they differ."""

from __future__ import annotations

from math import exp, log, sqrt

import pytest

from repro.stats.estimate import Estimate
from repro.stats.mean_ratio import mean_ratio


def ratio(value: float, times: float = 1.1) -> Estimate:
    """A ratio whose interval reaches from `value / times` to `value * times`."""
    bounds = {"low": value / times, "high": value * times}
    return Estimate(value=value, **bounds, supported=True, needs=2, steps=3)


def test_equal_settings_narrow_the_interval_by_their_number() -> None:
    found = mean_ratio([ratio(0.9)] * 5)
    assert found.value == pytest.approx(0.9)
    reach = log(1.1) / 1.96 / sqrt(5) * 2.776  # Student's t, 4 degrees of freedom
    assert (found.low, found.high) == pytest.approx((0.9 * exp(-reach), 0.9 * exp(reach)))


def test_a_wide_setting_weighs_next_to_nothing() -> None:
    narrow = [ratio(1.0)] * 4
    assert mean_ratio([*narrow, ratio(3.0, times=30.0)]).value == pytest.approx(1.0, abs=0.02)


def test_settings_that_differ_widen_the_interval() -> None:
    alike = mean_ratio([ratio(1.0, times=1.01)] * 4)
    apart = mean_ratio([ratio(value, times=1.01) for value in (0.5, 0.5, 2.0, 2.0)])
    assert apart.value == pytest.approx(1.0)
    assert apart.low < 0.5 < 2.0 < apart.high, "four settings say little about a mean"
    assert alike.high < 1.02
