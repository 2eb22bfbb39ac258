"""Each serving policy on a real collector, and the hooks of vLLM's processes that apply it."""

from __future__ import annotations

import asyncio
import functools
import gc
import sys
import types
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.observers import OBSERVERS, observe
from repro import policy
from repro.plugin import apply_policy, engine_frontend_hooks, step_hooks, worker_hooks
from repro.plugin.apply_policy import Moments
from repro.plugin.rpc import CENSUS_RPC, END_RPC
from repro.policy import RAISED, SERVING


@pytest.fixture(autouse=True)
def collector_left_as_found() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.callbacks[:] = [call for call in gc.callbacks if call is not apply_policy.freeze_survivors]
    gc.set_threshold(*thresholds)
    gc.enable()
    gc.unfreeze()


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

    count = functools.partial(engine_frontend_hooks.count_garbage_here, recorder)
    for name in ("collective_rpc", "collective_rpc_async"):
        original = getattr(Client, name)
        hooked = engine_frontend_hooks.followed_at_the_end(original, count)
        monkeypatch.setattr(Client, name, hooked)
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


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    made = SimpleNamespace(s=1.0)
    monkeypatch.setattr(apply_policy.time, "monotonic_ns", lambda: int(made.s * 1e9))
    return made


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


# --- in vLLM's processes ------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    made: list[str] = []
    for name in ("collect_due", "collect_all"):
        monkeypatch.setattr(apply_policy, name, lambda name=name: made.append(name))
    monkeypatch.setattr(apply_policy, "apply", lambda serving: made.append(serving.name))
    return made


