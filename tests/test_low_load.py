"""The cost of the freeze where no full collection comes, from neighbouring periods."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from builders import MS, SECOND, START, run, steady
from campaigns import decided

from repro import dataset
from repro.analysis.arms import pairs
from repro.analysis.tails import effect, paired_effect
from repro.claims import CLAIMS, decide
from repro.dataset import Campaign

PAIRS = 12


def alternating(
    root: Path,
    factor: float,
    *,
    noise: float = 0.0,
    generation: int = 0,
    drift: float = 0.0,
    engine: str = "a",
) -> Campaign:
    """Periods of 2 s in mirrored pairs, gaps of 5 ms, frozen ones `factor` as long.

    Each pair's gaps are longer than those before by `drift`; frozen periods are by
    turns longer and shorter by `noise`. One collection of `generation` in each period.
    """
    policies, starts, times, gaps = [], [], [], []
    for pair in range(PAIRS):
        for policy in ("no-freeze", "freeze") if pair % 2 else ("freeze", "no-freeze"):
            frozen = factor * (1 + noise * (-1) ** pair) if policy == "freeze" else 1.0
            gap = round(5 * MS * (1 + drift * pair) * frozen)
            starts.append(START + 3 * SECOND * len(policies))
            policies.append(policy)
            gaps.append(np.full(2 * SECOND // gap, gap))
            times.append(starts[-1] + np.cumsum(gaps[-1]) - 1)
    tables = {
        "itl": {"t_ns": np.concatenate(times), "itl_ns": np.concatenate(gaps), "count": 1},
        "pauses": {
            "start_ns": np.array(starts) + SECOND,
            "duration_ns": MS,
            "generation": generation,
        },
        "periods": {
            "policy": policies,
            "start_ns": starts,
            "end_ns": np.array(starts) + 2 * SECOND,
        },
    }
    run(
        root,
        engine,
        tables,
        experiment__policy="alternate",
        experiment__switch_s=2.0,
        experiment__concurrency=8,
        window__start_ns=START - MS,
        window__end_ns=starts[-1] + 3 * SECOND,
    )
    return dataset.load(root)


@pytest.mark.parametrize(
    ("factor", "noise", "expected"),
    [(1.0, 0.0, "reproduced"), (1.05, 0.0, "contradicted"), (1.0, 0.1, "undecided")],
)
def test_the_verdict(factor: float, noise: float, expected: str, tmp_path: Path) -> None:
    campaign = alternating(tmp_path, factor, noise=noise, drift=0.1)
    found = decided("costs-nothing", campaign)
    assert found["verdict"] == expected
    assert "collects for more than 0.05" in found["reason"]


def test_the_mean_over_loads_decides_where_none_of_them_does(tmp_path: Path) -> None:
    loads = [alternating(tmp_path / str(n), 1.0, noise=0.014) for n in range(6)]
    (claim,) = (each for each in CLAIMS if each.id == "costs-nothing")
    assert decide(claim, loads[:1])["verdict"] == "undecided"
    found = decide(claim, loads)
    assert found["verdict"] == "reproduced"
    assert found["number"].startswith("mean of 6 cases ×1.00 (")


def test_it_does_not_speak_of_loads_with_full_collections(tmp_path: Path) -> None:
    campaign = alternating(tmp_path, 1.0, generation=2)
    assert decided("costs-nothing", campaign)["verdict"] == "not measured"


def test_fresh_engines_beside_are_no_periods(tmp_path: Path) -> None:
    alternating(tmp_path, 1.0)
    for policy in ("freeze", "no-freeze"):
        about = {"experiment__policy": policy, "experiment__concurrency": 8}
        run(tmp_path, policy, steady(), **about)
    campaign = dataset.load(tmp_path)
    assert len(pairs(campaign)) == 2
    found = decided("costs-nothing", campaign)
    assert found["verdict"] == "reproduced"
    assert "other cases" not in found["reason"]


def test_p99_is_judged_where_a_full_collection_came(tmp_path: Path) -> None:
    young, full = (alternating(tmp_path / str(n), 1.0, generation=n) for n in (0, 2))
    assert decided("p99-falls", young)["verdict"] == "not measured"
    assert decided("p99-falls", full)["verdict"] == "no effect"


def test_a_drift_widens_the_ratio_of_all_periods_and_not_that_of_pairs(tmp_path: Path) -> None:
    campaign = alternating(tmp_path, 1.02, drift=0.1)
    whole = effect(campaign, "no-freeze", "freeze", 0.5)
    paired = paired_effect(campaign, "no-freeze", "freeze", 0.5)
    assert whole.low < 1 < whole.high
    assert paired.steps == PAIRS
    assert paired.low == pytest.approx(1.02, abs=0.001)
    assert paired.high == pytest.approx(1.02, abs=0.001)


def test_pairs_of_two_engines_are_not_mixed(tmp_path: Path) -> None:
    alternating(tmp_path, 1.02)
    campaign = alternating(tmp_path, 1.04, engine="b")
    paired = paired_effect(campaign, "no-freeze", "freeze", 0.5)
    assert paired.steps == 2 * PAIRS
    assert (paired.low, paired.high) == pytest.approx((1.02, 1.04), abs=0.001)
