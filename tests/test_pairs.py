"""The centre of many pairs: which value, which interval, and how often it holds the truth."""

from __future__ import annotations

import numpy as np
import pytest

from repro.stats.pairs import NEEDS_PAIRS, centre_of_pairs


def centre(changes: np.ndarray) -> tuple[float, float, float]:
    """Value and ends of the interval of pairs that change so, all in logarithms."""
    found = centre_of_pairs(np.full(len(changes), 3.0), 3.0 * np.exp(changes))
    assert found.steps == len(changes)
    return float(np.log(found.value)), float(np.log(found.low)), float(np.log(found.high))


def test_by_hand() -> None:
    """Six changes have 21 averages in twos; their median is the 11th."""
    value, low, high = centre(np.array([0.0, 16.0, 1.0, 8.0, 2.0, 4.0]))
    assert (value, low, high) == pytest.approx((4.0, 0.0, 16.0))


def test_a_stall_counts_as_one_pair() -> None:
    quiet = np.random.default_rng(0).normal(0.0, 0.04, 200)
    stalled = np.append(quiet, [3.0, 3.0, 3.0])
    assert np.abs(np.subtract(centre(stalled), centre(quiet))).max() < 0.003
    assert stalled.mean() - quiet.mean() > 0.04


def test_five_pairs_are_too_few() -> None:
    assert not centre_of_pairs([1.0] * (NEEDS_PAIRS - 1), [1.0] * (NEEDS_PAIRS - 1)).supported
    assert centre_of_pairs([1.0] * NEEDS_PAIRS, [1.0] * NEEDS_PAIRS).value == 1.0


@pytest.mark.parametrize("effect", [0.0, 0.03])
@pytest.mark.parametrize(
    ("pairs", "alike", "most"), [(6, 0.0, 1.0), (8, 0.0, 1.0), (200, 0.0, 0.98), (200, 0.3, 0.98)]
)
def test_the_interval_holds_the_truth_as_often_as_it_says(
    pairs: int, alike: float, most: float, effect: float
) -> None:
    """Tails are heavy, and some pairs are like the one before."""
    rng, held = np.random.default_rng(pairs), []
    for _ in range(2_000):
        noise = rng.standard_t(3, pairs + 1)
        _, low, high = centre(effect + 0.01 * (noise[1:] + alike * noise[:-1]))
        held.append(low < effect < high)
    assert 0.945 < np.mean(held) < most