def module(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> Any:
    made = types.ModuleType(name)
    vars(made).update(content)
    monkeypatch.setitem(sys.modules, name, made)
    return made


def core_module(monkeypatch: pytest.MonkeyPatch, calls: list[str]) -> Any:
    """`vllm.v1.engine.core`, reduced to what is hooked."""

    class Executor:
        def execute_model(self, scheduler_output: object) -> None:
            calls.append("step")

    class EngineCoreProc:
        def __init__(self, work: bool = True) -> None:
            self.work = work
            self.model_executor = Executor()
            made.freeze_gc_heap()

        def has_work(self) -> bool:
            return self.work

        def _process_input_queue(self) -> None:
            calls.append("input")

    made = module(
        monkeypatch,
        "vllm.v1.engine.core",
        EngineCoreProc=EngineCoreProc,
        freeze_gc_heap=lambda: calls.append("upstream freeze"),
    )
    for parent in ("vllm", "vllm.v1", "vllm.v1.engine"):
        module(monkeypatch, parent, __version__="9.9.9")
    return made


STOCK = policy.serving("stock")


def test_the_engine_cores_freeze_becomes_the_policy(
    monkeypatch: pytest.MonkeyPatch, calls: list[str]
) -> None:
    core = core_module(monkeypatch, calls)
    engine_frontend_hooks.apply(policy.serving("freeze-again"), STOCK, role="engine")
    core.EngineCoreProc()
    assert calls == ["freeze-again"]


@pytest.mark.parametrize("role", ["worker", "other"])
def test_other_processes_are_left_alone(
    role: str, monkeypatch: pytest.MonkeyPatch, calls: list[str]
) -> None:
    core = core_module(monkeypatch, calls)
    engine_frontend_hooks.apply(policy.serving("freeze"), policy.serving("freeze"), role=role)
    core.EngineCoreProc()
    assert calls == ["upstream freeze"]


def test_the_engine_core_collects_while_workers_compute_and_when_idle(
    monkeypatch: pytest.MonkeyPatch, calls: list[str]
) -> None:
    core = core_module(monkeypatch, calls)
    engine_frontend_hooks.apply(policy.serving("between-steps"), STOCK, role="engine")
    busy = core.EngineCoreProc()
    calls.clear()
    busy._process_input_queue()
    busy._process_input_queue()
    busy.model_executor.execute_model("step")
    assert calls == ["input", "input", "step", "collect_due"]
    calls.clear()
    core.EngineCoreProc(work=False)._process_input_queue()
    assert calls == ["between-steps", "collect_all", "input"]


def front_end(monkeypatch: pytest.MonkeyPatch, calls: list[str]) -> SimpleNamespace:
    """What vLLM's front ends are made of, reduced to what is hooked."""

    class OutputProcessor:
        unfinished = True

        def process_outputs(self, outputs: str) -> str:
            return outputs

        def has_unfinished_requests(self) -> bool:
            return self.unfinished

    class SyncMPClient:
        def get_output(self) -> str:
            calls.append("wait")
            return "sync"

    class AsyncMPClient:
        async def get_output_async(self) -> str:
            calls.append("wait")
            return "async"

    class LLMEngine: ...

    class AsyncLLM: ...

    core_module(monkeypatch, calls)
    prefix = "vllm.v1.engine"
    classes = (("llm_engine", LLMEngine), ("async_llm", AsyncLLM))
    classes += (("output_processor", OutputProcessor),)  # type: ignore[assignment]
    for name, owner in classes:
        module(monkeypatch, f"{prefix}.{name}", **{owner.__name__: owner})
    clients = {"SyncMPClient": SyncMPClient, "AsyncMPClient": AsyncMPClient}
    module(monkeypatch, f"{prefix}.core_client", **clients)
    server = module(
        monkeypatch, "vllm.entrypoints.launchers.utils.server_utils", freeze_gc_heap=lambda: None
    )
    return SimpleNamespace(
        processor=OutputProcessor, engine=LLMEngine, server=server, async_engine=AsyncLLM, **clients
    )


@pytest.mark.parametrize("kind", ["engine", "async_engine"])
def test_the_front_end_gets_its_policy_with_its_engine_and_in_the_servers_place(
    kind: str, monkeypatch: pytest.MonkeyPatch, calls: list[str]
) -> None:
    vllm = front_end(monkeypatch, calls)
    engine_frontend_hooks.apply(STOCK, policy.serving("freeze"), role="frontend")
    getattr(vllm, kind)()
    assert calls == ["freeze"]
    vllm.server.freeze_gc_heap()
    assert calls == ["freeze", "freeze"]


def test_the_front_end_collects_before_it_waits(
    monkeypatch: pytest.MonkeyPatch, calls: list[str]
) -> None:
    vllm = front_end(monkeypatch, calls)
    engine_frontend_hooks.apply(STOCK, policy.serving("between-steps"), role="frontend")
    assert vllm.SyncMPClient().get_output() == "sync"
    assert asyncio.run(vllm.AsyncMPClient().get_output_async()) == "async"
    assert calls == ["collect_due", "wait"] * 2
    calls.clear()
    processor = vllm.processor()
    processor.unfinished = False
    assert processor.process_outputs("tokens") == "tokens"
    vllm.SyncMPClient().get_output()
    assert calls == ["collect_all", "wait"]


def test_a_worker_collects_behind_the_launch_of_a_step(calls: list[str]) -> None:
    worker = SimpleNamespace(execute_model=lambda output: calls.append("launch"))
    step_hooks.act_after_launch(worker, Moments(policy.serving("between-steps")))
    worker.execute_model(SimpleNamespace(total_num_scheduled_tokens=7))
    worker.execute_model(SimpleNamespace(total_num_scheduled_tokens=0))
    assert calls == ["launch", "collect_due", "launch", "collect_all"]


def steps_of(role: str, monkeypatch: pytest.MonkeyPatch, name: str) -> Callable[[], object]:
    """A step of a process of vLLM's, hooked under a policy."""
    serving = policy.serving(name)
    if role == "worker":
        worker = SimpleNamespace(execute_model=lambda output: None)
        step_hooks.act_after_launch(worker, Moments(serving))
        return lambda: worker.execute_model(SimpleNamespace(total_num_scheduled_tokens=7))
    vllm = front_end(monkeypatch, [])
    if role == "frontend":
        engine_frontend_hooks.apply(STOCK, serving, role="frontend")
        return lambda: asyncio.run(vllm.AsyncMPClient().get_output_async())
    engine_frontend_hooks.apply(serving, STOCK, role="engine")
    core = sys.modules["vllm.v1.engine.core"].EngineCoreProc()
    core._process_input_queue()
    return lambda: core.model_executor.execute_model("step")


@pytest.mark.parametrize("role", ["worker", "engine", "frontend"])
@pytest.mark.parametrize(
    ("name", "act"), [("periodic-freeze", "freeze"), ("periodic-collect", "collect")]
)
def test_a_periodic_policy_acts_between_the_steps_of_every_process(
    role: str, name: str, act: str, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = steps_of(role, monkeypatch, name)
    serving, acted = policy.serving(name), []
    step()
    monkeypatch.setattr(apply_policy.gc, act, lambda *of: acted.append(clock.s))
    began = clock.s
    period = serving.freeze_every_s or serving.collect_every_s
    for after in (period - 1, period + 1, period + 2, 2 * period + 2):
        clock.s = began + after
        step()
    assert acted == [began + period + 1, began + 2 * period + 2]


def test_observers_are_exchanged_in_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each watches alone, and only the recorder's turn has its step around the worker's."""
    seen: list[str] = []

    class GCDebugger:
        def __init__(self, config: str) -> None:
            assert config == "1"

        def handle(self, phase: str, info: dict[str, int]) -> None:
            seen.append(phase)

    for name in ("vllm", "vllm.utils"):
        module(monkeypatch, name)
    content = {"GCDebugConfig": str, "GCDebugger": GCDebugger}
    module(monkeypatch, "vllm.utils.gc_utils", **content)
    written: list[int] = []
    recorder: Any = SimpleNamespace(write=lambda *event: written.append(event[0]))
    worker = SimpleNamespace()
    others = gc.callbacks[:]
    try:
        for what in OBSERVERS:
            took = observe(recorder, worker, "bare", "recorded", what, 2)  # type: ignore[arg-type]
            assert len(took) == 2
            assert min(took) > 0
            assert worker.execute_model == ("recorded" if what == "recorder" else "bare")
            assert bool(seen) == (what == "VLLM_GC_DEBUG")
            assert len(written) >= 2 * (what != "nothing")
    finally:
        gc.callbacks[:] = others
