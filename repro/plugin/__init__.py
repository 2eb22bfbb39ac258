"""What runs inside vLLM's own processes. Standard library and vLLM only; inert unless asked.

Every vLLM process calls `install` through the entry point `vllm.general_plugins`. It asks for:

    REPRO_RECORD_DIR       record pauses, steps, captures and heap counts into this folder
    REPRO_POLICY           serving policy of the worker (default `stock`)
    REPRO_ENGINE_POLICY    serving policy of the engine core (default `stock`)
    REPRO_FRONTEND_POLICY  serving policy of the front end: API server or `LLM` (default `stock`)
    REPRO_CAPTURE_POLICY   capture policy of the worker (default `stock`)
    REPRO_STRICT           1: any fault here stops vLLM (an experiment);
                           else it is logged once and vLLM goes on without what failed

While it records, the server's own `/metrics` counts pauses and their seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path

from repro import policy
from repro.plugin import fault_handling
from repro.plugin.recorder import Recorder, identity_from_name

RECORD_DIR = "REPRO_RECORD_DIR"
POLICY = "REPRO_POLICY"
ENGINE_POLICY = "REPRO_ENGINE_POLICY"
FRONTEND_POLICY = "REPRO_FRONTEND_POLICY"
CAPTURE_POLICY = "REPRO_CAPTURE_POLICY"
STRICT = fault_handling.STRICT
VARIABLES = (RECORD_DIR, POLICY, ENGINE_POLICY, FRONTEND_POLICY, CAPTURE_POLICY)
"""Those that ask for something."""

own_recorder: Recorder | None = None
"""This process's recorder, once installed with `REPRO_RECORD_DIR`."""

_installed = False


def install() -> None:
    """Patch this vLLM process as the variables ask; do nothing if none is set.

    Raises
    ------
    repro.policy.UnknownPolicy, repro.plugin.hook_points.UnknownLayout, OSError
        Only with `REPRO_STRICT=1`.
    """
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
    global own_recorder
    worker, engine, frontend = (
        policy.serving(os.environ.get(name) or "stock")
        for name in (POLICY, ENGINE_POLICY, FRONTEND_POLICY)
    )
    capture = policy.capture(os.environ.get(CAPTURE_POLICY) or "stock")
    # Only now: they import vLLM and what vLLM brings along.
    from repro.plugin import engine_frontend_hooks, metrics, output_handler, worker_hooks

    if directory := os.environ.get(RECORD_DIR):
        with fault_handling.stepping_aside("recording"):
            own_recorder = Recorder(Path(directory), strict=fault_handling.strict())
            own_recorder.watch_collector()
            if own_recorder.role == "frontend":
                metrics.expose(own_recorder.directory, own_recorder.launch_ns)
                output_handler.record_holds(own_recorder)
    worker_hooks.apply(worker, capture, own_recorder)
    role, _ = identity_from_name(multiprocessing.current_process().name)
    engine_frontend_hooks.apply(engine, frontend, role=role)
