"""Pauses of many ranks on top of a common step: known answers, and two ways that must agree."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from builders import MS, SECOND, START, run
from campaigns import story

from repro import dataset
from repro.analysis.prediction_basis import bases, nearest
from repro.theory import lockstep
from repro.theory.common_step import Steps, play, predict, take_apart, width_at
from repro.theory.lockstep import LockstepError


def steps(seeds: tuple[int, ...] = (1, 2), number: int = 20_000, every: int = 500) -> Steps:
    """Common parts of about 20 ms; pauses of 300 to 500 ms at regular distances, and short ones."""
    common, paused = [], []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        common.append((rng.gamma(100, 20 * MS / 100, number)).astype(np.int64))
        pause = np.where(rng.random(number) < 0.1, rng.integers(MS, size=number), 0)
        pause[seed::every] = rng.uniform(300, 500, len(pause[seed::every])) * MS
        paused.append(pause.astype(np.int64))
    return Steps(common=tuple(common), paused=tuple(paused))


def constant(stalls: int, number: int = 10_000) -> Steps:
    """Steps of 20 ms, so many of them with a pause of 380 ms."""
    paused = np.zeros(number, dtype=np.int64)
    paused[np.linspace(0, number - 1, stalls).astype(int)] = 380 * MS
    return Steps(common=(np.full(number, 20 * MS),), paused=(paused,))


@pytest.mark.parametrize("ranks", [1, 4, 32, 512])
def test_closed_form_agrees_with_the_simulation(ranks: int) -> None:
    table = predict(steps(), ranks=[ranks], resamples=20)
    group = play(steps(), ranks=ranks, number=400_000, seed=3) / MS
    for row in table.itertuples():
        below, within = (group < row.value_ms * 0.98).mean(), (group <= row.value_ms * 1.02).mean()
        margin = 0.15 * (1 - row.quantile)
        assert below - margin <= row.quantile <= within + margin


def test_with_equal_common_steps_it_is_lockstep() -> None:
    paused = steps().paused
    flat = Steps(common=tuple(np.full(len(p), 20 * MS) for p in paused), paused=paused)
    ranks = [1, 8, 64]
    ours = predict(flat, ranks=ranks, resamples=20).value_ms
    theirs = lockstep.predict(flat.whole, ranks=ranks, resamples=20).value_ms
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_the_common_part_does_not_grow_with_the_ranks() -> None:
    """Where `lockstep` alone lets ordinary steps differ, and P99 rise without any pause."""
    alone = Steps(common=steps().common, paused=tuple(0 * part for part in steps().paused))
    ours = predict(alone, ranks=[1, 1024], quantiles=[0.99], resamples=20).value_ms
    theirs = lockstep.predict(alone.whole, ranks=[1, 1024], quantiles=[0.99], resamples=20).value_ms
    assert ours[0] == pytest.approx(ours[1])
    assert theirs[1] > 1.05 * theirs[0]


def test_width_is_where_a_hundredth_of_the_steps_stall() -> None:
    # One stall in 1,000 steps: P99 moves at the smallest R with 1 - (1 - 1/1000)^R > 1%.
    width = width_at(constant(stalls=10), 2.0)
    assert width.ranks == 11
    assert width.low < 11 < width.high
    assert width.supported
    table = predict(constant(stalls=10), ranks=[10, 11], quantiles=[0.99], resamples=20)
    assert table.value_ms.tolist() == pytest.approx([20, 400], rel=1e-6)


def test_a_few_stalls_decide_no_width_but_bound_it() -> None:
    few = width_at(constant(stalls=3), 2.0)
    assert (few.ranks, few.supported, few.high) == (34, False, math.inf)
    none = width_at(constant(stalls=0), 2.0)
    assert (none.ranks, none.supported) == (math.inf, False)
    assert none.low == 34  # 3 / 10,000 at most


def test_the_freeze_shows_as_the_width_that_is_never_reached() -> None:
    frozen = Steps(common=steps().common, paused=tuple(p // 200 for p in steps().paused))
    assert width_at(frozen, 1.2).ranks == math.inf
    assert width_at(steps(), 1.2).ranks < 10


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Stalls of one length at a known rate: the true width lies inside in about 95% of samples."""
    rate, number, covered = 1 / 400, 8_000, 0
    truth = math.ceil(math.log(0.99) / math.log1p(-rate))
    for seed in range(60):
        rng = np.random.default_rng(seed)
        paused = np.where(rng.random((3, number)) < rate, 380 * MS, 0)
        made = Steps(common=tuple(np.full((3, number), 20 * MS)), paused=tuple(paused))
        width = width_at(made, 2.0, resamples=100, seed=seed)
        covered += width.low <= truth <= width.high
    assert 48 <= covered <= 60


