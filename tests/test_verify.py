"""A run that did not do what it was meant to is not data."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

from repro import policy
from repro.dataset.recording import EVENT, Recording
from repro.dataset.schema import ROLES
from repro.experiment import verify
from repro.experiment.config import Experiment
from repro.experiment.verify import NotAsRequested
from repro.policy import RAISED


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
        ("between-steps", [worker(policy="between-steps")], "collector on"),
        ("freeze-again", [worker(policy="freeze-again", frozen=0)], "left most of the heap"),
        ("no-freeze", [worker(policy="no-freeze")], "799625 objects were frozen"),
    ],
)
def test_a_policy_without_effect_fails_the_run(
    name: str, workers: list[dict[str, Any]], named: str
) -> None:
    with pytest.raises(NotAsRequested, match=named):
        check(name, *workers)


def census(role: str, **fields: Any) -> dict[str, Any]:
    """Front end and engine core as their policies `freeze` and `stock` leave them, one changed."""
    usual = {"frozen": 600_000, "tracked": 10, "enabled": True, "point": "window-start"}
    usual |= {"rank": 0, "t_ns": 0, "collections_2": 5, "acted": 0}
    usual |= {f"threshold_{g}": limit for g, limit in enumerate(gc.get_threshold())}
    rows = [usual | {"role": each} | (fields if each == role else {}) for each in ROLES]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def test_front_end_and_engine_core_must_follow_their_policies() -> None:
    usual = Experiment(policy="no-freeze")
    verify.processes_follow(usual, census(""))
    verify.processes_follow(usual, census("engine", frozen=0, tracked=600_000))  # as it comes
    raised = {f"threshold_{g}": limit for g, limit in enumerate(RAISED)}
    verify.processes_follow(
        Experiment(engine_policy="freeze-thresholds"), census("engine", **raised)
    )
    verify.processes_follow(
        Experiment(engine_policy="disable"), census("engine", frozen=0, tracked=9, enabled=False)
    )


@pytest.mark.parametrize(
    ("asked", "role", "fields", "named"),
    [
        ({}, "frontend", {"frozen": 5, "tracked": 9}, "frontend: policy 'freeze', yet 5 objects"),
        ({}, "frontend", {"point": "other"}, "frontend: policy 'freeze', yet its heap was not"),
        ({"frontend_policy": "no-freeze"}, "", {}, "frontend: policy 'no-freeze', yet 600000"),
        ({"engine_policy": "thresholds"}, "engine", {"frozen": 0}, r"wants it on with \(20000,"),
        ({"engine_policy": "disable"}, "engine", {"frozen": 0}, "engine: collector on"),
        ({}, "engine", {"enabled": False}, "engine: collector off"),
    ],
)
def test_a_process_that_does_not_fails_the_run(
    asked: dict[str, str], role: str, fields: dict[str, Any], named: str
) -> None:
    with pytest.raises(NotAsRequested, match=named):
        verify.processes_follow(Experiment(**asked), census(role, **fields))


def from_start_to_end(role: str, seconds: float, **changes: Any) -> dict[str, Any]:
    """The census at the window's start and its end, the counts of one role changed by then."""
    limits = {f"threshold_{g}": limit for g, limit in enumerate(gc.get_threshold())}
    usual = {"role": role, "rank": 0, "enabled": False, "tracked": 10, "frozen": 600_000}
    usual |= {"acted": 0, **limits}
    start = (
        usual | {"point": "window-start", "t_ns": 0, "collections_2": 5} | changes.pop("both", {})
    )
    end = start | {"point": "window-end", "t_ns": int(seconds * 1e9)}
    end |= {name: start[name] + more for name, more in changes.items()}
    other = {**start, "role": "frontend", "frozen": 600_000, "enabled": True, **limits}
    rows = [start, end, other]
    return {name: np.array([row[name] for row in rows]) for name in start}


PERIODIC = {"both": {"enabled": True, "threshold_2": policy.NEVER}}


@pytest.mark.parametrize(
    ("name", "seconds", "changes"),
    [
        ("disable", 60, {}),
        ("periodic-collect", 60, {"collections_2": 1}),
        ("periodic-collect", 1300, {"collections_2": 3}),
        ("periodic-freeze", 70, {**PERIODIC, "frozen": -900, "acted": 1}),
        ("periodic-freeze", 50, PERIODIC),
    ],
)
def test_what_a_policy_does_by_hand_is_accepted(
    name: str, seconds: float, changes: dict[str, Any]
) -> None:
    verify.processes_follow(
        Experiment(policy=name), from_start_to_end("worker", seconds, **changes)
    )


