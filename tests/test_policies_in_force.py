"""Each serving policy on a real collector."""

from __future__ import annotations

import asyncio
import gc
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from repro import policy
from repro.plugin import apply_policy, engine_frontend_hooks, worker_hooks
from repro.plugin.apply_policy import Moments
from repro.plugin.census import answered
from repro.plugin.rpc import CENSUS_RPC, END_RPC
from repro.policy import RAISED, SERVING

pytestmark = pytest.mark.usefixtures("collector_left_as_found")


class Loop:
    """An object that only the collector can free, once nothing else reaches it."""

    def __init__(self) -> None:
        self.itself = self


def loops(number: int) -> list[Loop]:
    return [Loop() for _ in range(number)]


@pytest.mark.parametrize("name", SERVING)
def test_each_policy_leaves_the_collector_as_it_says(name: str) -> None:
    before, before_thresholds = gc.get_freeze_count(), gc.get_threshold()
    serving = policy.serving(name)
    apply_policy.apply(serving)
    assert gc.isenabled() == serving.automatic
    assert gc.get_threshold() == serving.thresholds_over(before_thresholds)
    assert (gc.get_freeze_count() > before) == bool(serving.freeze)
    apply_policy.undo(serving)
    assert gc.get_freeze_count() == (0 if serving.freeze else before)


def test_raised_thresholds_are_the_ones_of_the_policy() -> None:
    apply_policy.apply(policy.serving("freeze-thresholds"))
    assert gc.get_threshold() == RAISED


def test_freeze_again_hides_what_a_full_collection_left_alive() -> None:
    serving = policy.serving("freeze-again")
    apply_policy.apply(serving)
    apply_policy.apply(serving)
    assert gc.callbacks.count(apply_policy.freeze_survivors) == 1, "twice in force, once at work"
    kept = loops(5_000)
    young = gc.get_freeze_count()
    gc.collect(1)
    assert gc.get_freeze_count() <= young
    gc.collect()
    assert gc.get_freeze_count() >= young + len(kept)
    apply_policy.undo(serving)
    gc.collect()
    assert gc.get_freeze_count() == 0, "nothing is frozen again after shutdown began"


def test_what_was_never_reclaimed_is_counted_once() -> None:
    """Asked for, or in the shutdown that follows: by when it was made, and with its size."""
    counted: list[tuple[str, dict[str, int]]] = []
    recorder: Any = SimpleNamespace(
        strict=True, census=lambda point, **garbage: counted.append((point, garbage))
    )
    worker: Any = SimpleNamespace(shutdown=lambda: counted.append(("down", {})))
    worker_hooks.wrap_shutdown(worker, policy.serving("freeze"), recorder)
    gc.disable()
    gc.collect()
    loops(300)
    gc.freeze()
    loops(200)
    getattr(worker, END_RPC)()
    worker.shutdown()
    assert [point for point, _ in counted] == ["shutdown", "thawed", "down"]
    since, kept = (garbage for _, garbage in counted[:2])
    assert 200 <= since["garbage"] < 300
    assert kept["garbage"] >= 300
    assert since["garbage_bytes"] >= 200 * sys.getsizeof(Loop())