def test_rounding_pauses_invents_no_stall() -> None:
    """A resample rounds pauses up to a value of its grid: never from a short one to a stall."""
    made = steps(number=8_000, every=2_000)
    width = width_at(made, 2.0)
    assert width.ranks == pytest.approx(20, abs=1)
    assert width.low >= 9


def test_same_seed_same_numbers() -> None:
    few = {"ranks": [8], "resamples": 50}
    assert predict(steps(), **few).equals(predict(steps(), **few))
    assert not predict(steps(), **few).equals(predict(steps(), **few, seed=1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: predict(constant(1), ranks=[0]), "ranks=0 must be 1 or more"),
        (lambda: predict(constant(1), quantiles=[99]), "quantile=99 must lie between 0 and 1"),
        (lambda: width_at(constant(1), 1), "ratio=1 must be above 1"),
        (lambda: width_at(constant(1), 2, quantile=0), "quantile=0 must lie between 0 and 1"),
    ],
)
def test_bad_input_is_one_clear_line(call, message: str) -> None:
    with pytest.raises(LockstepError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


# --- from a campaign ----------------------------------------------------------------------


def test_a_step_is_taken_apart_at_what_its_pauses_made_it_longer(tmp_path: Path) -> None:
    gap = np.full(400, 20 * MS)
    gap[[100, 200, 300]] = [420 * MS, 23 * MS, 60 * MS]
    time = START + np.cumsum(gap)
    pauses = {
        # The first begins under cover of the device, the third in a step that is long anyway.
        "start_ns": time[[99, 199, 299, 350]] + 5 * MS,
        "duration_ns": [410 * MS, 3 * MS, 2 * MS, MS],
        "role": ["worker", "worker", "worker", "frontend"],
    }
    tables = {"steps": {"start_ns": time, "step": np.arange(400)}, "pauses": pauses}
    run(tmp_path / "c", "a", tables, window__end_ns=START + 60 * SECOND)
    made = take_apart(dataset.load(tmp_path / "c"), ["a"])
    (paused,), (common,) = made.paused, made.common
    assert np.flatnonzero(paused).tolist() == [99, 199, 299]
    assert (paused[[99, 199, 299]] / MS).tolist() == [400, 3, 2]
    assert (common[[99, 199, 299]] / MS).tolist() == [20, 20, 58]
    assert (made.whole[0] == gap[1:]).all()


def test_a_campaign_without_one_rank_has_no_basis(tmp_path: Path) -> None:
    several = dataset.load(story(tmp_path / "c", length_s=4, experiment__data_parallel_size=2))
    assert bases(several) == []
    served = dataset.load(story(tmp_path / "s", length_s=4, experiment__client="serve"))
    assert bases(served) == []
    alone = dataset.load(story(tmp_path / "a", length_s=4))
    (basis,) = bases(alone)
    assert basis.pair.baseline == "no-freeze"
    assert len(basis.runs) == 4
    assert nearest([several, served], 256) is None


def test_the_basis_is_the_nearest_in_load(tmp_path: Path) -> None:
    made = [
        dataset.load(story(tmp_path / str(load), length_s=4, experiment__concurrency=load))
        for load in (64, 512, 1024)
    ]
    found = nearest(made, 700)
    assert found is not None
    assert found.concurrency == 512
