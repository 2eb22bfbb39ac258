"""All policies side by side: each sitting's arms, and the table of what was measured."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import END, MS, SECOND, START, run, steady
from test_low_load import PAIRS, alternating
from test_silences import served

from benchmarks import policies
from repro.dataset import load
from repro.policy import ALTERNATE, SERVING
from repro.report.tables.policies import over_baseline, side_by_side


@pytest.mark.parametrize("sitting", policies.SITTINGS)
def test_a_sitting_measures_each_run_once(sitting: str) -> None:
    found = policies.experiments(sitting, replicates=2)
    assert len({experiment.run_id for experiment in found}) == len(found)
    assert {experiment.replicate for experiment in found} == {0, 1}


def test_every_policy_has_an_arm_in_the_engine_and_through_http() -> None:
    named = set(SERVING) - {ALTERNATE}
    for sitting, without in (("engine", {"stock"}), ("http", set())):
        asked = policies.experiments(sitting, replicates=1)
        assert {experiment.policy for experiment in asked} == named - without


def test_the_table_has_what_each_process_lost_kept_and_did_at_its_end(tmp_path: Path) -> None:
    """One pause in the window; at the end garbage is counted, and only what follows is vLLM's."""
    tables = steady(tokens=4)
    tables["pauses"] = {
        "role": ["worker"] * 3,
        "generation": [2] * 3,
        "start_ns": [START + SECOND, END + 2 * SECOND, END + 9 * SECOND],
        "duration_ns": [30 * MS, 500 * MS, 40 * MS],
    }
    tables["census"] = {
        "role": ["worker", "worker", "engine", "worker", "worker"],
        "point": ["window-start", "window-end", "window-end", "shutdown", "thawed"],
        "t_ns": [START, END, END, END + SECOND, END + 3 * SECOND],
        "rss_bytes": [1 << 20, 3 << 20, 2 << 20, 3 << 20, 3 << 20],
        "garbage": [None, None, None, 5, 70],
    }
    run(tmp_path, "a", tables, experiment__concurrency=10, summary__tokens_per_s=200.0)
    (row,) = side_by_side(load(tmp_path)).to_dict("records")
    assert row["arm"] == "freeze"
    assert row["longest pause (ms)"] == "–; –; 30.0"
    assert row["resident (MiB)"] == "–; 2.00; 3.00"
    assert row["gained under load (MiB)"] == "–; –; 2.00", "the engine core was counted once"
    assert row["full steps"] == "200"
    assert row["garbage since the freeze"] == "–; –; 5.00"
    assert row["garbage kept by it"] == "–; –; 70.0"
    assert row["full collections at shutdown (ms)"] == "–; 0; 40.0"
    assert row["GC per 1,000 steps (ms)"] == "30.0"
    assert row["P50 ITL (ms)"].startswith("10.0 (")
    assert row["P99.9 ITL (ms)"].startswith("needs ")
    assert "TTFT P50 (s)" not in row, "no client over HTTP"


def test_through_http_no_gap_stands_without_the_time_of_the_answer(tmp_path: Path) -> None:
    tables = steady()
    ends = range(START, END, 10 * MS)
    tables["requests"] = {
        "t_ns": list(ends),
        "ttft_ns": [200 * MS] * len(ends),
        "tpot_ns": [10.0 * MS] * len(ends),
        "output_tokens": [31] * len(ends),
    }
    run(tmp_path, "a", tables, experiment__client="serve")
    (row,) = side_by_side(load(tmp_path)).to_dict("records")
    assert row["TTFT P50 (s)"] == "0.200 (0.200 to 0.200)"
    assert row["end to end P99 (s)"] == "0.500 (0.500 to 0.500)"
    slower = tables["requests"] | {"ttft_ns": [700 * MS] * len(ends)}
    run(tmp_path, "stock", tables, experiment__client="serve", experiment__policy="stock")
    slow = tables | {"requests": slower}
    run(tmp_path, "slow", slow, experiment__client="serve", experiment__policy="rare-full")
    compared = over_baseline(load(tmp_path)).set_index("arm").loc["rare-full"]
    assert compared["TTFT P50"] == "×3.50 (3.50 to 3.50)"
    assert compared["end to end P99"] == "×2.00 (2.00 to 2.00)"


def test_through_http_chunks_hold_tokens_and_silences_have_causes(tmp_path: Path) -> None:
    served(tmp_path / "c", collecting_ns=SECOND)
    (row,) = side_by_side(load(tmp_path / "c")).to_dict("records")
    assert row["silent (s)"] == "3.00"
    assert row["of it held; collecting"] == "66.7%; 33.3%"
    served(tmp_path / "e", quiet_ns=900 * MS)
    (row,) = side_by_side(load(tmp_path / "e")).to_dict("records")
    assert (row["silent (s)"], row["of it held; collecting"]) == ("0", "–")
    run(tmp_path / "d", "quiet", steady(), experiment__client="serve")
    (row,) = side_by_side(load(tmp_path / "d")).to_dict("records")
    assert row["silent (s)"] == "–", "no run recorded holds"


def test_of_many_periods_the_table_has_the_median(tmp_path: Path) -> None:
    table = side_by_side(alternating(tmp_path, 1.02)).set_index("arm")
    assert table["tokens/s"].str.endswith(f", median of {PAIRS}").all()
    assert set(table["full steps"]) == {"–"}, "nobody counted the heap"


def test_periods_are_compared_with_those_beside_them(tmp_path: Path) -> None:
    """Not with the engine that never freezes, nor, where the machine drifts, with all others."""
    alternating(tmp_path, 1.02, drift=0.1)
    about = {"experiment__policy": "no-freeze", "experiment__concurrency": 8}
    run(tmp_path, "fresh", steady(20 * MS), **about)
    table = over_baseline(load(tmp_path)).set_index("over")
    assert table.loc["every 2 s no-freeze", "P50 ITL"] == "×1.02 (1.02 to 1.02)"


@pytest.mark.parametrize("differs", ["machine__cpu_count", "versions__vllm"])
def test_arms_of_two_machines_or_releases_are_not_compared(differs: str, tmp_path: Path) -> None:
    for number, policy in ((4, "stock"), (4, "freeze"), (8, "freeze"), (16, "stock")):
        value = number if "cpu" in differs else f"0.{number}.0"
        about = {"experiment__policy": policy, differs: value}
        run(tmp_path, f"{policy}-{number}", steady(), **about)
    (row,) = over_baseline(load(tmp_path)).to_dict("records")
    assert row["arm"].replace("freeze", "stock") == row["over"]
    assert "4" in row["arm"]


def test_each_arm_is_compared_with_the_plain_one_of_its_load(tmp_path: Path) -> None:
    arms = (("stock", 256, 10), ("freeze", 256, 5), ("stock", 64, 10), ("rare-full", 64, 20))
    for policy, in_flight, gap_ms in arms:
        about = {"experiment__policy": policy, "experiment__concurrency": in_flight}
        run(tmp_path, f"{policy}-{in_flight}", steady(gap_ms * MS), **about)
    table = over_baseline(load(tmp_path)).set_index("arm")
    assert table["over"].to_dict() == {"64 rare-full": "64 stock", "256 freeze": "256 stock"}
    assert table.loc["64 rare-full", "P50 ITL"] == "×2.00 (2.00 to 2.00)"
    assert table.loc["256 freeze", "P50 ITL"] == "×0.500 (0.500 to 0.500)"
    assert table.loc["256 freeze", "tokens/s"] == "–", "one run per arm"
