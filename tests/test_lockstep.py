"""Groups in lock-step: what is known beforehand comes out, and bad input gets one line."""

from __future__ import annotations

import numpy as np
import pytest

from repro.theory.lockstep import (
    SPREAD,
    UNIFORM,
    LockstepError,
    Steps,
    burst,
    lifetimes,
    longest_gap,
    predict,
    simulate,
    stalled_steps,
)

MS = 1_000_000
USUAL, PAUSE = 20 * MS, 400 * MS


def even(
    period: int, steps: int = 5_000, pause: int = PAUSE, offsets: tuple[int, ...] = ()
) -> Steps:
    """Steps of 20 ms; a pause in each `period`-th."""
    paused = np.zeros(steps, dtype=np.int64)
    paused[::period] = pause
    return Steps(
        common=(np.full(steps, USUAL, dtype=np.int64),),
        paused=(paused,),
        period=float(period),
        offsets=(np.array(offsets),) if offsets else UNIFORM,
    )


@pytest.mark.parametrize("ranks", [1, 4, 8, 32])
def test_ranks_that_share_a_phase_share_a_stalled_step(ranks: int) -> None:
    distinct = stalled_steps(ranks)
    assert distinct <= min(ranks, SPREAD) + 1e-9
    stalled = simulate(even(500), ranks, length=20_000).stalled.mean()
    assert stalled == pytest.approx(distinct / 500, rel=0.05)
    assert burst(even(500), ranks, 1)["stalled_steps"].mean() == pytest.approx(distinct, rel=0.05)


def test_offsets_of_measured_groups_decide_how_many_steps_stall() -> None:
    alone = simulate(even(500, offsets=(3,)), 1).stalled.mean()
    assert simulate(even(500, offsets=(3, 3)), 64).stalled.mean() == pytest.approx(alone)
    assert set(burst(even(500, offsets=(0, 5)), 64, 1)["stalled_steps"]) == {2}


def test_a_stall_is_the_usual_step_and_the_longest_pause() -> None:
    assert simulate(even(500, offsets=(0, 2)), 8).longest == pytest.approx(USUAL + PAUSE)
    found = burst(even(500), 1, 10)
    assert found["length_s"].unique() == pytest.approx((USUAL + PAUSE) / 1e9)
    assert found["stall_s"].unique() == pytest.approx(PAUSE / 1e9)
    assert found["seconds"].unique() == pytest.approx((10 * USUAL + PAUSE) / 1e9)
    assert found["longest_ms"].unique() == pytest.approx((USUAL + PAUSE) / MS)


def test_two_stalls_in_a_row_reach_a_client_as_one_gap() -> None:
    apart = np.array([[20.0, 420, 20, 420, 20, 20]])
    in_a_row = np.array([[20.0, 420, 420, 20, 20, 20]])
    assert longest_gap(np.stack([apart[0], in_a_row[0]]), np.full(2, 20.0)) == pytest.approx(
        [420, 820]
    )
    assert simulate(even(500, offsets=(0, 1)), 64).longest == pytest.approx(USUAL + 2 * PAUSE)


def test_requests_that_meet_a_stall() -> None:
    steps = np.full(100, USUAL)
    steps[50] += PAUSE
    met, (seconds, longest, p99) = lifetimes(steps, 10, USUAL)
    assert met.sum() == 10
    assert set(seconds[met].round(6)) == {0.6}
    assert set(seconds[~met].round(6)) == {0.2}
    assert set(longest[met]) == {420}
    assert (p99[met] < 420).all()


def test_pauses_enter_p99_once_they_stall_a_hundredth_of_the_steps() -> None:
    found = predict(even(200), ranks=[1, 8], quantiles=[0.5, 0.99]).set_index(["ranks", "quantile"])
    assert found.loc[(1, 0.99), "value_ms"] == pytest.approx(20)
    assert found.loc[(8, 0.99), "value_ms"] == pytest.approx(420)
    assert found.loc[(8, 0.5), "value_ms"] == pytest.approx(20)
    assert found["supported"].all()


def test_a_value_that_rests_on_few_pauses_or_steps_is_not_supported() -> None:
    few = predict(even(2_500), ranks=[16], quantiles=[0.999])
    assert few["value_ms"].item() == pytest.approx(420)
    assert not few["supported"].item()
    short = predict(even(100_000, steps=300, pause=0), ranks=[1], quantiles=[0.5, 0.99])
    assert short["supported"].tolist() == [True, False]


def test_without_a_period_the_pauses_are_counted() -> None:
    known = even(500)
    counted = Steps(common=known.common, paused=known.paused)
    share = simulate(counted, 1, length=20_000).stalled
    assert share.mean() == pytest.approx(1 / 500, rel=0.15)
    assert share.std() > simulate(known, 1, length=20_000).stalled.std()


def test_the_seed_decides() -> None:
    first, same, other = (simulate(even(500), 4, seed=seed).mean for seed in (1, 1, 2))
    assert (first == same).all()
    assert (first != other).any()


def test_a_group_without_ranks_is_refused_in_one_line() -> None:
    with pytest.raises(LockstepError, match="ranks=0 must be 1 or more"):
        simulate(even(500), 0)


def test_without_pauses_there_is_no_burst() -> None:
    with pytest.raises(LockstepError, match="no full collection"):
        burst(even(500, pause=0), 4, 10)
