"""What this machine can measure, and the remedy for each thing missing."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import dataclass

import psutil

from repro.experiment import provenance
from repro.experiment.campaign import MEMORY_NEEDED
from repro.plugin.hook_points import KNOWN_VLLM
from repro.server import environment


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report.

    Attributes
    ----------
    what, found : str
        What was looked at, and what is there.
    remedy : str
        What to do if it does not suffice; empty if it does.
    blocks : bool
        Whether nothing can be measured without the remedy.
    """

    what: str
    found: str
    remedy: str = ""
    blocks: bool = False

    def __str__(self) -> str:
        mark = "no " if self.blocks else "?  " if self.remedy else "ok "
        return f"{mark}{self.what:10} {self.found}" + (f" -> {self.remedy}" if self.remedy else "")


def examine() -> list[Finding]:
    """Look at Python, vLLM, the plugin, the processor, memory and GPUs."""
    found = [python(), vllm(), entry_point(), compiler(), memory(), processor(), gpu()]
    return found + [Finding(what=w, found=f, remedy=r) for w, f, r in environment.obstacles()]


def python() -> Finding:
    """The interpreter, whose collector is what is measured."""
    found = f"{platform.python_implementation()} {platform.python_version()}"
    if (3, 14, 0) <= sys.version_info[:3] < (3, 14, 5):
        return Finding(
            what="Python", found=f"{found}, an incremental collector", remedy="take 3.12"
        )
    return Finding(what="Python", found=found)


def vllm() -> Finding:
    """Whether vLLM is there, and a version the patch knows."""
    try:
        version = provenance.vllm_version()
    except provenance.NoVllm as error:
        remedy = "make env installs it; data/ and figures need none"
        return Finding(what="vLLM", found=str(error).partition(":")[0], remedy=remedy, blocks=True)
    first, last = map(release, KNOWN_VLLM)
    if not first <= release(version) <= last:
        known = " to ".join(KNOWN_VLLM)
        return Finding(what="vLLM", found=version, remedy=f"the patch was read against {known}")
    return Finding(what="vLLM", found=version)


def release(version: str) -> tuple[int, ...]:
    """The numbers of a version like `0.23.0+cpu`."""
    parts = version.split("+")[0].split(".")[:3]
    return tuple(int(part) for part in parts if part.isdigit())


def entry_point() -> Finding:
    """Whether vLLM's processes will find the plugin."""
    if not provenance.plugin_registered():
        remedy = "pip install this package, a checkout on the path is not enough"
        return Finding(what="plugin", found="not registered", remedy=remedy, blocks=True)
    return Finding(what="plugin", found="registered with vLLM")


def compiler() -> Finding:
    """vLLM compiles its model at start."""
    if found := shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++"):
        return Finding(what="compiler", found=os.path.basename(found))
    return Finding(what="compiler", found="none", remedy="install g++", blocks=True)


def memory() -> Finding:
    """Room for one engine."""
    available = psutil.virtual_memory().available
    found = f"{available / 2**30:.0f} GiB available"
    if available < MEMORY_NEEDED:
        remedy = f"an engine needs {MEMORY_NEEDED / 2**30:.0f} GiB: close other programs"
        return Finding(what="memory", found=found, remedy=remedy, blocks=True)
    return Finding(what="memory", found=found)


def processor() -> Finding:
    """Cores for three processes."""
    cores = len(os.sched_getaffinity(0))
    found = f"{provenance.cpu_model()}, {cores} cores"
    if cores < 2:
        return Finding(what="processor", found=found, remedy="two cores are the least", blocks=True)
    busy = psutil.cpu_percent(interval=0.5)
    if busy > 30:
        remedy = "timings will be noisy: end other programs"
        return Finding(what="processor", found=f"{found}, {busy:.0f}% busy", remedy=remedy)
    return Finding(what="processor", found=found)


def gpu() -> Finding:
    """Which backend runs, and so what can be said."""
    gpus = provenance.gpu_query("name", "memory.total")
    if not gpus:
        remedy = "capture time needs one; ITL is measured on vLLM's CPU backend"
        return Finding(what="GPU", found="none", remedy=remedy)
    return Finding(what="GPU", found=f"{len(gpus)} x {gpus[0][0]}, {gpus[0][1]} MiB each")
