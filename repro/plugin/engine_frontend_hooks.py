"""Where a policy meets an engine core and a front end; workers are met in `patch`.

vLLM freezes both by calling `freeze_gc_heap` by a module's own name for it: that name becomes the
policy, whether the plugin is loaded before the object is made or while it is being made. The
offline front end, which vLLM does not freeze, gets its policy when its engine stands.
"""

from __future__ import annotations

import asyncio
import functools
import sys
from typing import Any

from repro.plugin.apply_policy import collect_all, collect_due, put_in_force
from repro.plugin.census import followed_by
from repro.plugin.fault_handling import step_aside, stepping_aside
from repro.plugin.hook_points import require, vllm_module
from repro.policy import ServingPolicy


def apply(engine: ServingPolicy, frontend: ServingPolicy, *, role: str) -> None:
    """Hook the engine core and the front end, in this process and the processes it forks.

    Parameters
    ----------
    engine, frontend : ServingPolicy
    role : str
        What this process is, as `repro.plugin.recorder.identity_from_name` tells.

    Raises
    ------
    repro.plugin.hook_points.UnknownLayout
        If the installed vLLM has no such hooks.
    """
    if role in ("frontend", "engine") and not engine.leaves_alone:
        hold_engine(engine)
    if role == "frontend" and not frontend.leaves_alone:
        hold_frontend(frontend)


# --- engine core --------------------------------------------------------------------------


def hold_engine(serving: ServingPolicy) -> None:
    """Make the policy what the engine core does last when it starts."""
    core = vllm_module("vllm.v1.engine.core")
    require(core, "freeze_gc_heap", "EngineCoreProc")
    core.freeze_gc_heap = functools.partial(put_in_force, serving)
    if serving.between_steps:
        collect_in_engine(core.EngineCoreProc)


def collect_in_engine(EngineCoreProc: Any) -> None:
    """Collect while the workers have the step, and when no request is left."""
    require(EngineCoreProc, "_process_input_queue", "has_work")
    original = EngineCoreProc._process_input_queue

    @functools.wraps(original)
    def process_input_queue(core: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            collect_while_workers_compute(core.model_executor)
            if not core.has_work():
                collect_all()
        except Exception as error:
            step_aside("collecting between steps", error)
        return original(core, *args, **kwargs)

    EngineCoreProc._process_input_queue = process_input_queue


def collect_while_workers_compute(executor: Any) -> None:
    """Make what is due the first thing after a step has gone to the workers. Once an executor."""
    if "execute_model" not in vars(executor):
        executor.execute_model = followed_by(executor.execute_model, collect_due)


# --- front end ----------------------------------------------------------------------------


def hold_frontend(serving: ServingPolicy) -> None:
    """Put the policy in force when the front end's engine stands, and in the API server's place."""

    def in_force() -> None:
        for name, module in list(sys.modules.items()):
            if name.startswith("vllm.entrypoints.") and name.endswith(".server_utils"):
                vars(module)["freeze_gc_heap"] = functools.partial(put_in_force, serving)
        put_in_force(serving)

    for place, name in (("llm_engine", "LLMEngine"), ("async_llm", "AsyncLLM")):
        owner = getattr(vllm_module(f"vllm.v1.engine.{place}"), name)
        owner.__init__ = followed_by(owner.__init__, in_force)
    if serving.between_steps:
        collect_in_frontend()


def collect_in_frontend() -> None:
    """Collect when tokens have been handed out and the engine has the next ones in the making."""
    clients = vllm_module("vllm.v1.engine.core_client")
    OutputProcessor = vllm_module("vllm.v1.engine.output_processor").OutputProcessor
    require(clients, "SyncMPClient", "AsyncMPClient")
    require(OutputProcessor, "process_outputs", "has_unfinished_requests")
    waited_for = True
    process = OutputProcessor.process_outputs
    get, get_async = clients.SyncMPClient.get_output, clients.AsyncMPClient.get_output_async

    @functools.wraps(process)
    def process_outputs(processor: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal waited_for
        result = process(processor, *args, **kwargs)
        with stepping_aside("collecting between steps"):
            waited_for = processor.has_unfinished_requests()
        return result

    def moment() -> None:
        with stepping_aside("collecting between steps"):
            if waited_for:
                collect_due()
            else:
                collect_all()

    @functools.wraps(get)
    def get_output(client: Any) -> Any:
        moment()
        return get(client)

    @functools.wraps(get_async)
    async def get_output_async(client: Any) -> Any:
        await asyncio.sleep(0)  # whoever has a token waiting takes it first
        moment()
        return await get_async(client)

    OutputProcessor.process_outputs = process_outputs
    clients.SyncMPClient.get_output = get_output
    clients.AsyncMPClient.get_output_async = get_output_async
