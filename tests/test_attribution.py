"""Planted pauses are found, coincidence is told from cause, and time lost adds up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from builders import END, MS, SECOND, START, gaps_between, run, stalled, steady

from repro.analysis.attribution import HANDLER, attribute, by_arm
from repro.analysis.gc_cost import full_collections, gc_time
from repro.analysis.tails import tail_table
from repro.dataset import Campaign, load
from repro.report.tables.itl_tails import attribution

GAP = 10 * MS
STALL = 200 * MS
PAUSES = ["role", "rank", "generation"]


def planted(tmp_path: Path, pauses: dict[str, object], stalls: np.ndarray) -> Campaign:
    """A run whose tokens stall at `stalls`, with these pauses recorded."""
    itl = gaps_between(stalled(list(stalls), STALL, GAP))
    run(tmp_path / "c", "a", {"itl": itl, "pauses": pauses})
    return load(tmp_path / "c")


def begin(number: int) -> np.ndarray:
    """When each of some stalls begins as the undisturbed server counts time, in the window."""
    return START + np.arange(1, number + 1) * SECOND // 2


def happened(stalls: np.ndarray) -> np.ndarray:
    """When each stall begins on the clock: the stalls before it delay it."""
    return stalls + np.arange(len(stalls)) * STALL


def shares(table: pd.DataFrame, column: str = "share") -> dict[tuple[str, int, int], float]:
    return table.set_index(PAUSES)[column].to_dict()


def test_planted_pauses_are_attributed_to_their_process_and_generation(tmp_path: Path) -> None:
    stalls = begin(10)
    at = happened(stalls)
    pauses = {
        "start_ns": at,
        "duration_ns": STALL,
        "role": ["worker"] * 6 + ["engine"] * 3 + ["frontend"],
        "rank": [0, 0, 0, 0, 1, 1, 0, 0, 0, 0],
        "generation": [2, 2, 2, 1, 2, 2, 2, 2, 2, 2],
    }
    table = attribute(planted(tmp_path, pauses, stalls))
    assert shares(table) == pytest.approx(
        {
            ("engine", 0, 2): 0.3,
            ("frontend", 0, 2): 0.1,
            ("worker", 0, 1): 0.1,
            ("worker", 0, 2): 0.3,
            ("worker", 1, 2): 0.2,
            ("unexplained", -1, -1): 0.0,
        }
    )
    assert set(table["tail_steps"]) == {10}


def test_stalls_without_a_pause_stay_unexplained(tmp_path: Path) -> None:
    stalls = begin(10)
    at = happened(stalls)[:4]
    pauses = {"start_ns": at, "duration_ns": STALL, "generation": 2}
    found = shares(attribute(planted(tmp_path, pauses, stalls)))
    assert found == pytest.approx({("worker", 0, 2): 0.4, ("unexplained", -1, -1): 0.6})


def held(tmp_path: Path, collecting: float) -> Campaign:
    """Four stalls under holds of the event loop, the front end collecting for a part of each."""
    at = happened(begin(4))
    made = {
        "itl": gaps_between(stalled(list(begin(4)), STALL, GAP)),
        "holds": {"start_ns": at, "duration_ns": STALL, "outputs": 5000, "calls": 90},
        "pauses": {
            "start_ns": at + MS,
            "duration_ns": int(collecting * STALL),
            "role": "frontend",
            "generation": 2,
        },
    }
    run(tmp_path / "c", "a", made)
    return load(tmp_path / "c")


def test_a_hold_of_the_event_loop_is_a_cause_of_its_own(tmp_path: Path) -> None:
    campaign = held(tmp_path, collecting=0.4)
    found = shares(attribute(campaign))
    assert found == {
        ("frontend", 0, HANDLER): 1.0,
        ("frontend", 0, 2): 0.0,
        ("unexplained", -1, -1): 0.0,
    }
    told = attribution(campaign, 5.0).iloc[0]
    assert (told["pauses of"], told["generation"], told["share"]) == (
        "front end 0",
        "output handler",
        "100%",
    )


def test_a_hold_spent_collecting_is_the_collections(tmp_path: Path) -> None:
    campaign = held(tmp_path, collecting=0.6)
    found = shares(attribute(campaign))
    assert found == {("frontend", 0, 2): 1.0, ("unexplained", -1, -1): 0.0}
    told = attribution(campaign, 5.0).iloc[0]
    assert (told["pauses of"], told["generation"], told["share"]) == ("front end 0", 2, "100%")


def test_run_without_pauses_is_all_unexplained(tmp_path: Path) -> None:
    run(tmp_path / "c", "a", {"itl": gaps_between(stalled(list(begin(5)), STALL))})
    table = attribute(load(tmp_path / "c"))
    assert shares(table) == {("unexplained", -1, -1): 1.0}
    assert shares(table, "chance") == {("unexplained", -1, -1): 1.0}


def test_run_without_a_tail_has_no_share(tmp_path: Path) -> None:
    pauses = {"start_ns": [START + SECOND], "duration_ns": STALL}
    run(tmp_path / "c", "a", {**steady(), "pauses": pauses})
    table = attribute(load(tmp_path / "c"))
    assert (table["tail_steps"] == 0).all()
    assert table["share"].isna().all()
    assert table["chance"].isna().all()
    assert by_arm(table)["share"].isna().all()


@pytest.mark.parametrize(("share", "explained"), [(0.19, 0.0), (0.21, 1.0)])
def test_a_pause_must_make_up_its_share_of_the_excess(
    tmp_path: Path, share: float, explained: float
) -> None:
    stalls = begin(4)
    pauses = {"start_ns": happened(stalls), "duration_ns": int(share * STALL)}
    found = shares(attribute(planted(tmp_path, pauses, stalls)))
    assert found[("worker", 0, 0)] == explained


@pytest.mark.parametrize(("early", "late"), [("engine", "worker"), ("worker", "engine")])
def test_the_longest_overlap_wins_not_the_longest_pause(
    tmp_path: Path, early: str, late: str
) -> None:
    stalls = begin(1)
    at = int(happened(stalls)[0])
    pauses = {
        # The early pause is longer, but most of it lies before the gap.
        "start_ns": [at - 5 * STALL, at],
        "duration_ns": [5 * STALL + STALL // 2, STALL],
        "role": [early, late],
    }
    found = shares(attribute(planted(tmp_path, pauses, stalls)))
    assert found[(late, 0, 0)] == 1.0
    assert found[(early, 0, 0)] == 0.0


def test_pauses_in_a_gap_are_not_added_up(tmp_path: Path) -> None:
    stalls = begin(1)
    at = int(happened(stalls)[0])
    pauses = {
        "start_ns": [at, at + 70 * MS, at],
        "duration_ns": [60 * MS, 60 * MS, 100 * MS],
        "role": ["worker", "worker", "engine"],
    }
    found = shares(attribute(planted(tmp_path, pauses, stalls)))
    assert found[("engine", 0, 0)] == 1.0


def test_short_pauses_explain_nothing(tmp_path: Path) -> None:
    stalls = begin(1)
    at = int(happened(stalls)[0])
    pauses = {"start_ns": at + np.arange(20) * STALL // 20, "duration_ns": STALL // 20}
    found = shares(attribute(planted(tmp_path, pauses, stalls)))
    assert found == {("worker", 0, 0): 0.0, ("unexplained", -1, -1): 1.0}


def test_factor_draws_the_line(tmp_path: Path) -> None:
    campaign = planted(tmp_path, {"start_ns": [START]}, begin(10))
    assert set(attribute(campaign, 20.9)["tail_steps"]) == {10}  # gaps of 210 ms, median 10 ms
    assert set(attribute(campaign, 21.0)["tail_steps"]) == {0}


def test_tokens_of_one_step_share_it(tmp_path: Path) -> None:
    """Three tokens wait for the pause; one of the same step had waited long before it."""
    end = START + 5 * SECOND
    quiet = np.arange(START, START + 4 * SECOND, GAP)
    itl = {
        "t_ns": [*quiet, end, end],
        "itl_ns": [*np.full(len(quiet), GAP), STALL, 20 * STALL],
        "count": [*np.full(len(quiet), 4), 3, 1],
    }
    pauses = {"start_ns": [end - STALL], "duration_ns": STALL}
    run(tmp_path / "c", "a", {"itl": itl, "pauses": pauses})
    table = attribute(load(tmp_path / "c"))
    assert set(table["tail_steps"]) == {1}
    assert shares(table) == pytest.approx({("worker", 0, 0): 0.75, ("unexplained", -1, -1): 0.25})


def test_pauses_at_random_explain_what_chance_explains(tmp_path: Path) -> None:
    """Unrelated pauses: share and chance agree, and are the share of time a pause can reach."""
    rng = np.random.default_rng(0)
    cells = rng.choice(np.arange(20, 980), size=200, replace=False)
    end = START + np.sort(cells) * GAP
    quiet = np.arange(START, END, GAP) + GAP // 2
    long = 6 * GAP
    itl = {
        "t_ns": [*quiet, *end],
        "itl_ns": [*np.full(len(quiet), GAP), *np.full(len(end), long)],
        "count": 1,
    }
    duration, every = 4 * GAP, 40 * GAP
    start = np.arange(START, END, every) + rng.integers(every - duration)
    pauses = {"start_ns": start, "duration_ns": duration, "generation": 2}
    run(tmp_path / "c", "a", {"itl": itl, "pauses": pauses})
    table = attribute(load(tmp_path / "c"))
    # Needed overlap is 20% of the excess of 5 gaps: 1 gap. Starts that give it span 4 + 6 - 2.
    expected = (duration + long - 2 * GAP) / every
    chance = shares(table, "chance")[("worker", 0, 2)]
    assert chance == pytest.approx(expected, abs=0.02)
    assert shares(table)[("worker", 0, 2)] == pytest.approx(chance, abs=0.1)
    assert shares(table, "chance")[("unexplained", -1, -1)] == pytest.approx(1 - chance)


def test_chance_is_small_for_rare_pauses_that_explain_all(tmp_path: Path) -> None:
    stalls = begin(2)
    pauses = {"start_ns": happened(stalls), "duration_ns": STALL, "generation": 2}
    table = attribute(planted(tmp_path, pauses, stalls))
    assert shares(table)[("worker", 0, 2)] == 1.0
    assert shares(table, "chance")[("worker", 0, 2)] < 0.15
    pd.testing.assert_frame_equal(attribute(load(tmp_path / "c")), table)


def test_runs_are_kept_apart_and_pooled_by_arm(tmp_path: Path) -> None:
    """A pause of one run explains no gap of another, though their clocks overlap."""
    stalls = begin(4)
    itl = gaps_between(stalled(list(stalls), STALL, GAP))
    pauses = {"start_ns": happened(stalls), "duration_ns": STALL, "generation": 2}
    run(tmp_path / "c", "a", {"itl": itl, "pauses": pauses})
    run(tmp_path / "c", "b", {"itl": itl})
    run(tmp_path / "c", "n", {"itl": itl, "pauses": pauses}, experiment__policy="no-freeze")
    table = attribute(load(tmp_path / "c"))
    by_run = {name: shares(group) for name, group in table.groupby("run")}
    assert by_run["a"][("worker", 0, 2)] == 1.0
    assert by_run["b"] == {("unexplained", -1, -1): 1.0}
    pooled = by_arm(table)
    assert pooled["role"].tolist() == ["worker", "unexplained"] * 2
    of_freeze = pooled[pooled["arm"] == "freeze"]
    assert shares(of_freeze) == pytest.approx({("worker", 0, 2): 0.5, ("unexplained", -1, -1): 0.5})
    assert set(of_freeze["tail_steps"]) == {8}
    assert of_freeze["chance"].sum() == pytest.approx(1)


def test_a_factor_out_of_range(tmp_path: Path) -> None:
    campaign = planted(tmp_path, {"start_ns": [START]}, begin(1))
    with pytest.raises(ValueError, match=r"factor 1\.0 must be above 1"):
        attribute(campaign, 1.0)


# --- time lost ------------------------------------------------------------------------------


def test_gc_time_is_per_process_and_per_1000_steps(tmp_path: Path) -> None:
    entry = np.arange(START, END, GAP)  # 1000 steps of each of two ranks
    steps = {
        "rank": np.tile([0, 1], len(entry)),
        "step": np.repeat(np.arange(len(entry)), 2),
        "start_ns": np.repeat(entry, 2),
    }
    pauses = {
        "role": ["worker", "worker", "worker", "frontend", "worker"],
        "rank": [0, 0, 1, 0, 0],
        "generation": [2, 2, 2, 0, 2],
        "start_ns": [START, START + 1, START + 2, START + 3, START - 1],  # the last is ramp
        "duration_ns": [100 * MS, 300 * MS, 200 * MS, 2 * MS, 9000 * MS],
    }
    run(tmp_path / "c", "a", {"steps": steps, "pauses": pauses})
    table = gc_time(load(tmp_path / "c")).set_index(["arm", "role", "generation"])
    assert len(table) == 2 * 3  # no engine row: nothing was recorded there
    worker = table.loc[("freeze", "worker", 2)]
    assert worker["pauses"] == 3
    assert worker["steps"] == 2000
    assert worker["per_1000_steps"] == pytest.approx(1.5)
    assert worker["ms_per_1000_steps"] == pytest.approx(300)
    assert (worker["max_ms"], worker["median_ms"]) == (300, 200)
    assert table.loc[("freeze", "frontend", 0), "ms_per_1000_steps"] == pytest.approx(2)
    none = table.loc[("freeze", "worker", 1)]
    assert (none["pauses"], none["ms_per_1000_steps"]) == (0, 0)
    assert np.isnan(none["max_ms"])


def test_gc_time_pools_the_runs_of_an_arm(tmp_path: Path) -> None:
    pause = {"start_ns": [START + 1], "duration_ns": 10 * MS, "generation": 2}
    run(tmp_path / "c", "a", {**steady(GAP), "pauses": pause})
    run(tmp_path / "c", "b", {**steady(GAP), "pauses": {**pause, "duration_ns": 30 * MS}})
    # A run of the other arm, whose only pause is in the ramp: zeros, not absence.
    ramp = {**pause, "start_ns": [START - 1]}
    run(tmp_path / "c", "n", {**steady(GAP), "pauses": ramp}, experiment__policy="no-freeze")
    table = gc_time(load(tmp_path / "c")).set_index(["arm", "generation"])
    assert table.loc[("freeze", 2), "ms_per_1000_steps"] == pytest.approx(20)
    assert table.loc[("no-freeze", 2), "ms_per_1000_steps"] == 0


def test_gc_time_without_steps_is_not_a_number(tmp_path: Path) -> None:
    run(tmp_path / "c", "a", {"pauses": {"start_ns": [START], "duration_ns": MS}})
    assert gc_time(load(tmp_path / "c"))["ms_per_1000_steps"].isna().all()


def test_full_collections_count_steps_between(tmp_path: Path) -> None:
    start = START + np.array([50, 150, 400, 425]) * GAP + 1
    pauses = {
        "start_ns": [*start, start[1], start[0]],
        "generation": [2, 2, 2, 2, 2, 1],
        "duration_ns": [5, 6, 7, 8, 9, 1],
        "role": ["worker"] * 4 + ["engine", "worker"],
    }
    run(tmp_path / "c", "a", {**steady(GAP), "pauses": pauses})
    table = full_collections(load(tmp_path / "c"))
    worker = table[table["role"] == "worker"]
    assert worker["duration_ns"].tolist() == [5, 6, 7, 8]
    ramp = SECOND // GAP
    assert worker["step"].tolist() == [ramp + 51, ramp + 151, ramp + 401, ramp + 426]
    assert worker["period_steps"].tolist()[1:] == [100, 250, 25]
    assert np.isnan(worker["period_steps"].iloc[0])
    engine = table[table["role"] == "engine"]
    assert engine["step"].tolist() == [ramp + 151]
    assert engine["period_steps"].isna().all()


def test_full_collections_use_the_steps_of_their_own_rank(tmp_path: Path) -> None:
    steps = {
        "rank": [0] * 10 + [1] * 5,
        "start_ns": [*(START + np.arange(10) * GAP), *(START + np.arange(5) * 2 * GAP)],
    }
    at = START + 8 * GAP + 1
    pauses = {"start_ns": [at, at], "rank": [0, 1], "generation": 2}
    run(tmp_path / "c", "a", {"steps": steps, "pauses": pauses})
    assert full_collections(load(tmp_path / "c"))["step"].tolist() == [9, 5]


def test_no_pauses_at_all(tmp_path: Path) -> None:
    run(tmp_path / "c", "a", steady())
    campaign = load(tmp_path / "c")
    assert full_collections(campaign).empty
    assert gc_time(campaign).empty


def test_campaign_of_failures_gives_empty_tables(tmp_path: Path) -> None:
    failed = {"status": "failed", "reason": "worker died", "log_tail": []}
    run(tmp_path / "c", "a", steady(), **failed)
    campaign = load(tmp_path / "c")
    assert attribute(campaign).empty
    assert by_arm(attribute(campaign)).empty
    assert gc_time(campaign).empty
    assert full_collections(campaign).empty
    assert tail_table(campaign).empty
