"""The claim on an API server's goals: all five met, each of them missed alone, and its cases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from builders import MS, SECOND, run, steady
from campaigns import decided

from repro import dataset
from repro.claims import Verdict

STOCK = {"gap_ms": 20, "longest_ms": 800, "rate": 100.0, "ttft_s": 4.0, "tpot_ms": 100}
BETTER = {"gap_ms": 8, "longest_ms": 160, "rate": 140.0, "ttft_s": 3.0, "tpot_ms": 90}
BOUND = {"experiment__output_chunk": 4096, "experiment__output_yield_ms": 20.0}
TOKENS = 11


def served(root: Path, name: str, made: dict[str, float], **changes: object) -> None:
    """Three runs through HTTP that differ in their tokens/s alone, and little in that."""
    for replicate in range(3):
        tables = steady(round(made["gap_ms"] * MS))
        gaps = np.array(tables["itl"]["itl_ns"])
        gaps[60::300] = made["longest_ms"] * MS
        tables["itl"]["itl_ns"] = gaps
        tables["requests"] = {
            "t_ns": np.asarray(tables["itl"]["t_ns"]),
            "ttft_ns": round(made["ttft_s"] * SECOND),
            "tpot_ns": float(made["tpot_ms"] * MS),
            "output_tokens": TOKENS,
        }
        changes |= {"experiment__client": "serve", "experiment__concurrency": 1024}
        changes |= {"experiment__replicate": replicate, "summary__counted": True}
        rate = made["rate"] + replicate / 100
        run(root, f"{name}{replicate}", tables, summary__tokens_per_s=rate, **changes)


def verdict(root: Path, **bounded: float) -> str:
    """The claim's verdict on stock beside `BETTER` with these changes."""
    served(root, "stock", STOCK, experiment__policy="stock")
    served(root, "bounded", BETTER | bounded, experiment__policy="disable", **BOUND)
    return decided("bounded-steps", dataset.load(root))["verdict"]


def test_all_five_goals_met_is_reproduced(tmp_path: Path) -> None:
    assert verdict(tmp_path / "c") == Verdict.REPRODUCED


@pytest.mark.parametrize(
    "missed",
    [
        {"gap_ms": 12},
        {"longest_ms": 240},
        {"rate": 105.0},
        {"ttft_s": 4.5, "tpot_ms": 1},
        {"tpot_ms": 250},
    ],
    ids=["P99", "longest", "tokens", "first token", "last token"],
)
def test_each_goal_missed_alone_contradicts(missed: dict[str, float], tmp_path: Path) -> None:
    assert verdict(tmp_path / "c", **missed) == Verdict.CONTRADICTED


def test_a_goal_that_an_interval_leaves_open_is_undecided(tmp_path: Path) -> None:
    assert verdict(tmp_path / "c", rate=110.0) == Verdict.UNDECIDED


def test_stock_under_another_load_is_no_base(tmp_path: Path) -> None:
    served(tmp_path / "c", "stock", STOCK, experiment__policy="stock")
    long = {"experiment__output_tokens": [128, 384]}
    served(tmp_path / "c", "bounded", BETTER, experiment__policy="disable", **BOUND, **long)
    assert decided("bounded-steps", dataset.load(tmp_path / "c"))["verdict"] == Verdict.NOT_MEASURED


def test_one_case_that_meets_them_is_enough(tmp_path: Path) -> None:
    served(tmp_path / "c", "slow", BETTER | {"gap_ms": 12}, experiment__policy="stock", **BOUND)
    assert verdict(tmp_path / "c") == Verdict.REPRODUCED


def test_a_policy_without_a_bound_is_no_case(tmp_path: Path) -> None:
    served(tmp_path / "c", "stock", STOCK, experiment__policy="stock")
    served(tmp_path / "c", "alone", BETTER, experiment__policy="disable")
    assert decided("bounded-steps", dataset.load(tmp_path / "c"))["verdict"] == Verdict.NOT_MEASURED


def test_a_policy_without_a_bound_is_no_base(tmp_path: Path) -> None:
    served(tmp_path / "c", "alone", BETTER, experiment__policy="disable")
    assert verdict(tmp_path / "c") == Verdict.REPRODUCED
