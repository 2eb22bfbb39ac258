"""The cross-over: both policies in turn inside one engine, read back as one run per period."""

from __future__ import annotations

import gc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from builders import MS, SECOND, START, run

from repro import dataset
from repro.analysis.arms import pairs
from repro.analysis.tails import effect, step_intervals, tail_table
from repro.experiment import verify
from repro.experiment.clients.closed_loop import ClosedLoop
from repro.experiment.config import ConfigError, Experiment
from repro.experiment.verify import NotAsRequested
from repro.plugin import rpc, worker_hooks

ORDER = ("freeze", "no-freeze", "no-freeze", "freeze")


def crossover(root: Path, **changes: Any) -> dataset.Campaign:
    """Four periods of 10 s, 1 s apart, with gaps of 20 ms frozen and 40 ms not."""
    starts = START + 11 * SECOND * np.arange(4)
    gaps = [np.full(10 * SECOND // g, g) for g in (20 * MS, 40 * MS, 40 * MS, 20 * MS)]
    time = np.concatenate([s + np.cumsum(g) for s, g in zip(starts, gaps, strict=True)])
    gap = np.concatenate(gaps)
    run(
        root,
        "a",
        {
            "itl": {"t_ns": time - 1, "itl_ns": gap, "count": 8},
            "steps": {"start_ns": time - 1, "step": np.arange(len(time))},
            "pauses": {"start_ns": starts + 10 * SECOND + 500 * MS, "generation": [2] * 4},
            "periods": {"policy": list(ORDER), "start_ns": starts, "end_ns": starts + 10 * SECOND},
        },
        experiment__policy="alternate",
        experiment__switch_s=10.0,
        window__end_ns=int(starts[-1]) + 10 * SECOND,
        **changes,
    )
    return dataset.load(root)


def test_each_period_is_a_run_of_its_policy(tmp_path: Path) -> None:
    campaign = crossover(tmp_path)
    assert campaign.runs["run"].tolist() == [f"a/{number}" for number in range(4)]
    assert tuple(campaign.runs["policy"]) == ORDER
    assert campaign.runs["tokens_per_s"].round().tolist() == [400, 200, 200, 400]
    assert campaign.pauses.empty, "a switch's own collections belong to no period"
    assert step_intervals(campaign.steps)["interval_ns"].max() == 40 * MS, "none over a switch"


def test_its_arms_compare_like_any_two(tmp_path: Path) -> None:
    campaign = crossover(tmp_path)
    (pair,) = pairs(campaign)
    assert (pair.baseline, pair.treated) == ("no-freeze", "freeze")
    assert effect(campaign, pair.baseline, pair.treated, 0.5).value == pytest.approx(0.5)
    assert set(tail_table(campaign)["runs"]) == {2}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"policy": "freeze", "switch_s": 5.0}, "only policy 'alternate' switches"),
        ({"policy": "alternate"}, "even number of periods"),
        ({"policy": "alternate", "switch_s": 20.0}, "even number of periods"),
        ({"policy": "alternate", "switch_s": 30.0, "client": "serve"}, "needs client 'engine'"),
    ],
)
def test_what_cannot_alternate_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Experiment(duration_s=60.0, **fields)
    assert Experiment(policy="alternate", duration_s=60.0, switch_s=15.0).switch_s == 15


class Engine:
    """Stands for vLLM in a test of the order of calls alone."""

    def __init__(self) -> None:
        self.calls: list[bool] = []
        self.model_config = SimpleNamespace(get_vocab_size=lambda: 512)

    def collective_rpc(self, method: str, args: tuple[bool]) -> list[tuple[int, int]]:
        assert method == rpc.SWITCH_RPC
        self.calls.append(*args)
        return [(900_000, 0) if args[0] else (375, 899_625)]

    def step(self) -> list[Any]:
        return []


def test_both_policies_come_equally_often_and_the_heap_is_left_thawed() -> None:
    engine = Engine()
    experiment = Experiment(policy="alternate", duration_s=1.5, switch_s=0.125)
    loop = ClosedLoop(engine, experiment, lambda phase, seconds: None)
    loop._alternate()
    assert engine.calls[-1] is False
    pairs_of_periods = [set(engine.calls[i : i + 2]) for i in range(0, 12, 2)]
    assert pairs_of_periods == [{True, False}] * 6
    assert len(set(map(tuple, np.reshape(engine.calls[:12], (6, 2))))) == 2, "in random order"
    names = [name for name, *_ in loop.ledger.arrivals.periods]
    assert [name == "freeze" for name in names] == engine.calls[:-1]
    starts = [start for _, start, _ in loop.ledger.arrivals.periods]
    ends = [end for *_, end in loop.ledger.arrivals.periods]
    assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))


def test_a_switch_that_did_not_reach_the_heap_is_no_data() -> None:
    frozen, thawed, thawed_312 = (800_000, 9), (0, 800_009), (375, 799_634)
    verify.switched(True, [frozen])
    verify.switched(False, [thawed, thawed_312])
    wrong = [(True, [thawed]), (True, [frozen, thawed_312]), (False, [frozen]), (True, [])]
    for freeze, heaps in wrong:
        with pytest.raises(NotAsRequested, match="objects frozen"):
            verify.switched(freeze, heaps)


def test_a_switch_collects_everything_and_then_freezes_or_does_not() -> None:
    try:
        for _ in range(2):
            frozen, tracked = worker_hooks.switch(True)
            assert frozen > 10_000 > tracked
        before = gc.get_stats()[2]["collections"]
        frozen, tracked = worker_hooks.switch(False)
        assert frozen < 1_000 and tracked > 10_000
        assert gc.get_stats()[2]["collections"] == before + 1
    finally:
        gc.unfreeze()
