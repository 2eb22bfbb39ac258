"""Captures: what the collector took of each, and when a repeated one counts as a first one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from builders import MS, SECOND, run
from campaigns import capture_tables, captures, decided, recaptures

from repro import dataset
from repro.analysis.captures import (
    NEEDS_BLOCKS,
    again_over_first,
    capture_times,
    collector_share,
    compared,
    policy_effects,
    principal,
    same_memory_again,
)
from repro.report.tables import capture_time, runs
from repro.stats.ratios import ratio_of_pairs

SECONDS = {"gc-on": 5.0, "frozen": 4.0, "collect-per-graph": 50.0}


def times_of(folder: Path) -> object:
    return capture_times(dataset.load(folder))


def test_each_capture_has_the_pauses_within_its_own_span_and_process(tmp_path: Path) -> None:
    spans = {
        "kind": "capture",
        "capture_policy": ["gc-on", "frozen"],
        "number": [0, 1],
        "start_ns": [SECOND, 3 * SECOND],
        "duration_ns": [SECOND, SECOND],
        "graphs": 700,
    }
    pauses = {
        "role": ["worker"] * 5 + ["engine"],
        "rank": [0, 0, 0, 0, 1, 0],
        "generation": [2, 0, 2, 1, 2, 2],
        "start_ns": [SECOND, SECOND + 9, 3 * SECOND, 2 * SECOND + 9, SECOND, SECOND],
        "duration_ns": [300 * MS, MS, 100 * MS, 9 * MS, 9 * MS, 9 * MS],
    }
    census = {"point": ["capture", "ready", "capture"], "t_ns": [1, 2, 3], "tracked": [5, 6, 7]}
    run(tmp_path / "c", "a", {"captures": spans, "pauses": pauses, "census": census})
    first, again = capture_times(dataset.load(tmp_path / "c")).to_dict("records")
    counts = ["collections_0", "collections_1", "collections_2"]
    assert [first[name] for name in counts] == [1, 0, 1]
    assert [again[name] for name in counts] == [0, 0, 1]
    assert (first["gc_s"], first["full_s"]) == (0.301, 0.3)
    assert (again["gc_s"], again["full_s"]) == (0.1, 0.1)
    assert (first["heap"], again["heap"]) == (5, 7)
    assert (first["again"], again["again"]) == (False, True)


def test_of_several_ranks_each_capture_is_the_slowest(tmp_path: Path) -> None:
    spans = {
        "kind": "capture",
        "rank": [0, 1, 0, 1],
        "number": [0, 0, 1, 1],
        "start_ns": [1, 1, 9 * SECOND, 9 * SECOND],
        "duration_ns": [3 * SECOND, 2 * SECOND, SECOND, 4 * SECOND],
    }
    run(tmp_path / "c", "a", {"captures": spans})
    assert list(times_of(tmp_path / "c")["capture_s"]) == [3, 4]


def test_a_capture_without_any_collection_or_count_is_still_one(tmp_path: Path) -> None:
    run(tmp_path / "c", "a", {"captures": {"kind": ["capture"], "duration_ns": [SECOND]}})
    (found,) = times_of(tmp_path / "c").to_dict("records")
    assert (found["gc_s"], found["collections_2"]) == (0, 0)
    assert np.isnan(found["heap"])


def test_with_uni_the_collector_is_the_engine_cores(tmp_path: Path) -> None:
    tables_ = {
        "captures": {"kind": ["capture"], "start_ns": [1], "duration_ns": [SECOND]},
        "pauses": {"role": "engine", "start_ns": [2], "duration_ns": [MS], "generation": 2},
    }
    run(tmp_path / "c", "a", tables_, experiment__executor="uni")
    assert list(times_of(tmp_path / "c")["collections_2"]) == [1]


def test_effects_compare_first_with_first_and_repeated_with_repeated(tmp_path: Path) -> None:
    recaptures(tmp_path / "c", SECONDS, first=3.0, replicates=6)
    effects = policy_effects(times_of(tmp_path / "c"))
    assert len(effects) == 4
    for row in effects.itertuples():
        expected = SECONDS[row.capture_policy] / SECONDS["gc-on"]
        assert row.ratio.value == pytest.approx(expected, rel=1e-6), "never 3 times that"
        assert row.ratio.low == pytest.approx(expected, rel=0.02)


def test_what_the_collector_does_not_explain_is_left(tmp_path: Path) -> None:
    """A tenth of every capture is the collector's: without it the ratio is what it was."""
    recaptures(tmp_path / "c", SECONDS)
    captures(tmp_path / "d", {"gc-on": 5.0, "frozen": 4.0}, full={"frozen": 0})
    (same,) = policy_effects(times_of(tmp_path / "c")).query(
        "capture_policy == 'frozen' and again"
    )["besides_gc"]
    assert same.value == pytest.approx(0.8)
    (without,) = policy_effects(times_of(tmp_path / "d"))["besides_gc"]
    assert without.value == pytest.approx(4.0 / 4.5)


