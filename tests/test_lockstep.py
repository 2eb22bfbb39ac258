"""Groups in lock-step: known answers, and two ways of reckoning that must agree."""

from __future__ import annotations

import math

import numpy as np
import pytest

from repro.theory.lockstep import LockstepError, predict, simulate, width_at

MS = 1_000_000


def trace(seed, steps=20_000, stall_every=500):
    """Ordinary steps of about 20 ms; stalls of 300 to 500 ms at regular distances."""
    rng = np.random.default_rng(seed)
    steps_ns = rng.gamma(400, 20 * MS / 400, size=steps)
    stalls = np.arange(rng.integers(stall_every), steps, stall_every)
    steps_ns[stalls] += rng.uniform(300, 500, size=len(stalls)) * MS
    return steps_ns.astype(np.int64)


def constant(stalls, steps=10_000, base=20, stall=400):
    """A run of equal steps with so many equal stalls, evenly spread."""
    run = np.full(steps, base * MS)
    run[np.linspace(0, steps - 1, stalls).astype(int)] = stall * MS
    return run


def value(table, ranks, quantile):
    row = table[(table.ranks == ranks) & (table["quantile"] == quantile)]
    return row.value_ms.item()


def test_one_rank_is_what_was_measured():
    runs = [trace(1), trace(2)]
    table = predict(runs, ranks=[1], resamples=20)
    pooled = np.concatenate(runs)
    expected = np.quantile(pooled, table["quantile"], method="inverted_cdf") / MS
    np.testing.assert_array_equal(table.value_ms, expected)
    long = trace(1, steps=70_000)
    alone = simulate([long], ranks=1, steps=len(long))
    phase = int(np.flatnonzero(long == alone[0])[0])
    np.testing.assert_array_equal(alone, np.roll(long, -phase))
    assert phase > 0


def test_a_run_counts_by_its_length():
    runs = [constant(stalls=0, steps=1_000), constant(stalls=90, steps=9_000)]
    group = simulate(runs, ranks=1, steps=2_000_000)
    assert (group > 100 * MS).mean() == pytest.approx(0.009, rel=0.05)


def test_closed_form_is_the_quantile_at_the_root():
    runs, ranks, quantile = [trace(1), trace(2), trace(3)], 24, 0.99
    expected = np.quantile(np.concatenate(runs), quantile ** (1 / ranks), method="inverted_cdf")
    table = predict(runs, ranks=[ranks], quantiles=[quantile], resamples=20)
    assert value(table, ranks, quantile) == expected / MS


