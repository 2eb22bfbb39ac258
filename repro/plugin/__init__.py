"""The part inside vLLM's processes. Standard library and vLLM only; inert unless asked.

Every vLLM process calls `install` through the entry point `vllm.general_plugins`. It asks for:

    REPRO_RECORD_DIR       record pauses, steps, captures and heap counts into this folder
    REPRO_POLICY           serving policy of the worker (default `stock`)
    REPRO_ENGINE_POLICY    serving policy of the engine core (default `stock`)
    REPRO_FRONTEND_POLICY  serving policy of the front end: API server or `LLM` (default `stock`)
    REPRO_CAPTURE_POLICY   capture policy of the worker (default `stock`)
    REPRO_STACKS_OVER_MS   record the Python stacks of a worker while one of its steps takes longer
                           than so many ms (default: never)
    REPRO_OUTPUT_YIELD_MS  experiments only: the API server's output handler lets other tasks run
                           after so many ms; 0: after every message (default: vLLM's handler)
    REPRO_STRICT           1: any fault here stops vLLM (an experiment);
                           else it is logged once and vLLM goes on without what failed

While it records, the server's own `/metrics` counts pauses and their seconds. A value that is none
is said once, naming the choices: an experiment then stops, a server goes on without it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from repro import policy
from repro.plugin import fault_handling
from repro.plugin.process_facts import identity_from_name, process_name
from repro.plugin.recorder import Recorder

RECORD_DIR = "REPRO_RECORD_DIR"
POLICY = "REPRO_POLICY"
ENGINE_POLICY = "REPRO_ENGINE_POLICY"
FRONTEND_POLICY = "REPRO_FRONTEND_POLICY"
CAPTURE_POLICY = "REPRO_CAPTURE_POLICY"
STACKS = "REPRO_STACKS_OVER_MS"
OUTPUT_YIELD = "REPRO_OUTPUT_YIELD_MS"
STRICT = fault_handling.STRICT
VARIABLES = (RECORD_DIR, POLICY, ENGINE_POLICY, FRONTEND_POLICY, CAPTURE_POLICY)
"""Those that ask for something."""

BY_ROLE = {"worker": POLICY, "engine": ENGINE_POLICY, "frontend": FRONTEND_POLICY}

Value = TypeVar("Value")

own_recorder: Recorder | None = None
"""This process's recorder, once installed with `REPRO_RECORD_DIR`."""

_installed = False


def install() -> None:
    """Patch this vLLM process as the variables ask; do nothing if none is set."""
    global _installed
    asked = any(os.environ.get(name) for name in VARIABLES)
    if _installed or not asked or _inspecting_a_model():
        return
    _installed = True  # whatever comes of it: vLLM may call again
    with fault_handling.stepping_aside("installing the plugin"):
        _install()


def _inspecting_a_model() -> bool:
    """vLLM looks at a model's class in a short-lived process of its own: it serves nothing."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec is not None and spec.name == "vllm.model_executor.models.registry"


def _install() -> None:
    serving = {role: _chosen(name, policy.serving, "stock") for role, name in BY_ROLE.items()}
    capture = _chosen(CAPTURE_POLICY, policy.capture, "stock")
    # Only now: they import vLLM and what vLLM brings along.
    from repro.plugin import engine_frontend_hooks, process_hooks, worker_hooks

    role, _ = identity_from_name(process_name())
    if directory := os.environ.get(RECORD_DIR):
        with fault_handling.stepping_aside("recording"):
            _record(Path(directory), serving)
    with fault_handling.stepping_aside("hooking the policies"):
        worker_hooks.apply(serving["worker"], capture, own_recorder)
        engine_frontend_hooks.apply(serving["engine"], serving["frontend"], role=role)
        if own_recorder is not None:
            process_hooks.apply(own_recorder)
            if role in ("frontend", "engine") and fault_handling.strict():  # an experiment
                engine_frontend_hooks.count_garbage_at_the_end(own_recorder, role)
                bound_ms = os.environ.get(OUTPUT_YIELD)
                if bound_ms and role == "frontend":
                    engine_frontend_hooks.bound_output_handler(float(bound_ms), own_recorder)


def _record(directory: Path, serving: dict[str, policy.ServingPolicy]) -> None:
    global own_recorder
    from repro.plugin import metrics, output_handler, stack_dump

    asked = {role: os.environ.get(name) or "stock" for role, name in BY_ROLE.items()}
    strict = fault_handling.strict()
    own_recorder = Recorder(directory, strict=strict, policies=serving, asked=asked)
    own_recorder.watch_collector()
    if own_recorder.role == "frontend":
        metrics.expose(own_recorder.directory, own_recorder.launch_ns)
        output_handler.record_holds(own_recorder)
    if bound_s := _chosen(STACKS, stack_dump.bound_s, "0"):
        stack_dump.apply(own_recorder, bound_s)


def _chosen(variable: str, look_up: Callable[[str], Value], otherwise: str) -> Value:
    """Policy that a variable asks for; if mistyped, that of the variable unset."""
    with fault_handling.stepping_aside(f"what {variable} asks for"):
        return look_up(os.environ.get(variable) or otherwise)
    return look_up(otherwise)