def test_the_collectors_share_is_students_over_captures(tmp_path: Path) -> None:
    recaptures(tmp_path / "c", SECONDS)
    on = times_of(tmp_path / "c").query("capture_policy == 'gc-on' and again")
    share = collector_share(on)
    assert share.value == pytest.approx(0.1)
    assert (share.low, share.high) == pytest.approx((0.1, 0.1), rel=1e-3)
    assert not collector_share(on[:1]).supported
    assert not collector_share(on.assign(gc_s=0.0)).supported
    table = capture_time.captures(dataset.load(tmp_path / "c")).set_index(
        ["capture policy", "kind"]
    )
    assert table.loc[("gc-on", "capture again"), "GC share"] == "10.0% (10.0 to 10.0)"
    assert table.loc[("gc-on", "capture"), "GC share"] == "10.0%", "one capture has no interval"


def test_a_run_without_load_has_no_requests_in_flight(tmp_path: Path) -> None:
    captures(tmp_path / "c", {"gc-on": 5.0}, replicates=1)
    (row,) = runs.runs(dataset.load(tmp_path / "c")).to_dict("records")
    assert (row["in flight"], row["tokens/s"]) == ("–", "–")


def test_captures_of_more_graphs_are_another_setting(tmp_path: Path) -> None:
    for number, name in enumerate(("gc-on", "frozen")):
        spans = {"kind": ["capture"] * 2, "number": [0, 1], "capture_policy": name}
        spans |= {"duration_ns": [SECOND, SECOND], "graphs": 51 + 96 * number}
        run(tmp_path / "c", name, {"captures": spans})
    assert policy_effects(times_of(tmp_path / "c")).empty


def test_compilations_are_no_captures(tmp_path: Path) -> None:
    spans = {"kind": ["compile"], "capture_policy": "gc-on", "duration_ns": [SECOND]}
    run(tmp_path / "c", "a", {"captures": spans})
    assert policy_effects(times_of(tmp_path / "c")).empty
    assert again_over_first(times_of(tmp_path / "c")).empty


@pytest.mark.parametrize(("first", "expected"), [(1.0, "the same in time"), (2.0, "not shown")])
def test_repeated_captures_are_held_against_the_first_of_their_run(
    first: float, expected: str, tmp_path: Path
) -> None:
    recaptures(tmp_path / "c", SECONDS, first=first, replicates=3)
    (row,) = again_over_first(times_of(tmp_path / "c")).itertuples()
    # Start-up policies differ by a factor of ten between runs; within a run they are the same.
    assert row.time.value == pytest.approx(1 / first, rel=0.01)
    assert row.time.high < 1.02 / first
    assert row.memory.value == pytest.approx(1)
    said = capture_time.repetition(dataset.load(tmp_path / "c"))
    assert expected in said
    assert "the same in memory" in said


def test_one_run_says_nothing_of_repeating(tmp_path: Path) -> None:
    recaptures(tmp_path / "c", SECONDS, replicates=1)
    assert capture_time.repetition(dataset.load(tmp_path / "c")) == ""
    captures(tmp_path / "d", SECONDS)
    assert capture_time.repetition(dataset.load(tmp_path / "d")) == ""


@pytest.mark.parametrize(("memory", "kept"), [(1.0, 20), (1.005, 20), (0.9, 2), (0.0, 2)])
def test_memory_counts_again_only_where_it_is_all_taken_again(
    memory: float, kept: int, tmp_path: Path
) -> None:
    recaptures(tmp_path / "c", SECONDS, memory=memory)
    assert len(same_memory_again(times_of(tmp_path / "c"), (0.99, 1.01))) == kept