@pytest.mark.parametrize("alignment", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("ranks", [2, 16, 256])
def test_closed_form_agrees_with_the_simulation(ranks, alignment):
    # Runs of different lengths and stall rates: ranks must be drawn by length, stalls by run.
    runs = [trace(1), trace(2, steps=30_000, stall_every=300), trace(3)]
    table = predict(runs, ranks=[ranks], alignment=alignment, resamples=20)
    group = simulate(runs, ranks=ranks, steps=400_000, alignment=alignment, seed=4) / MS
    for row in table.itertuples():
        below, within = (group < row.value_ms * 0.98).mean(), (group <= row.value_ms * 1.02).mean()
        margin = 0.15 * (1 - row.quantile)
        assert below - margin <= row.quantile <= within + margin


def test_shared_stalls_do_not_become_more_frequent_with_width():
    runs = [trace(1), trace(2)]
    shared, independent = (
        (simulate(runs, ranks=64, steps=200_000, alignment=alignment) > 100 * MS).mean()
        for alignment in (1.0, 0.0)
    )
    assert shared == pytest.approx(1 / 500, rel=0.1)
    assert independent == pytest.approx(1 - (1 - 1 / 500) ** 64, rel=0.1)


def test_width_is_where_a_hundredth_of_the_steps_stall():
    # One stall in 1,000 steps: P99 moves at the smallest R with 1 - (1 - 1/1000)^R > 1%.
    width = width_at([constant(stalls=10)], 2.0)
    assert width.ranks == 11
    assert width.low < 11 < width.high
    assert width.supported
    assert width == width_at([constant(stalls=10)], 1.1)
    table = predict([constant(stalls=10)], ranks=[10, 11], quantiles=[0.99], resamples=20)
    assert table.value_ms.tolist() == [20, 400]


def test_width_grows_with_alignment():
    run = [constant(stalls=10)]
    widths = [width_at(run, 2.0, alignment=alignment).ranks for alignment in (0.0, 0.5, 1.0)]
    assert widths == [11, 20, math.inf]


def test_width_where_nothing_so_long_was_measured():
    width = width_at([constant(stalls=0)], 2.0)
    assert (width.ranks, width.high, width.supported) == (math.inf, math.inf, False)
    assert width.low == 34  # 3 in 10,000 at most: log(0.99) / log(1 - 3e-4) = 33.5
    few = width_at([constant(stalls=3)], 2.0)
    assert few.ranks == 34
    assert (few.high, few.supported) == (math.inf, False)


def test_a_quantile_beyond_the_measured_range_is_marked():
    table = predict([trace(1)], ranks=[1, 32, 64], resamples=20).set_index(["ranks", "quantile"])
    assert table.supported.to_dict() == {
        (1, 0.5): True,
        (1, 0.99): True,
        (1, 0.999): True,  # 20 of 20,000 beyond
        (32, 0.5): True,
        (32, 0.99): True,  # 6 beyond
        (32, 0.999): False,
        (64, 0.5): True,
        (64, 0.99): False,  # 3 beyond
        (64, 0.999): False,
    }
    assert table.needs[32, 0.999] == pytest.approx(5 * 32 / 0.001, rel=0.001)
    assert set(table.steps) == {20_000}


def test_interval_covers_the_truth_as_often_as_it_says():
    """Many samples from one known process; the true group quantile lies in about 95% of them."""
    rng = np.random.default_rng(0)
    ranks, quantile, covered = 8, 0.5, 0
    truth = 20 - 5 * math.log(1 - quantile ** (1 / ranks))
    for repetition in range(100):
        runs = [((20 + rng.exponential(5, 4000)) * MS).astype(np.int64) for _ in range(4)]
        row = predict(runs, ranks=[ranks], quantiles=[quantile], resamples=200, seed=repetition)
        covered += row.low_ms.item() <= truth <= row.high_ms.item()
    assert 85 <= covered <= 100


def test_interval_knows_that_runs_differ():
    """Had only the faster run been measured, this P90 would be half as long."""
    row = predict([trace(1), 2 * trace(2)], ranks=[4], quantiles=[0.9])
    assert row.low_ms.item() < 25 < 40 < row.value_ms.item()


def test_same_seed_same_numbers():
    runs = [trace(1), trace(2)]
    assert predict(runs, ranks=[8]).equals(predict(runs, ranks=[8]))
    assert not predict(runs, ranks=[8]).equals(predict(runs, ranks=[8], seed=1))
    options = {"ranks": 8, "steps": 50_000, "alignment": 0.5}
    first, second = simulate(runs, **options), simulate(runs, **options)
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, simulate(runs, **options, seed=1))


RUNS = [trace(1, steps=200)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: predict([]), "no runs"),
        (lambda: predict([np.arange(1, 2)]), r"run 0 has shape \(1,\)"),
        (lambda: predict([RUNS[0], np.ones((2, 2), int)]), r"run 1 has shape \(2, 2\)"),
        (lambda: predict([RUNS[0] - 10**9]), "run 0 holds intervals that are no positive whole"),
        (lambda: predict([RUNS[0] / 1e6]), "run 0 holds intervals that are no positive whole"),
        (lambda: predict(RUNS, ranks=[2, 0]), "ranks=0 must be 1 or more"),
        (lambda: predict(RUNS, quantiles=[99]), "quantile=99 must lie between 0 and 1"),
        (lambda: predict(RUNS, alignment=1.5), "alignment=1.5 must be from 0 to 1"),
        (lambda: simulate(RUNS, ranks=2, steps=0), "steps=0 must be 1 or more"),
        (lambda: simulate(RUNS, ranks=2, steps=9, alignment=-1), "alignment=-1 must be from 0 to"),
        (lambda: width_at(RUNS, 1.0), "ratio=1.0 must be above 1"),
        (lambda: width_at(RUNS, 2.0, quantile=1), "quantile=1 must lie between 0 and 1"),
    ],
)
def test_bad_input_is_one_clear_line(call, message):
    with pytest.raises(LockstepError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
