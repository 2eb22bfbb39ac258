"""What runs inside vLLM's own processes. Standard library and vLLM only; inert unless asked.

Every vLLM process calls `install` through the entry point `vllm.general_plugins`. It asks for:

    REPRO_RECORD_DIR       record pauses, steps, captures and heap counts into this folder
    REPRO_POLICY           serving policy of the worker (default `stock`)
    REPRO_ENGINE_POLICY    serving policy of the engine core (default `stock`)
    REPRO_FRONTEND_POLICY  serving policy of the front end: API server or `LLM` (default `stock`)
    REPRO_CAPTURE_POLICY   capture policy of the worker (default `stock`)
    REPRO_STRICT           1: any fault here stops vLLM (an experiment);
                           else it is logged once and vLLM goes on without the plugin
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
from pathlib import Path

from repro import policy
from repro.plugin.recorder import Recorder, identity_from_name

RECORD_DIR = "REPRO_RECORD_DIR"
POLICY = "REPRO_POLICY"
ENGINE_POLICY = "REPRO_ENGINE_POLICY"
FRONTEND_POLICY = "REPRO_FRONTEND_POLICY"
CAPTURE_POLICY = "REPRO_CAPTURE_POLICY"
STRICT = "REPRO_STRICT"
VARIABLES = (RECORD_DIR, POLICY, ENGINE_POLICY, FRONTEND_POLICY, CAPTURE_POLICY)
"""Those that ask for something."""

logger = logging.getLogger("vllm.repro")
own_recorder: Recorder | None = None
"""This process's recorder, once installed with `REPRO_RECORD_DIR`."""

_installed = False


def install() -> None:
    """Patch this vLLM process as the variables ask; do nothing if none is set.

    Raises
    ------
    repro.policy.UnknownPolicy, repro.plugin.layout.UnknownLayout, OSError
        Only with `REPRO_STRICT=1`.
    """
    global _installed
    asked = any(os.environ.get(name) for name in VARIABLES)
    if _installed or not asked or _inspecting_a_model():
        return
    _installed = True  # whatever comes of it: vLLM may call again
    strict = os.environ.get(STRICT) == "1"
    try:
        _install(strict)
    except Exception as error:
        if strict:
            raise
        logger.error("repro: plugin not installed, vLLM goes on without it: %s", error)


def _inspecting_a_model() -> bool:
    """vLLM looks at a model's class in a short-lived process of its own: it serves nothing."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec is not None and spec.name == "vllm.model_executor.models.registry"


def _install(strict: bool) -> None:
    global own_recorder
    worker, engine, frontend = (
        policy.serving(os.environ.get(name) or "stock")
        for name in (POLICY, ENGINE_POLICY, FRONTEND_POLICY)
    )
    capture = policy.capture(os.environ.get(CAPTURE_POLICY) or "stock")
    if directory := os.environ.get(RECORD_DIR):
        own_recorder = Recorder(Path(directory), strict=strict)
        own_recorder.watch_collector()
    from repro.plugin import patch, processes  # only now: they import vLLM

    patch.apply(worker, capture, own_recorder, strict=strict)
    role, _ = identity_from_name(multiprocessing.current_process().name)
    processes.apply(engine, frontend, role=role)
