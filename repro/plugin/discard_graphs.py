"""Discard a worker's captured CUDA graphs, so that its process can capture them again.

Where the graphs are, read in vLLM 0.22.1, 0.23.0 and 0.32.0: piecewise graphs of either runner,
and the V1 runner's full ones, in the entries of `CUDAGraphWrapper` (or its breakable twin); the
V2 runner's full graphs in its `cudagraph_manager`.
"""

from __future__ import annotations

import gc
from typing import Any

from repro.plugin.hook_points import holder, require, unknown

WRAPPERS = {
    "vllm.compilation.cuda_graph": "CUDAGraphWrapper",
    "vllm.compilation.breakable_cudagraph": "BreakableCUDAGraphWrapper",
}
"""Module -> the class in it that keeps graphs."""


def discard(worker: Any) -> None:
    """Drop every graph of this worker and all it kept for them, in Python and on the GPU."""
    runner = worker.model_runner
    refuse_other_graphs(worker.vllm_config)
    # A pool of its own for each capture: PyTorch refuses one whose graphs are all gone as long as
    # anything allocated in it is alive, and cuBLAS keeps its workspace there.
    platforms = holder("vllm.platforms", "current_platform")
    pool = platforms.current_platform.graph_pool_handle()
    clear_wrappers(pool)
    if hasattr(runner, "cudagraph_manager"):
        clear_manager(runner.cudagraph_manager, pool)
    else:  # the V1 runner's are all in wrappers; it knows by this what to capture
        require(runner, "cudagraph_dispatcher")
    release_memory()


def refuse_other_graphs(config: Any) -> None:
    """Speculators, encoders and microbatches keep graphs of their own, not looked for here."""
    owners = {
        "speculative decoding": config.speculative_config is not None,
        "a multimodal model": config.model_config.is_multimodal_model,
        "microbatching": config.parallel_config.use_ubatching,
    }
    if found := [owner for owner, has_graphs in owners.items() if has_graphs]:
        raise unknown(f"graphs of {found[0]} cannot be captured again in one process")


def clear_wrappers(pool: Any) -> None:
    """Empty every wrapper, and have it capture into `pool` from now on."""
    for module, name in WRAPPERS.items():
        wrapper_class = holder(module, f"{name}._all_instances", f"{name}.clear_all_graphs")
        wrapper_class.clear_all_graphs()
        for wrapper in list(wrapper_class._all_instances):
            require(wrapper, "graph_pool")
            wrapper.graph_pool = pool


def clear_manager(manager: Any, pool: Any) -> None:
    """Bring the V2 runner's manager back to where it was before its first capture."""
    fresh: dict[str, Any] = {"graphs": {}, "pool": pool}
    # Buffers for what full graphs return, made by the first capture.
    fresh |= {"hidden_states": None, "aux_hidden_states": [], "intermediate_tensors": None}
    require(manager, *fresh)
    vars(manager).update(fresh)


def release_memory() -> None:
    """Thaw and collect the heap, and give back all GPU memory that nothing holds any more.

    The heap of the start-up capture was not frozen. A freeze since then, the policy's or (with
    `uni`) the engine core's, would hide it from the collector, and every policy would look alike.
    """
    import torch

    torch.cuda.synchronize()
    gc.unfreeze()
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    torch.cuda.synchronize()
