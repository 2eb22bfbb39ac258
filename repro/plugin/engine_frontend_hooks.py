"""Hooks of the engine core and the front end; those of workers are in `worker_hooks`.

vLLM freezes both by calling `freeze_gc_heap` by a module's own name for it: that name becomes the
policy, whether the plugin is loaded before the object is made or while it is being made. The
offline front end, which vLLM does not freeze, gets its policy when its engine is made.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import sys
import time
from typing import Any

from repro.plugin import apply_policy
from repro.plugin.apply_policy import Moments
from repro.plugin.census import after_the_workers, followed_by
from repro.plugin.fault_handling import step_aside, stepping_aside
from repro.plugin.hook_points import holder
from repro.plugin.recorder import Recorder, count_garbage
from repro.plugin.rpc import END_RPC
from repro.policy import ServingPolicy

WHAT = "collecting between steps"


def apply(engine: ServingPolicy, frontend: ServingPolicy, *, role: str) -> None:
    """Hook the engine core and the front end, in this process and the processes it forks."""
    if role in ("frontend", "engine") and not engine.leaves_alone:
        hook_engine_core(engine)
    if role == "frontend" and not frontend.leaves_alone:
        hook_front_end(frontend)


# --- engine core --------------------------------------------------------------------------


def hook_engine_core(serving: ServingPolicy) -> None:
    """Apply the policy as the last thing the engine core does when it starts."""
    core = holder("vllm.v1.engine.core", "freeze_gc_heap")
    core.freeze_gc_heap = functools.partial(apply_policy.apply, serving)
    if serving.chooses_moments:
        act_in_engine_core(Moments(serving))


def act_in_engine_core(moments: Moments) -> None:
    """Act while the workers have the step, and when no request is left."""
    names = ("EngineCoreProc.has_work", "EngineCoreProc._process_input_queue")
    EngineCoreProc = holder("vllm.v1.engine.core", *names)
    original = EngineCoreProc._process_input_queue

    @functools.wraps(original)
    def process_input_queue(core: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            executor = core.model_executor
            if "execute_model" not in vars(executor):  # once per executor
                executor.execute_model = followed_by(executor.execute_model, moments.step)
            if not core.has_work():
                moments.idle()
        except Exception as error:
            step_aside(WHAT, error)
        return original(core, *args, **kwargs)

    EngineCoreProc._process_input_queue = process_input_queue


# --- front end ----------------------------------------------------------------------------


def hook_front_end(serving: ServingPolicy) -> None:
    """Apply the policy when the front end's engine is made, and where the API server freezes."""

    def apply_here() -> None:
        for name, module in list(sys.modules.items()):
            if name.startswith("vllm.entrypoints.") and name.endswith(".server_utils"):
                vars(module)["freeze_gc_heap"] = functools.partial(apply_policy.apply, serving)
        apply_policy.apply(serving)

    for module, name in (("llm_engine", "LLMEngine"), ("async_llm", "AsyncLLM")):
        owner = holder(f"vllm.v1.engine.{module}", f"{name}.__init__")
        owner.__init__ = followed_by(owner.__init__, apply_here)
    if serving.chooses_moments:
        act_in_front_end(Moments(serving))


def act_in_front_end(moments: Moments) -> None:
    """Act when tokens have been handed out and the engine has the next ones in the making."""
    clients = "vllm.v1.engine.core_client"
    Sync = holder(clients, "SyncMPClient.get_output")
    Async = holder(clients, "AsyncMPClient.get_output_async")
    names = ("OutputProcessor.process_outputs", "OutputProcessor.has_unfinished_requests")
    OutputProcessor = holder("vllm.v1.engine.output_processor", *names)
    waited_for = True
    process = OutputProcessor.process_outputs
    get, get_async = Sync.get_output, Async.get_output_async

    @functools.wraps(process)
    def process_outputs(processor: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal waited_for
        result = process(processor, *args, **kwargs)
        with stepping_aside(WHAT):
            waited_for = processor.has_unfinished_requests()
        return result

    def act() -> None:
        with stepping_aside(WHAT):
            if waited_for:
                moments.step()
            else:
                moments.idle()

    @functools.wraps(get)
    def get_output(client: Any) -> Any:
        act()
        return get(client)

    @functools.wraps(get_async)
    async def get_output_async(client: Any) -> Any:
        if moments.between_steps:  # at every message: whoever has a token waiting takes it first
            await asyncio.sleep(0)
        act()
        return await get_async(client)

    OutputProcessor.process_outputs = process_outputs
    Sync.get_output = get_output
    Async.get_output_async = get_output_async


# --- output handler of the API server -----------------------------------------------------


def bound_output_handler(bound_ms: float, recorder: Recorder) -> None:
    """Make the output handler let other tasks run once it has kept them waiting for so long.

    vLLM's handler lets them run between two chunks of a message and where its queue is empty, but
    not between two messages that are there already. For experiments alone. A bound of 0 is after
    every message. The recording's header gets the bound, and how often the handler yielded.
    """
    AsyncMPClient = holder("vllm.v1.engine.core_client", "AsyncMPClient.get_output_async")
    original, turn = AsyncMPClient.get_output_async, Turn(bound_ms)
    yields = 0
    recorder.note(output_yield_ms=bound_ms, output_yields=yields)

    @functools.wraps(original)
    async def get_output_async(client: Any) -> Any:
        nonlocal yields
        if turn.is_over():
            yields += 1
            if yields & (yields - 1) == 0:  # a power of two: rarely, since it writes the header
                recorder.note(output_yields=yields)
            await asyncio.sleep(0)
        message = await original(client)
        turn.extend()
        return message

    AsyncMPClient.get_output_async = get_output_async


class Turn:
    """The time that the output handler has had the event loop without a pause."""

    def __init__(self, bound_ms: float) -> None:
        self.bound_ns = int(bound_ms * 1e6)
        self.open = False
        self.start_ns = 0

    def extend(self) -> None:
        """The handler has a message. The loop closes the turn when other tasks run."""
        if not self.open:
            self.open, self.start_ns = True, time.monotonic_ns()
            asyncio.get_running_loop().call_soon(self.close)

    def close(self) -> None:
        """Other tasks run."""
        self.open = False

    def is_over(self) -> bool:
        """Whether other tasks have waited for as long as they may."""
        return self.open and time.monotonic_ns() - self.start_ns >= self.bound_ns


# --- end of an experiment -----------------------------------------------------------------


def count_garbage_at_the_end(recorder: Recorder, role: str) -> None:
    """Count what engine core and front end never reclaimed, when the workers count theirs."""
    after_the_workers(END_RPC, lambda _: count_garbage_here(recorder), role=role)


def count_garbage_here(recorder: Recorder) -> None:
    """Count garbage made since the freeze, then what the freeze had kept; leave the heap as it was.

    Not where the worker lives inside the engine core: there it has counted already.
    """
    if recorder.about.get("worker_inside"):
        return
    frozen = gc.get_freeze_count() > len(gc.get_objects())
    recorder.census("ended", **count_garbage())
    gc.unfreeze()
    recorder.census("ended-thawed", **count_garbage())
    if frozen:
        gc.freeze()
