"""A run that did not do what it was meant to is not data."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

from repro.experiment import verify
from repro.experiment.config import Experiment
from repro.experiment.verify import NotAsRequested
from repro.recording import EVENT, Recording


def worker(**fields: Any) -> dict[str, Any]:
    usual = {"rank": 0, "policy": "freeze", "freeze_count_before": 375, "freeze_count": 800_000}
    usual |= {"frozen": 800_000, "tracked": 12_000, "enabled": True}
    usual |= {f"threshold_{g}": limit for g, limit in enumerate(gc.get_threshold())}
    return {**usual, **fields}


def check(name: str, *workers: dict[str, Any], executor: str = "mp") -> None:
    verify.policy_took_effect(Experiment(policy=name, executor=executor), workers)


def test_what_each_policy_leaves_is_accepted() -> None:
    check("freeze", worker())
    check("no-freeze", worker(policy="no-freeze", freeze_count=375, frozen=375))
    check("stock", worker(policy="stock"))
    check("stock", worker(policy="stock", freeze_count=0, frozen=0))


def test_another_executor_than_asked_fails_the_run() -> None:
    verify.executor_is("mp", "mp")
    with pytest.raises(NotAsRequested, match="'uni' asked for, vLLM took 'mp'"):
        verify.executor_is("uni", "mp")


def test_with_uni_the_engine_core_freezes_the_shared_process() -> None:
    check("no-freeze", worker(policy="no-freeze", freeze_count=375), executor="uni")


@pytest.mark.parametrize(
    ("name", "workers", "named"),
    [
        ("freeze", [], "0 of 1 workers"),
        ("freeze", [worker(policy="stock")], "policy 'stock' instead of 'freeze'"),
        ("freeze", [worker(freeze_count=375)], "left most of the heap unfrozen"),
        ("freeze", [worker(frozen=0)], "left most of the heap unfrozen"),
        ("freeze", [worker(enabled=False)], "collector off"),
        ("freeze", [worker(threshold_0=50_000)], "thresholds .50000"),
        ("no-freeze", [worker(policy="no-freeze")], "799625 objects were frozen"),
    ],
)
def test_a_policy_without_effect_fails_the_run(
    name: str, workers: list[dict[str, Any]], named: str
) -> None:
    with pytest.raises(NotAsRequested, match=named):
        check(name, *workers)


def steps(tokens: list[int]) -> dict[str, Any]:
    return {"start_ns": np.arange(len(tokens)) * 10, "tokens": np.array(tokens)}


def test_an_engine_short_of_requests_fails_the_run() -> None:
    asked = Experiment(concurrency=1000)
    verify.engine_was_loaded(asked, steps([10, 10, 990, 990, 990]), 20, 50)
    with pytest.raises(NotAsRequested, match=r"held 522 tokens with 1000 requests.*bottleneck"):
        verify.engine_was_loaded(asked, steps([522] * 5), 0, 50)
    with pytest.raises(NotAsRequested):
        verify.engine_was_loaded(asked, steps([]), 0, 50)


def recordings(*roles: str, complete: bool = True) -> list[Recording]:
    events = np.zeros(1, EVENT)
    return [Recording(role=r, rank=0, pid=1, complete=complete, events=events) for r in roles]


def test_every_process_must_have_been_recorded() -> None:
    verify.recording_is_whole(Experiment(), recordings("frontend", "engine", "worker"))
    verify.recording_is_whole(Experiment(executor="uni"), recordings("frontend", "engine"))
    with pytest.raises(NotAsRequested, match="no events of the worker"):
        verify.recording_is_whole(Experiment(), recordings("frontend", "engine"))
    with pytest.raises(NotAsRequested, match="stopped early"):
        verify.recording_is_whole(
            Experiment(), recordings("frontend", "engine", "worker", complete=False)
        )


CAPTURES = {
    "kind": np.array(["capture"]),
    "start_ns": np.array([100]),
    "duration_ns": np.array([100]),
    "graphs": np.array([3]),
}


def pauses(starts: list[int], generations: list[int]) -> dict[str, Any]:
    roles = np.array(["worker"] * len(starts), dtype=object)
    return {
        "role": roles,
        "start_ns": np.array(starts, int),
        "generation": np.array(generations, int),
    }


def test_a_capture_policy_is_judged_by_the_collections_inside() -> None:
    per_graph = Experiment(capture_policy="collect-per-graph")
    verify.capture_policy_took_effect(per_graph, CAPTURES, pauses([110, 120, 130], [2, 2, 2]))
    with pytest.raises(NotAsRequested, match="2 full collections, 3 graphs"):
        verify.capture_policy_took_effect(per_graph, CAPTURES, pauses([110, 120, 250], [2, 2, 2]))
    disabled = Experiment(capture_policy="frozen-disabled")
    verify.capture_policy_took_effect(disabled, CAPTURES, pauses([110, 190], [2, 2]))
    with pytest.raises(NotAsRequested, match="by itself"):
        verify.capture_policy_took_effect(disabled, CAPTURES, pauses([150], [0]))


def test_a_capture_policy_without_a_capture_fails_the_run() -> None:
    with pytest.raises(NotAsRequested, match="no CUDA graph was captured"):
        verify.capture_policy_took_effect(Experiment(capture_policy="frozen"), {}, pauses([], []))