@pytest.mark.parametrize(("frozen", "inside"), [(True, False), (False, False), (True, True)])
def test_engine_core_and_front_end_count_their_garbage_with_the_workers(
    frozen: bool, inside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the workers, and the heap is as frozen as it was. A worker inside has counted."""
    counted: list[tuple[str, int]] = []
    recorder: Any = SimpleNamespace(
        census=lambda point, garbage, **more: counted.append((point, garbage)),
        about={"worker_inside": inside},
    )

    class Client:
        def collective_rpc(self, method: str, timeout: object = None) -> str:
            assert not counted
            return method

        async def collective_rpc_async(self, method: str) -> str:
            assert not counted
            return method

    def count(_: object) -> None:
        engine_frontend_hooks.count_garbage_here(recorder)

    for name in ("collective_rpc", "collective_rpc_async"):
        original = getattr(Client, name)
        monkeypatch.setattr(Client, name, answered(original, END_RPC, count))
    assert Client().collective_rpc(CENSUS_RPC) == CENSUS_RPC
    assert asyncio.run(Client().collective_rpc_async(CENSUS_RPC)) == CENSUS_RPC
    assert not counted
    gc.disable()
    gc.collect()
    loops(300)
    if frozen:
        gc.freeze()
    loops(200)
    before = gc.get_freeze_count() > len(gc.get_objects())
    Client().collective_rpc(END_RPC)
    assert (gc.get_freeze_count() > len(gc.get_objects())) == before == frozen
    if inside:
        assert not counted
        return
    (_, since), (_, kept) = counted
    assert [point for point, _ in counted] == ["ended", "ended-thawed"]
    assert (since >= 200, kept >= 300) == (True, frozen)
    counted.clear()
    asyncio.run(Client().collective_rpc_async(END_RPC))
    assert len(counted) == 2


def test_what_is_due_is_collected_and_nothing_else() -> None:
    gc.disable()
    gc.collect()
    collections = gc.get_stats()[0]["collections"]
    apply_policy.collect_due()
    assert gc.get_stats()[0]["collections"] == collections, "nothing was due"
    kept = loops(gc.get_threshold()[0] + 50)
    apply_policy.collect_due()
    assert gc.get_stats()[0]["collections"] == collections + 1
    del kept
    gc.collect()
    for _ in range(gc.get_threshold()[1] + 1):
        gc.collect(0)
    older = gc.get_stats()[1]["collections"]
    apply_policy.collect_due()
    assert gc.get_stats()[1]["collections"] == older + 1


def test_idleness_makes_one_full_collection_not_one_a_look() -> None:
    gc.disable()
    gc.collect()
    full = gc.get_stats()[2]["collections"]
    apply_policy.collect_all()
    assert gc.get_stats()[2]["collections"] == full, "nothing had grown old"
    gc.collect(1)
    apply_policy.collect_all()
    apply_policy.collect_all()
    assert gc.get_stats()[2]["collections"] == full + 1


def test_a_threshold_is_raised_alone() -> None:
    own = gc.get_threshold()
    apply_policy.apply(policy.serving("rare-full"))
    assert gc.get_threshold() == (own[0], own[1], 100_000)
    gc.set_threshold(*own)
    apply_policy.apply(policy.serving("threshold-20k"))
    assert gc.get_threshold() == (20_000, own[1], own[2])


def test_no_full_collection_comes_where_a_policy_rules_it_out() -> None:
    """Churn that makes full collections under Python's own thresholds makes none."""
    for name in ("no-freeze", "rare-full", "periodic-freeze", "periodic-collect"):
        gc.set_threshold(700, 10, 10)
        apply_policy.apply(policy.serving(name))
        full, kept = gc.get_stats()[2]["collections"], []
        for _ in range(400):
            kept.append(loops(2_000))
            del kept[:-20]
        made = gc.get_stats()[2]["collections"] - full
        assert (made > 0) == (name == "no-freeze"), name
        gc.enable()


@pytest.mark.parametrize("moment", ["step", "idle"])
def test_a_periodic_freeze_comes_at_the_first_moment_after_its_period(
    moment: str, clock: SimpleNamespace
) -> None:
    serving = policy.serving("periodic-freeze")
    apply_policy.apply(serving)
    act = getattr(Moments(serving), moment)
    gc.disable()
    act()
    kept, frozen = loops(5_000), gc.get_freeze_count()
    clock.s += 59
    act()
    assert gc.get_freeze_count() <= frozen
    clock.s += 2
    act()
    assert gc.get_freeze_count() >= frozen + len(kept)
    frozen = gc.get_freeze_count()
    kept += loops(5_000)
    act()
    assert gc.get_freeze_count() <= frozen, "once per period"


def test_a_periodic_collection_is_full_and_the_only_one(clock: SimpleNamespace) -> None:
    serving = policy.serving("periodic-collect")
    apply_policy.apply(serving)
    moments = Moments(serving)
    moments.step()
    loops(5_000)
    before = gc.get_stats()[2]
    clock.s += 599
    moments.step()
    assert gc.get_stats()[2] == before
    clock.s += 2
    moments.step()
    moments.step()
    after = gc.get_stats()[2]
    assert after["collections"] == before["collections"] + 1
    assert after["collected"] >= before["collected"] + 5_000