@pytest.mark.parametrize(
    ("name", "seconds", "changes", "named"),
    [
        ("disable", 60, {"collections_2": 1}, "worker 0: policy 'disable', yet 1 full"),
        ("periodic-collect", 60, {"collections_2": 2}, "'periodic-collect', yet 2 full"),
        ("periodic-freeze", 70, {**PERIODIC, "collections_2": 1, "acted": 1}, "yet 1 full"),
        ("periodic-freeze", 70, {**PERIODIC, "frozen": 9}, "yet nothing was frozen"),
        ("periodic-collect", 700, {"acted": 1}, "'periodic-collect', yet no full collection"),
    ],
)
def test_a_policy_that_does_not_act_fails_the_run(
    name: str, seconds: float, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(NotAsRequested, match=named):
        verify.processes_follow(
            Experiment(policy=name), from_start_to_end("worker", seconds, **changes)
        )


def steps(*tokens: list[int]) -> dict[str, Any]:
    """One list of tokens a step for each rank."""
    lengths = [len(own) for own in tokens]
    return {
        "rank": np.repeat(np.arange(len(tokens)), lengths),
        "start_ns": np.concatenate([np.arange(length) * 10 for length in lengths]),
        "tokens": np.concatenate([np.array(own, int) for own in tokens]),
    }


def test_an_engine_short_of_requests_fails_the_run() -> None:
    asked = Experiment(concurrency=1000)
    verify.engine_was_loaded(asked, steps([10, 10, 990, 990, 990]), 20, 50)
    with pytest.raises(
        NotAsRequested, match=r"rank 0.* held 522 tokens with 1000 requests.*bottleneck"
    ):
        verify.engine_was_loaded(asked, steps([522] * 5), 0, 50)
    with pytest.raises(NotAsRequested):
        verify.engine_was_loaded(asked, steps([]), 0, 50)


def test_each_rank_must_have_its_load() -> None:
    asked = Experiment(client="async_engine", data_parallel_size=2, concurrency=100)
    verify.engine_was_loaded(asked, steps([99] * 5, [95] * 5), 0, 50)
    with pytest.raises(NotAsRequested, match=r"rank 1: the median step held 60 tokens"):
        verify.engine_was_loaded(asked, steps([99] * 5, [60] * 5), 0, 50)
    with pytest.raises(NotAsRequested, match=r"rank 1: the median step held 0 tokens"):
        verify.engine_was_loaded(asked, steps([99] * 5), 0, 50)


def test_each_rank_must_answer_for_its_policy() -> None:
    asked = Experiment(
        client="async_engine", data_parallel_size=2, tensor_parallel_size=2, policy="freeze"
    )
    four = [worker(rank=rank) for rank in (2, 0, 3, 1)]
    verify.policy_took_effect(asked, four)
    with pytest.raises(NotAsRequested, match=r"3 of 4 workers answered the census"):
        verify.policy_took_effect(asked, four[:3])
    with pytest.raises(NotAsRequested, match=r"4 of 4 .* as ranks \[0, 0, 1, 3\]"):
        verify.policy_took_effect(asked, [worker(rank=rank) for rank in (0, 0, 1, 3)])
    with pytest.raises(NotAsRequested, match=r"worker 3: policy 'freeze' left most"):
        verify.policy_took_effect(asked, [*four[:2], four[3], worker(rank=3, frozen=0)])


def recordings(*roles: str, complete: bool = True, rank: int = 0, **about: Any) -> list[Recording]:
    shared = {"rank": rank, "pid": 1, "opened_ns": 1, "launch_ns": 1, "events": np.zeros(1, EVENT)}
    return [Recording(role=role, complete=complete, about=about, **shared) for role in roles]


@pytest.mark.parametrize(
    ("asked", "said", "named"),
    [
        ({}, {}, ""),
        ({}, {"output_yield_ms": 5.0, "output_yields": 2}, "after 5 ms, asked for no ms"),
        ({"output_yield_ms": 5.0}, {}, "after no ms, asked for 5 ms"),
        ({"output_yield_ms": 5.0}, {"output_yield_ms": 5.0, "output_yields": 0}, ""),
        ({"output_handler": "fair"}, {"output_yield_ms": 0.0, "output_yields": 64}, ""),
        ({"output_handler": "fair"}, {"output_yield_ms": 0.0, "output_yields": 0}, "never yielded"),
    ],
)
def test_the_output_handler_is_the_one_asked_for(
    asked: dict[str, Any], said: dict[str, Any], named: str
) -> None:
    experiment = Experiment(client="serve", **asked)
    found = recordings("engine", "frontend", **said)
    if not named:
        assert verify.output_handler_is(experiment, found) == said
        return
    with pytest.raises(NotAsRequested, match=named):
        verify.output_handler_is(experiment, found)


def test_every_process_must_have_been_recorded() -> None:
    verify.recording_is_whole(Experiment(), recordings("frontend", "engine", "worker"))
    verify.recording_is_whole(Experiment(executor="uni"), recordings("frontend", "engine"))
    with pytest.raises(NotAsRequested, match="no events of these processes: worker 0;"):
        verify.recording_is_whole(Experiment(), recordings("frontend", "engine"))
    with pytest.raises(NotAsRequested, match="stopped early"):
        verify.recording_is_whole(
            Experiment(), recordings("frontend", "engine", "worker", complete=False)
        )


def test_every_rank_must_have_been_recorded() -> None:
    asked = Experiment(client="async_engine", data_parallel_size=2)
    all_of_them = recordings("frontend", "engine", "worker")
    verify.recording_is_whole(asked, all_of_them + recordings("engine", "worker", rank=1))
    with pytest.raises(NotAsRequested, match="no events of these processes: engine 1, worker 1;"):
        verify.recording_is_whole(asked, all_of_them)


WORKERS = [{"rank": 0, "freeze_count_before": 375, "capture_sizes": 3}]


def captures(*names: str, graphs: tuple[int, ...] = ()) -> dict[str, Any]:
    """Captures of 100 ns, each 1,000 ns after the one before, from 100 on."""
    return {
        "rank": np.zeros(len(names), int),
        "kind": np.array(["capture"] * len(names)),
        "capture_policy": np.array(names),
        "number": np.arange(len(names)),
        "start_ns": 100 + 1000 * np.arange(len(names)),
        "duration_ns": np.full(len(names), 100),
        "graphs": np.array(graphs or (9,) * len(names)),
    }


def pauses(starts: list[int], generations: list[int], role: str = "worker") -> dict[str, Any]:
    return {
        "role": np.array([role] * len(starts), dtype=object),
        "rank": np.zeros(len(starts), int),
        "start_ns": np.array(starts, int),
        "generation": np.array(generations, int),
    }


def judge(made: dict[str, Any], inside: dict[str, Any], executor: str = "mp") -> None:
    asked = Experiment(executor=executor)
    verify.capture_policies_took_effect(asked, made, inside, WORKERS)


def test_each_capture_is_judged_by_the_collections_inside_it() -> None:
    """Three batch sizes: three full collections, however many graphs there are."""
    made = captures("gc-on", "collect-per-graph")
    judge(made, pauses([1110, 1120, 1130], [2, 2, 2]))
    for short in (pauses([110, 120, 130], [2, 2, 2]), pauses([1110, 1120, 1201], [2, 2, 2])):
        with pytest.raises(NotAsRequested, match="full collections, 3 batch sizes"):
            judge(made, short)
    elsewhere = pauses([1110, 1120, 1130], [2, 2, 2], role="engine")
    judge(made, elsewhere, executor="uni")
    with pytest.raises(NotAsRequested, match="0 full collections"):
        judge(made, elsewhere)


def test_no_automatic_collection_between_the_two_of_frozen_disabled() -> None:
    made = captures("frozen-disabled")
    judge(made, pauses([105, 110, 190, 195], [0, 2, 2, 0]))
    for generation in (0, 1):
        with pytest.raises(NotAsRequested, match="by itself"):
            judge(made, pauses([110, 150, 190], [2, generation, 2]))


AGAIN = Experiment(
    client="capture",
    policy="no-freeze",
    capture_policy="gc-on",
    recaptures=2,
    recapture_policies=("gc-on", "frozen"),
)


def test_captures_are_those_that_were_asked_for() -> None:
    asked = ("gc-on", "gc-on", "frozen", "frozen", "gc-on")
    verify.captures_are_as_planned(AGAIN, captures(*asked))
    for other in (asked[:-1], ("frozen", *asked[1:]), (*asked, "frozen")):
        with pytest.raises(NotAsRequested, match="not gc-on and then 2 times each of gc-on, froz"):
            verify.captures_are_as_planned(AGAIN, captures(*other))


def test_a_capture_that_replays_graphs_of_before_fails_the_run() -> None:
    made = captures("gc-on", "gc-on", "frozen", "frozen", "gc-on", graphs=(9, 9, 3, 9, 9))
    with pytest.raises(NotAsRequested, match="captured 3 graphs once and 9 another time"):
        verify.captures_are_as_planned(AGAIN, made)


def test_a_capture_policy_without_a_capture_fails_the_run() -> None:
    for made in ({}, captures("gc-on") | {"kind": np.array(["compile"])}):
        with pytest.raises(NotAsRequested, match="no CUDA graph was captured"):
            verify.captures_are_as_planned(Experiment(capture_policy="gc-on"), made)
    verify.captures_are_as_planned(Experiment(), {})


def test_every_capture_finds_the_heap_thawed() -> None:
    found = {"rank": 0, "capture_policy": "frozen"}
    verify.heap_is_thawed(WORKERS, [found | {"freeze_count": 375}, found | {"freeze_count": 0}])
    with pytest.raises(NotAsRequested, match="800000 objects were frozen before a capture under"):
        verify.heap_is_thawed(WORKERS, [found | {"freeze_count": 800_000}])
