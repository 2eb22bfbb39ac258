"""Supplies the two collectives that vLLM's CPU communicator lacks, to an experiment alone.

In every layer of a mixture of experts, data-parallel ranks gather all tokens and hand back the
sums: `all_gatherv` and `reduce_scatterv`. On the CPU backend vLLM raises NotImplementedError for
both. Through `torch.distributed` they take the time that gloo takes; they make no rank faster.
"""

from __future__ import annotations

import os
from typing import Any

from repro.plugin import fault_handling
from repro.plugin.hook_points import holder

SUPPLIED = ("all_gatherv", "reduce_scatterv")


def supply(worker: Any) -> dict[str, Any]:
    """Give a worker's process both collectives where an experiment needs them.

    Returns
    -------
    dict
        For the run's record: what was supplied, and the cores this worker is bound to. Empty for
        any other worker, which is left alone.

    Raises
    ------
    repro.plugin.hook_points.UnknownLayout
        If the installed vLLM has no such communicator.
    """
    if not (fault_handling.strict() and worker.device.type == "cpu"):
        return {}
    # vLLM sets the size to 1 for the ranks of a dense model, which never wait for each other.
    if worker.vllm_config.parallel_config.data_parallel_size == 1:
        return {}
    communicators = holder(
        "vllm.distributed.device_communicators.cpu_communicator", "CpuCommunicator"
    )
    communicators.CpuCommunicator.all_gatherv = all_gatherv
    communicators.CpuCommunicator.reduce_scatterv = reduce_scatterv
    return {"supplied": list(SUPPLIED), "cpus": sorted(os.sched_getaffinity(0))}


def all_gatherv(
    communicator: Any, input_: Any, dim: int = 0, sizes: list[int] | None = None
) -> Any:
    """Every rank's rows, in the order of ranks: each part padded to the longest one.

    Parameters
    ----------
    communicator : CpuCommunicator
    input_ : torch.Tensor, shape (n_own, …), or list of them
    dim : int
        Only 0, as in vLLM's CUDA communicator.
    sizes : list of int, optional
        Rows of each rank; without it every rank has as many as this one.

    Returns
    -------
    torch.Tensor, shape (sum(sizes), …), or list of them
    """
    import torch

    if dim != 0:
        raise NotImplementedError(f"all_gatherv along dim {dim}: only 0 is supplied")
    if isinstance(input_, list):
        return [all_gatherv(communicator, each, dim, sizes) for each in input_]
    sizes = sizes or [len(input_)] * communicator.world_size
    longest = max(sizes)
    own = input_.new_zeros((longest, *input_.shape[1:]))
    own[: len(input_)] = input_
    parts = input_.new_empty((len(sizes), *own.shape))
    torch.distributed.all_gather_into_tensor(
        parts.flatten(0, 1), own, group=communicator.device_group
    )
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def reduce_scatterv(
    communicator: Any, input_: Any, dim: int = -1, sizes: list[int] | None = None
) -> Any:
    """This rank's rows of the sum over all ranks: an all-reduce, then one's own slice.

    Parameters
    ----------
    communicator : CpuCommunicator
    input_ : torch.Tensor, shape (sum(sizes), …)
    dim : int
        Only 0.
    sizes : list of int, optional
        Rows that go to each rank; without it, equally many.

    Returns
    -------
    torch.Tensor, shape (n_own, …)
    """
    import torch

    if dim != 0:
        raise NotImplementedError(f"reduce_scatterv along dim {dim}: only 0 is supplied")
    sizes = sizes or [len(input_) // communicator.world_size] * communicator.world_size
    total = input_.clone()
    torch.distributed.all_reduce(total, group=communicator.device_group)
    return total.split(sizes)[communicator.rank_in_group].clone()
