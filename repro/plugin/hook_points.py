"""Every name in vLLM that this package replaces, wraps or depends on: one list.

The patches take what they patch from here, and `repro doctor` looks for all of it in the
installed vLLM. To hook something else, add it to `HOOK_POINTS`.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from repro.releases import READ


@dataclass(frozen=True)
class HookPoint:
    """One name in vLLM."""

    module: str
    name: str  # may be that of a class, a dot, and what the class has
    use: str  # why this package needs it
    first: str = READ[0]  # release it was first seen in, of those in `READ`


_CORE, _CLIENTS = "vllm.v1.engine.core", "vllm.v1.engine.core_client"
_OUTPUTS, _WORKER = "vllm.v1.engine.output_processor", "vllm.v1.worker.gpu_worker"
_V1_RUNNER, _V2_RUNNER = "vllm.v1.worker.gpu_model_runner", "vllm.v1.worker.gpu.model_runner"
_GRAPHS = "vllm.compilation.cuda_graph"
_BREAKABLE = "vllm.compilation.breakable_cudagraph"
_COLLECTIVES = "vllm.distributed.device_communicators.cpu_communicator"

HOOK_POINTS = (
    HookPoint("vllm.v1.worker.worker_base", "WorkerWrapperBase.init_device", "meet each worker"),
    HookPoint("vllm.v1.worker.worker_base", "WorkerWrapperBase.execute_model", "stacks of steps"),
    HookPoint("vllm.v1.executor.abstract", "Executor.__init__", "meet each engine core"),
    HookPoint("vllm.utils.gc_utils", "freeze_gc_heap", "the pull request's freeze"),
    HookPoint("vllm.utils.gc_utils", "maybe_attach_gc_debug_callback", "follows the freeze"),
    HookPoint(_WORKER, "Worker.load_model", "heap census during start-up"),
    HookPoint(_WORKER, "Worker.determine_available_memory", "heap census during start-up"),
    HookPoint(_WORKER, "Worker.compile_or_warm_up_model", "worker policy"),
    HookPoint(_WORKER, "Worker.execute_model", "steps; collections between them"),
    HookPoint(_WORKER, "Worker.shutdown", "thaw and final census"),
    HookPoint(
        "vllm.v1.worker.cpu_worker", "CPUWorker.compile_or_warm_up_model", "worker policy, CPU"
    ),
    HookPoint(_V1_RUNNER, "GPUModelRunner.capture_model", "capture policy and time"),
    HookPoint(_V1_RUNNER, "GPUModelRunner._freeze_gc", "capture policy, V1 runner"),
    HookPoint(_V2_RUNNER, "GPUModelRunner.capture_model", "capture policy and time"),
    HookPoint(_V2_RUNNER, "GPUModelRunner.cudagraph_manager", "discard full graphs, V2 runner"),
    HookPoint(
        _V2_RUNNER, "freeze_gc_for_cudagraph_capture", "capture policy, V2 runner", first=READ[1]
    ),
    HookPoint("vllm.compilation.counter", "compilation_counter", "graphs captured"),
    HookPoint(_GRAPHS, "CUDAGraphWrapper.clear_all_graphs", "discard graphs"),
    HookPoint(_GRAPHS, "CUDAGraphWrapper._all_instances", "discard graphs"),
    HookPoint(_BREAKABLE, "BreakableCUDAGraphWrapper.clear_all_graphs", "discard graphs"),
    HookPoint(_BREAKABLE, "BreakableCUDAGraphWrapper._all_instances", "discard graphs"),
    HookPoint("vllm.platforms", "current_platform", "a memory pool for each capture"),
    HookPoint(_CORE, "freeze_gc_heap", "engine core policy"),
    HookPoint(_CORE, "EngineCore.collective_rpc", "heap census of the engine core"),
    HookPoint(_CORE, "EngineCoreProc._process_input_queue", "engine core, between steps"),
    HookPoint(_CORE, "EngineCoreProc.has_work", "engine core, idle"),
    HookPoint(_CLIENTS, "SyncMPClient.collective_rpc", "heap census of the front end"),
    HookPoint(_CLIENTS, "SyncMPClient.get_output", "front end, between steps"),
    HookPoint(_CLIENTS, "AsyncMPClient.collective_rpc_async", "heap census of the front end"),
    HookPoint(_CLIENTS, "AsyncMPClient.get_output_async", "front end, between steps; yields"),
    HookPoint(_OUTPUTS, "OutputProcessor.process_outputs", "holds of the event loop; idle"),
    HookPoint(_OUTPUTS, "OutputProcessor.has_unfinished_requests", "front end, idle"),
    HookPoint("vllm.v1.engine.llm_engine", "LLMEngine.__init__", "front end policy, offline"),
    HookPoint("vllm.v1.engine.async_llm", "AsyncLLM.__init__", "front end policy, server"),
    HookPoint(_COLLECTIVES, "CpuCommunicator", "collectives of data-parallel ranks, CPU"),
)


class UnknownLayout(RuntimeError):
    """The installed vLLM is not laid out as any version this package was read against."""


def holder(module: str, *names: str) -> Any:
    """The class or module that has these hook points of one holder.

    Raises
    ------
    UnknownLayout
        If the installed vLLM lacks one.
    """
    held: Any = None
    for name in names:
        assert any((point.module, point.name) == (module, name) for point in HOOK_POINTS), name
        owner, _, last = name.rpartition(".")
        held = vllm_module(module)
        if owner:
            require(held, owner)
            held = getattr(held, owner)
        require(held, last)
    return held


def vllm_module(name: str) -> Any:
    """Import a module of vLLM; `UnknownLayout`, naming the version, if there is none."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise unknown(f"there is no module {error.name}") from error


def require(owner: Any, *names: str) -> None:
    """Raise `UnknownLayout`, naming the vLLM version, if `owner` lacks one of `names`."""
    if missing := [name for name in names if not hasattr(owner, name)]:
        where = getattr(owner, "__name__", type(owner).__qualname__)
        raise unknown(f"{where} has no {', '.join(missing)}")


def unknown(what: str) -> UnknownLayout:
    """The one line for a vLLM that this package was not read against."""
    import vllm

    return UnknownLayout(
        f"vLLM {vllm.__version__}: {what}; this patch knows {READ[0]} to {READ[1]}: "
        "install one of these, or unset the REPRO_ variables"
    )


def global_rank(worker: Any) -> int:
    """Rank over all data-parallel engines: each engine counts its own workers from 0."""
    parallel = worker.vllm_config.parallel_config
    # The index: vLLM resets the rank of a dense model's engines, which know nothing of each other.
    return int(parallel.data_parallel_index) * int(parallel.world_size) + int(worker.rank)


@contextlib.contextmanager
def replaced(place: dict[str, Any], name: str, replacement: Any) -> Iterator[None]:
    """Set a name in a module's or an object's dictionary, and put back what was there."""
    there, upstream = name in place, place.get(name)
    place[name] = replacement
    try:
        yield
    finally:
        if there:
            place[name] = upstream
        else:
            del place[name]
