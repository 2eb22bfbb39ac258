"""The arms of a campaign, and which two of them differ in the worker's freeze alone."""

from __future__ import annotations

from pathlib import Path

from builders import run

from repro import dataset
from repro.analysis.arms import pairs


def test_a_pair_differs_in_the_policy_of_no_process_but_the_worker(tmp_path: Path) -> None:
    for worker in ("freeze", "no-freeze"):
        for engine in ("freeze", "no-freeze"):
            about = {"experiment__policy": worker, "experiment__engine_policy": engine}
            run(tmp_path, f"{worker}-{engine}", **about)
    found = pairs(dataset.load(tmp_path))
    assert [(pair.baseline, pair.treated) for pair in found] == [
        ("engine freeze, front end stock: no-freeze", "worker and engine freeze"),
        ("worker and engine no-freeze", "engine no-freeze, front end stock: freeze"),
    ]


def test_the_same_policy_in_every_process_is_no_pair(tmp_path: Path) -> None:
    for name in ("freeze", "no-freeze"):
        everywhere = dict.fromkeys(("engine_policy", "frontend_policy", "policy"), name)
        run(tmp_path, name, **{f"experiment__{key}": value for key, value in everywhere.items()})
    assert pairs(dataset.load(tmp_path)) == []
