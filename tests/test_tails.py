"""Quantiles are numpy's, intervals cover what they should, steps count and tokens do not."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from builders import END, MS, SECOND, START, run, steady
from hypothesis import given
from hypothesis import strategies as st

from repro.analysis.tails import (
    effect,
    sample,
    step_intervals,
    step_quantiles,
    tail_table,
)
from repro.dataset import Campaign, load
from repro.report.tables.itl_tails import clearest_first
from repro.stats.bootstrap import (
    GRID,
    interval,
    mid_quantile,
    resampled_quantiles,
    steps_needed,
    weighted_quantiles,
)
from repro.stats.estimate import Estimate, unsupported

TOKENS = 32


def rows_of(values: np.ndarray, *, tokens: int = 1, runs: int = 1) -> pd.DataFrame:
    """A sample of one value a step, each `tokens` times, split evenly into runs."""
    run_of = np.arange(len(values)) * runs // len(values)
    return pd.DataFrame(
        {
            "run": pd.Categorical.from_codes(run_of, categories=[f"r{i}" for i in range(runs)]),
            "t_ns": np.arange(len(values)),
            "step": np.arange(len(values)),
            "value_ns": values,
            "count": tokens,
        }
    )


def campaign_of(tmp_path: Path, gaps: dict[str, list[np.ndarray]], **changes: object) -> Campaign:
    """A campaign with one policy a key, one run an array of gaps, one gap a step."""
    for policy, runs in gaps.items():
        for number, gap in enumerate(runs):
            t = np.linspace(START, END - 1, len(gap)).astype(np.int64)
            itl = {"t_ns": t, "itl_ns": gap.astype(np.int64), "count": TOKENS}
            run(
                tmp_path / "c",
                f"{policy}-{number}",
                {"itl": itl},
                experiment__policy=policy,
                **changes,
            )
    return load(tmp_path / "c")


# --- quantiles ------------------------------------------------------------------------------


def test_a_quantile_of_rounded_values_differs_by_less_than_the_clocks_step() -> None:
    true = np.random.default_rng(0).normal(100.0, 1.0, 20_000)
    for shift in (0.0, 0.1, 0.2):
        rounded, count = np.unique(np.round(true + shift), return_counts=True)
        exact = np.quantile(true + shift, 0.5)
        found = mid_quantile(rounded, count.astype("float64"), 0.5)
        assert found == pytest.approx(exact, abs=0.03)
        assert weighted_quantiles(rounded, count.astype("float64"), (0.5,))[0] == 100.0


def test_rows_of_one_value_count_together() -> None:
    values, counts = np.array([3.0, 1.0, 3.0, 2.0]), np.array([1.0, 1.0, 2.0, 4.0])
    assert mid_quantile(values, counts, 0.5) == pytest.approx(2.0 + 1.0 / 3.5)
    assert mid_quantile(values, counts, 0.0) == 1.0


@given(
    st.lists(st.tuples(st.integers(0, 10**12), st.integers(1, 50)), min_size=1, max_size=40),
    st.floats(0, 1),
)
def test_weighted_quantiles_are_those_of_the_expanded_sample(
    pairs: list[tuple[int, int]], quantile: float
) -> None:
    values, counts = np.array(pairs, dtype=float).T
    expanded = np.repeat(values, counts.astype(int))
    found = weighted_quantiles(values, counts, (quantile, 1.0))
    np.testing.assert_allclose(found, np.quantile(expanded, [quantile, 1.0]), rtol=1e-9)


@pytest.mark.parametrize(
    ("quantile", "steps"),
    [(0.5, 10), (0.9, 50), (0.99, 500), (0.999, 5000), (0.9999, 50_000), (1.0, 1)],
)
def test_steps_needed(quantile: float, steps: int) -> None:
    assert steps_needed(quantile) == steps


def test_support_counts_steps_not_tokens() -> None:
    gaps = np.random.default_rng(0).lognormal(size=499)
    assert not step_quantiles(rows_of(gaps, tokens=1024), (0.99,))[0].supported
    short = step_quantiles(rows_of(gaps, tokens=1024), (0.99,))[0]
    assert np.isnan([short.value, short.low, short.high]).all()
    assert (short.needs, short.steps) == (500, 499)
    assert step_quantiles(rows_of(np.append(gaps, 1.0)), (0.99,))[0].supported


# --- intervals ------------------------------------------------------------------------------


def test_interval_covers_the_truth() -> None:
    """95% nominal: of 60 samples of a normal law, fewer than 52 would be one chance in 100."""
    truth = {0.5: 0.0, 0.9: 1.2815515655, 0.99: 2.3263478740}
    hits = np.zeros(3)
    for seed in range(60):
        gaps = np.random.default_rng(seed).normal(size=3000)
        found = step_quantiles(rows_of(gaps, tokens=64, runs=3), tuple(truth), seed=seed)
        hits += [e.low <= true <= e.high for e, true in zip(found, truth.values(), strict=True)]
    assert (hits >= 52).all(), hits


def test_interval_is_not_needlessly_wide() -> None:
    """Its width is about that of the normal theory: 2 x 1.96 sqrt(q(1-q)/n) / density."""
    gaps = np.random.default_rng(1).normal(size=3000)
    found = step_quantiles(rows_of(gaps, tokens=64, runs=3), (0.5,))[0]
    theory = 2 * 1.96 * np.sqrt(0.25 / 3000) * np.sqrt(2 * np.pi)
    assert 0.6 * theory < found.high - found.low < 1.6 * theory


def test_tokens_of_a_step_do_not_narrow_the_interval() -> None:
    gaps = np.random.default_rng(2).normal(size=2000)
    one = step_quantiles(rows_of(gaps), (0.9,))[0]
    spread = rows_of(np.repeat(gaps, 100)).assign(step=np.repeat(np.arange(2000), 100))
    many = step_quantiles(spread, (0.9,))[0]
    assert many.steps == one.steps == 2000
    assert many.high - many.low == pytest.approx(one.high - one.low, rel=0.1)


def test_resamples_weigh_by_tokens() -> None:
    """In every step nine tokens wait 1 and one waits 2: no resample has a P80 of 2."""
    steps = np.repeat(np.arange(500), 2)
    rows = rows_of(np.tile([1.0, 2.0], 500)).assign(step=steps, count=np.tile([9, 1], 500))
    found = step_quantiles(rows, (0.8,))[0]
    assert (found.low, found.value, found.high) == (1, 1, 1)


def test_runs_that_disagree_widen_the_interval() -> None:
    rng = np.random.default_rng(3)
    alike = rng.normal(100, 1, size=3000)
    apart = alike + np.repeat([0, 10, 20], 1000)
    narrow = step_quantiles(rows_of(alike, runs=3), (0.5,))[0]
    wide = step_quantiles(rows_of(apart, runs=3), (0.5,))[0]
    pooled = step_quantiles(rows_of(apart, runs=1), (0.5,))[0]
    assert wide.high - wide.low > 50 * (narrow.high - narrow.low)
    assert wide.low < 101 and wide.high > 119  # one run may be drawn three times
    assert pooled.high - pooled.low < wide.high - wide.low


def test_bursts_widen_the_interval() -> None:
    """Slow steps in a row are fewer observations than slow steps spread out."""
    spread = np.tile([1.0, 0.0, 0.0, 0.0], 1000) + np.linspace(0, 1e-3, 4000)
    bursts = np.repeat(np.tile([1.0, 0.0, 0.0, 0.0], 20), 50) + np.linspace(0, 1e-3, 4000)

    def share_slow(gaps: np.ndarray) -> float:
        rows = rows_of(gaps)
        drawn = resampled_quantiles(
            gaps,
            np.ones(4000),
            np.zeros(4000, dtype=np.int64),
            rows["step"].to_numpy(),
            (0.72,),  # slow only in a sample with more slow steps than the quarter there are
        )
        return float((drawn > 0.5).mean())

    assert share_slow(spread) < 0.05 < share_slow(bursts)


def test_seed_decides_the_interval() -> None:
    rows = rows_of(np.random.default_rng(4).normal(size=1000))
    first, again, other = (step_quantiles(rows, (0.9,), seed=seed)[0] for seed in (0, 0, 1))
    assert first == again
    assert first.value == other.value
    assert first != other


def test_grid_does_not_move_the_replicates() -> None:
    """More distinct values than the grid holds: resamples stay centred on the exact quantiles."""
    rng = np.random.default_rng(5)
    gaps = rng.lognormal(size=20 * GRID)
    steps, zeros = np.arange(len(gaps)), np.zeros(len(gaps), dtype=np.int64)
    quantiles = (0.5, 0.9, 0.99, 0.999, 0.9999)
    drawn = resampled_quantiles(gaps, np.ones(len(gaps)), zeros, steps, quantiles)
    exact = np.quantile(gaps, quantiles)
    off = np.abs(np.median(drawn, axis=0) / exact - 1)
    assert (off < [0.01, 0.01, 0.02, 0.05, 0.3]).all(), off
    low, high = interval(drawn)
    assert (low <= exact).all() and (exact <= high).all()


def test_resampling_is_fast_enough() -> None:
    rng = np.random.default_rng(6)
    rows = rows_of(rng.lognormal(size=30_000), tokens=512, runs=3)
    start = time.process_time()
    step_quantiles(rows)
    assert time.process_time() - start < 5


# --- metrics --------------------------------------------------------------------------------


def test_step_intervals_stay_within_run_and_rank() -> None:
    steps = pd.DataFrame(
        {
            "run": pd.Categorical(["a", "a", "a", "a", "b", "b"]),
            "rank": [0, 1, 0, 1, 0, 0],
            "step": [0, 0, 1, 1, 0, 1],
            "start_ns": [100, 1000, 130, 1070, 5, 6],
        }
    )
    found = step_intervals(steps)
    assert found["interval_ns"].tolist() == [30, 70, 1]
    assert found["t_ns"].tolist() == [130, 1070, 6]
    assert found["step"].tolist() == [1, 1, 1]


def test_ranks_of_one_step_are_one_observation(tmp_path: Path) -> None:
    entry = np.arange(START, START + SECOND, 10 * MS)
    steps = {
        "rank": np.tile([0, 1], len(entry)),
        "step": np.repeat(np.arange(len(entry)), 2),
        "start_ns": np.repeat(entry, 2),
    }
    run(tmp_path / "c", "a", {"steps": steps})
    table = tail_table(load(tmp_path / "c"), "step_interval")
    assert (table["steps"] == len(entry) - 1).all()


def test_ramp_is_left_out(tmp_path: Path) -> None:
    t = [START - MS, START + MS, END + MS]
    run(tmp_path / "c", "a", {"itl": {"t_ns": t, "itl_ns": [900, 5, 900], "count": 1}})
    assert sample(load(tmp_path / "c"))["value_ns"].tolist() == [5]


def test_http_tokens_are_grouped_into_time_bins(tmp_path: Path) -> None:
    t = START + np.arange(1000) * MS // 10  # 1000 tokens within 100 ms
    itl = {"itl": {"t_ns": t, "itl_ns": 10 * MS, "count": 1}}
    run(tmp_path / "http", "a", itl, experiment__client="serve")
    run(tmp_path / "direct", "a", itl)
    assert sample(load(tmp_path / "http"))["step"].nunique() == 10
    assert sample(load(tmp_path / "direct"))["step"].nunique() == 1000


def test_each_request_is_one_observation(tmp_path: Path) -> None:
    run(tmp_path / "c", "a", {"requests": {"t_ns": [START, START + 1], "ttft_ns": [7, 8]}})
    rows = sample(load(tmp_path / "c"), "ttft")
    assert rows[["value_ns", "count"]].to_numpy().tolist() == [[7, 1], [8, 1]]


def test_unknown_metric(tmp_path: Path) -> None:
    run(tmp_path / "c", "a", steady())
    with pytest.raises(ValueError, match="unknown metric 'latency': choose one of itl"):
        sample(load(tmp_path / "c"), "latency")  # type: ignore[arg-type]


# --- tables and effects ---------------------------------------------------------------------


def test_tail_table(tmp_path: Path) -> None:
    gaps = np.arange(1, 1001) * MS
    campaign = campaign_of(tmp_path, {"freeze": [gaps, gaps], "no-freeze": [2 * gaps]})
    table = tail_table(campaign).set_index(["arm", "quantile"])
    assert table.loc[("freeze", 1.0), "value_ms"] == 1000
    assert table.loc[("no-freeze", 1.0), "value_ms"] == 2000
    expected = np.quantile(np.repeat(gaps, 2 * TOKENS), 0.99) / MS
    assert table.loc[("freeze", 0.99), "value_ms"] == pytest.approx(expected)
    assert table.loc[("freeze", 0.5), ["steps", "runs"]].tolist() == [2000, 2]
    assert not table.loc[("freeze", 0.999), "supported"]
    assert np.isnan(table.loc[("freeze", 0.999), "value_ms"])
    supported = table[table["supported"]]
    assert (supported["low_ms"] <= supported["value_ms"]).all()
    assert (supported["value_ms"] <= supported["high_ms"]).all()


def test_an_arm_without_rows_is_unsupported(tmp_path: Path) -> None:
    run(tmp_path / "c", "a")
    table = tail_table(load(tmp_path / "c"))
    assert not table["supported"].any()
    assert table["value_ms"].isna().all()


def test_effect_finds_a_known_ratio(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    gaps = {
        policy: [scale * rng.lognormal(17, 0.3, size=4000) for _ in range(3)]
        for policy, scale in {"no-freeze": 1.0, "freeze": 0.8}.items()
    }
    found = effect(campaign_of(tmp_path, gaps), "no-freeze", "freeze", 0.99)
    assert found.supported
    assert found.low < 0.8 < found.high < 1
    assert found.value == pytest.approx(0.8, rel=0.05)


def test_no_effect_is_seen_as_none(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    gaps = {
        policy: [rng.lognormal(17, 0.3, size=4000) for _ in range(3)]
        for policy in ("freeze", "no-freeze")
    }
    found = effect(campaign_of(tmp_path, gaps), "no-freeze", "freeze", 0.9)
    assert found.low < 1 < found.high


def test_arms_are_resampled_independently(tmp_path: Path) -> None:
    gaps = [np.random.default_rng(9).lognormal(17, 0.3, size=4000)]
    found = effect(campaign_of(tmp_path, {"freeze": gaps, "stock": gaps}), "stock", "freeze", 0.9)
    assert found.value == 1
    assert found.low < 0.995 < 1.005 < found.high  # one sample drawn twice alike would give 1, 1


def test_effect_needs_both_arms(tmp_path: Path) -> None:
    gaps = {"freeze": [np.full(4000, MS)], "no-freeze": [np.full(100, MS)]}
    campaign = campaign_of(tmp_path, gaps)
    assert not effect(campaign, "no-freeze", "freeze", 0.99).supported
    with pytest.raises(ValueError, match="no arm 'stock' in this campaign: choose among 'freeze'"):
        effect(campaign, "stock", "freeze")


def test_a_closing_sentence_names_the_clearest_effect_first() -> None:
    def ratio(value: float, low: float, high: float) -> Estimate:
        return Estimate(value=value, low=low, high=high, supported=True, needs=2, steps=9)

    even, longest = ratio(0.94, 0.72, 1.25), ratio(0.204, 0.19, 0.25)
    ratios = {0.5: ratio(0.97, 0.9, 1.1), 0.99: even, 0.999: even, 1.0: longest}
    assert clearest_first(ratios) == (
        "the longest gap is ×0.204 (0.190 to 0.250); no other quantile differs clearly"
    )
    assert clearest_first(ratios | {1.0: even}) == (
        "no quantile differs clearly, P99 is ×0.940 (0.720 to 1.25)"
    )
    assert clearest_first({0.99: unsupported(needs=500, steps=9)}) == "too few steps to say"
