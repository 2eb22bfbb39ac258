"""The hooks of vLLM's processes that apply the serving policies."""

from __future__ import annotations

import asyncio
import sys
import types
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from repro import policy
from repro.plugin import apply_policy, engine_frontend_hooks, step_hooks
from repro.plugin.apply_policy import Moments

pytestmark = pytest.mark.usefixtures("collector_left_as_found")


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
    """Parts of vLLM's front ends, reduced to those that are hooked."""

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


@pytest.mark.parametrize(("name", "yields"), [("between-steps", True), ("periodic-freeze", False)])
def test_only_a_collection_at_every_message_lets_other_tasks_go_first(
    name: str, yields: bool, monkeypatch: pytest.MonkeyPatch, calls: list[str]
) -> None:
    """Else the policy would be one of the output handler too, whose yields shorten P99."""
    vllm = front_end(monkeypatch, calls)
    engine_frontend_hooks.apply(STOCK, policy.serving(name), role="frontend")

    async def beside_another_task() -> None:
        asyncio.get_running_loop().call_soon(calls.append, "soon")
        await vllm.AsyncMPClient().get_output_async()

    asyncio.run(beside_another_task())
    assert ("soon" in calls[: calls.index("wait")]) is yields


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