def test_repeated_captures_are_shown_where_there_are_any(tmp_path: Path) -> None:
    recaptures(tmp_path / "c", SECONDS, replicates=1, experiment__model="a")
    captures(tmp_path / "c", SECONDS, replicates=1, experiment__model="b")
    shown = principal(times_of(tmp_path / "c"))
    assert shown.groupby("model")["again"].agg(["all", "any", "size"]).values.tolist() == [
        [True, True, 9],
        [False, False, 3],
    ]


def test_arithmetic_is_that_of_heap_graphs_and_containers(tmp_path: Path) -> None:
    spans = {"kind": "capture", "capture_policy": ["gc-on"], "duration_ns": [9 * SECOND]}
    pauses = {"generation": [2] + [0] * 10, "start_ns": np.arange(11), "duration_ns": MS}
    pauses["duration_ns"] = [500 * MS] + [MS] * 10
    census = {"point": ["capture"], "tracked": [1_000_000], "threshold_0": 700}
    made = {"captures": {**spans, "graphs": [1000]}, "pauses": pauses, "census": census}
    run(tmp_path / "c", "a", made)
    campaign = dataset.load(tmp_path / "c")
    (told,) = capture_time.collections(campaign).to_dict("records")
    assert (told["the longest (s)"], told["ns per object"]) == ("0.500", "500")
    (told,) = capture_time.growth(campaign).to_dict("records")
    assert told["containers left per graph"] == "7.00"
    assert told["graphs for a quarter of the heap"] == "35,700"
    assert told["graphs captured"] == "1,000"


def test_the_table_has_a_row_a_policy_and_kind(tmp_path: Path) -> None:
    recaptures(tmp_path / "c", SECONDS, replicates=2)
    table = capture_time.captures(dataset.load(tmp_path / "c"))
    assert list(zip(table["capture policy"], table["kind"], strict=True)) == [
        ("frozen", "capture"),
        ("gc-on", "capture"),
        ("collect-per-graph", "capture again"),
        ("frozen", "capture again"),
        ("gc-on", "capture again"),
    ]
    frozen = table.set_index(["capture policy", "kind"]).loc[("frozen", "capture again")]
    assert frozen["over gc-on"].startswith("×0.800 (")
    assert (frozen["captures"], frozen["runs"]) == ("6", "2")
    assert table.loc[0, "over gc-on"] == "–", "one first capture each decides nothing"


def test_ratio_of_pairs_is_students() -> None:
    found = ratio_of_pairs([1.0, 10.0, 100.0], [2.0, 22.0, 242.0])
    change = np.log([2.0, 2.2, 2.42])
    width = 4.303 * change.std(ddof=1) / np.sqrt(3)
    assert found.value == pytest.approx(2.2)
    assert np.log([found.low, found.high]) == pytest.approx(
        [change.mean() - width, change.mean() + width]
    )
    assert not ratio_of_pairs([1.0], [2.0]).supported


def test_captures_of_a_block_are_compared_with_each_other() -> None:
    """The machine's speed changes from block to block by more than policies differ."""
    about = {"run": "a", "block": range(4), "again": True}
    on = pd.DataFrame(about | {"capture_s": [4.0, 5.0, 6.0, 7.0]})
    frozen = on.assign(capture_s=on["capture_s"] * [1.018, 1.022, 1.02, 1.02])
    ratio = compared(on, frozen, "capture_s")
    assert 1.015 < ratio.low < 1.02 < ratio.high < 1.025
    pooled = compared(on[: NEEDS_BLOCKS - 1], frozen[: NEEDS_BLOCKS - 1], "capture_s")
    assert pooled.high > 2 * pooled.low


def test_memory_that_differs_by_one_unit_is_the_same(tmp_path: Path) -> None:
    """Two captures of each policy: their interval is wider than any two are apart."""
    start_up = {"gc-on": (432, 432), "frozen": (432, 430)}
    for name, units in start_up.items():
        for replicate, mib in enumerate(units):
            made = [
                {"policy": name, "length_ns": SECOND, "gc_share": 0.1, "memory_bytes": mib << 20}
            ]
            run(
                tmp_path / "c",
                f"{name}-{replicate}",
                capture_tables(made, {}),
                experiment__capture_policy=name,
                experiment__replicate=replicate,
                machine__gpu_name="H200",
            )
    found = decided("capture-memory", dataset.load(tmp_path / "c"))
    assert found["verdict"] == "reproduced"
    assert "×0.995 to ×1.00" in found["number"]
