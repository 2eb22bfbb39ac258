"""Finds out what this machine can measure, and names the remedy for each thing missing."""

from __future__ import annotations

import ast
import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from repro.experiment import provenance
from repro.experiment.campaign import MEMORY_NEEDED
from repro.plugin.hook_points import HOOK_POINTS, HookPoint
from repro.releases import READ, has_incremental_collector, release
from repro.server import environment


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report."""

    what: str  # was looked at
    found: str  # what is there
    remedy: str = ""  # what to do if that does not suffice
    blocks: bool = False  # whether nothing can be measured without the remedy

    def __str__(self) -> str:
        mark = "no " if self.blocks else "?  " if self.remedy else "ok "
        return f"{mark}{self.what:10} {self.found}" + (f" -> {self.remedy}" if self.remedy else "")


def examine() -> list[Finding]:
    """Look at Python, vLLM, the plugin, the processor, memory and GPUs."""
    found = [python(), vllm(), entry_point(), compiler(), memory(), processor(), gpu()]
    if not found[1].blocks:
        found.insert(2, hooks())
    return found + [Finding(what=w, found=f, remedy=r) for w, f, r in environment.obstacles()]


def python() -> Finding:
    """The interpreter, whose collector is what is measured."""
    found = f"{platform.python_implementation()} {platform.python_version()}"
    if has_incremental_collector(platform.python_version()):
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
    if not release(READ[0]) <= release(version) <= release(READ[1]):
        remedy = f"the hooks were read against {READ[0]} to {READ[1]}"
        return Finding(what="vLLM", found=version, remedy=remedy)
    return Finding(what="vLLM", found=version)


def hooks() -> Finding:
    """Whether the installed vLLM has every name that this package hooks."""
    missing = missing_hooks(installed_vllm(), provenance.vllm_version())
    if missing:
        names = ", ".join(f"{point.module}.{point.name} ({point.use})" for point in missing)
        remedy = f"install vLLM {READ[0]} to {READ[1]}"
        return Finding(what="hooks", found=f"missing {names}", remedy=remedy)
    return Finding(what="hooks", found=f"all of {len(HOOK_POINTS)} there")


def installed_vllm() -> Path:
    """The folder of the installed vLLM's sources; imports nothing of it."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def missing_hooks(root: Path, version: str) -> list[HookPoint]:
    """Hook points that vLLM's package folder `root` lacks, of those its version should have."""
    return [
        point
        for point in HOOK_POINTS
        if release(point.first) <= release(version) and not has_hook(root, point)
    ]


def has_hook(root: Path, point: HookPoint) -> bool:
    """Whether a module's source binds the name, at its top level or in the class."""
    path = root.joinpath(*point.module.split(".")[1:])
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not path.is_file():
        return False
    tree: ast.AST = ast.parse(path.read_text(encoding="utf-8"))
    owner, _, name = point.name.rpartition(".")
    if owner:
        classes = [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == owner]
        return any(name in bound(one) for one in classes)
    return name in bound(tree)


def bound(tree: ast.AST) -> Iterator[str]:
    """Every name that a module or a class defines, imports or assigns, `self.name` included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.alias):
            yield node.asname or node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


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
    """The backend that runs, and so what can be measured."""
    gpus = provenance.gpu_query("name", "memory.total")
    if not gpus:
        remedy = "capture time needs one; ITL is measured on vLLM's CPU backend"
        return Finding(what="GPU", found="none", remedy=remedy)
    return Finding(what="GPU", found=f"{len(gpus)} x {gpus[0][0]}, {gpus[0][1]} MiB each")
