"""Facts about one of vLLM's processes: its role, host, versions, place among the ranks, heap."""

from __future__ import annotations

import gc
import hashlib
import multiprocessing
import os
import platform
import sys
from pathlib import Path
from typing import Any

from repro.policy import ServingPolicy

SERVER = "REPRO_SERVER"
"""Set by an API server that has engines of its own, inherited by them: the server's name."""

LAUNCHER = "launcher"
"""Role of a main process until it builds an engine's client: one that starts API servers, the
supervisor of multi-port data parallelism, `vllm serve --help`."""

SERVING_ROLES = ("frontend", "engine", "worker")

_OWN_ENGINES = "APIServer_DPRank_"
_SHARED_ENGINES = "ApiServer_"
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def process_name() -> str:
    """The name that vLLM gave this process; `MainProcess` if it started by itself."""
    return multiprocessing.current_process().name


def identity_from_name(name: str) -> tuple[str, int]:
    """Role and rank from the name vLLM gives a process: `EngineCore_DP1`, `ApiServer_2`.

    A program's main process counts as a front end here; until it builds an engine's client, its
    recorder declares it a `LAUNCHER`. All other processes (the data-parallel coordinator, say) are
    `other`.
    """
    prefixes = {"EngineCore": "engine", "VllmWorker": "worker"}
    prefixes |= {_SHARED_ENGINES: "frontend", _OWN_ENGINES: "frontend"}
    for prefix, role in prefixes.items():
        if name.startswith(prefix):
            digits = name.removeprefix(prefix).lstrip("_DP-")
            return role, int(digits) if digits.isdigit() else 0
    return "frontend" if name == "MainProcess" else "other", 0


def api_server(name: str) -> str:
    """The API server that a process belongs to; empty if servers share it or there is only one."""
    if name.startswith(_OWN_ENGINES):
        os.environ[SERVER] = name  # engine cores and workers inherit it
    return os.environ.get(SERVER, "") or (name if name.startswith(_SHARED_ENGINES) else "")


def host() -> str:
    """A hash for the kernel whose monotonic clock this process reads: no name, new at each boot."""
    try:
        text = _BOOT.read_text()
    except OSError:
        text = platform.node()
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def versions() -> dict[str, str]:
    """Of Python and of vLLM, as far as this process has loaded it."""
    vllm = getattr(sys.modules.get("vllm"), "__version__", None)
    return {"python": platform.python_version()} | ({"vllm": str(vllm)} if vllm else {})


def parallel(vllm_config: Any) -> dict[str, Any]:
    """Place among the ranks, from the process's own configuration.

    Returns
    -------
    dict
        `dp_rank`, `dp_size` (in an engine of a dense model 1: its ranks do not wait for one
        another), `world_size` (workers per engine) and `moe`, None where vLLM does not say.
    """
    config = vllm_config.parallel_config
    return {
        "dp_rank": int(config.data_parallel_index),
        "dp_size": int(config.data_parallel_size),
        "world_size": int(config.world_size),
        "moe": getattr(vllm_config.model_config, "is_moe", None),
    }


def heap_state(counts: dict[str, Any]) -> dict[str, Any]:
    """The collector's state out of `count_heap`; a heap is frozen if most of it is."""
    return {
        "objects": counts["tracked"] + counts["frozen"],
        "frozen": counts["frozen"],
        "heap_frozen": counts["frozen"] > counts["tracked"],
        "thresholds": list(gc.get_threshold()),
        "collector": counts["enabled"],
    }


def not_in_force(serving: ServingPolicy, state: dict[str, Any]) -> str:
    """The first respect in which a process's state is not what the policy asks; empty if none."""
    if serving.freeze is not None and serving.freeze != state["heap_frozen"]:
        return "its heap is frozen" if state["heap_frozen"] else "its heap is not frozen"
    both = zip(serving.thresholds, state["thresholds"], strict=True)
    if any(asked not in (None, found) for asked, found in both):
        return f"its thresholds are {state['thresholds']}"
    if not serving.leaves_alone and serving.automatic != state["collector"]:
        return f"its collector is {'on' if state['collector'] else 'off'}"
    return ""
