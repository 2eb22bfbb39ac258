"""Hooks of the CUDA graph capture: its policy and its span, at start-up and again on request."""

from __future__ import annotations

import contextlib
import functools
import gc
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from repro import policy
from repro.plugin import discard_graphs
from repro.plugin.fault_handling import stepping_aside
from repro.plugin.hook_points import UnknownLayout, global_rank, holder, replaced, require
from repro.plugin.recorder import Recorder
from repro.plugin.rpc import RECAPTURE_RPC
from repro.policy import CapturePolicy


def wrap_capture(worker: Any, capture: CapturePolicy, recorder: Recorder | None) -> None:
    """Apply the capture policy to the model runner's capture, and record its span.

    A worker that never captures (the CPU backend) has the span of its compile recorded instead.
    """
    runner = worker.model_runner
    if not hasattr(worker, "device") or worker.device.type == "cpu":
        if not capture.leave:
            raise UnknownLayout(
                f"capture policy {capture.name!r} needs CUDA graphs, and this worker is on the "
                "CPU: use capture policy 'stock'"
            )
        if recorder is not None and hasattr(runner, "warming_up_model"):
            runner.warming_up_model = recorded(
                recorder, "compile", capture.name, runner.warming_up_model
            )
        return
    require(runner, "capture_model")
    original = runner.capture_model
    runner.capture_model = capturing(capture, runner, original, recorder)
    if recorder is not None:
        setattr(worker, RECAPTURE_RPC, functools.partial(recapture, recorder, worker, original))


def capturing(
    capture: CapturePolicy, runner: Any, original: Callable[..., Any], recorder: Recorder | None
) -> Callable[..., Any]:
    """The runner's capture under a policy, and recorded."""
    captured = original if capture.leave else capture_under(capture, runner, original)
    return captured if recorder is None else recorded(recorder, "capture", capture.name, captured)


def capture_under(
    capture: CapturePolicy, runner: Any, original: Callable[..., Any]
) -> Callable[..., Any]:
    """The runner's capture with the policy in the place of vLLM's own handling of the collector.

    The V1 runner freezes through `self._freeze_gc()`, later runners through the module's
    `freeze_gc_for_cudagraph_capture`; the V2 runner of 0.22 and 0.23 does nothing, so there the
    policy goes around the call. Which of them is told by what is there, not by the code of
    `capture_model`: that is behind decorators.
    """
    module = vars(sys.modules[type(runner).__module__])

    def collector() -> contextlib.AbstractContextManager[None]:
        return collector_for(capture)

    def captured(**how: Any) -> Any:
        if hasattr(type(runner), "_freeze_gc"):
            place: dict[str, Any] = vars(runner)
            name = "_freeze_gc"
        elif "freeze_gc_for_cudagraph_capture" in module:
            place, name = module, "freeze_gc_for_cudagraph_capture"
        else:
            with collector():
                return original(**how)
        with replaced(place, name, collector):
            return original(**how)

    return captured


@contextlib.contextmanager
def collector_for(capture: CapturePolicy) -> Iterator[None]:
    """The collector as the capture policy wants it; every policy starts from a full collection.

    PyTorch's own collection before each graph is left at its default but where the policy asks
    for it, so that a capture with the collector on shows what that default is. The order of the
    calls is that of vLLM's own `freeze_gc_for_cudagraph_capture`: switched on before it was
    collected, the collector would first start by itself.
    """
    import torch

    options = torch.compiler.config
    per_graph = options.force_cudagraph_gc
    if capture.collect_per_graph:
        options.force_cudagraph_gc = True
    gc.collect()
    if capture.freeze:
        gc.freeze()
    if capture.disable:
        gc.disable()
    try:
        yield
    finally:
        options.force_cudagraph_gc = per_graph
        if capture.freeze:
            gc.unfreeze()
            gc.collect()
        if capture.disable:
            gc.enable()


def recapture(
    recorder: Recorder, worker: Any, original: Callable[..., Any], name: str
) -> dict[str, Any]:
    """Discard the graphs and capture them again under a policy; called by `collective_rpc`."""
    import torch

    again = capturing(policy.capture(name), worker.model_runner, original, recorder)
    discard_graphs.discard(worker)
    found = {
        "rank": global_rank(worker),
        "capture_policy": name,
        "freeze_count": gc.get_freeze_count(),
        "free_bytes": torch.cuda.mem_get_info()[0],
    }
    again()
    return found


def recorded(
    recorder: Recorder, kind: str, policy_name: str, original: Callable[..., Any]
) -> Callable[..., Any]:
    """Record one call with the graphs it captured and the bytes it says it took.

    Its kind is `capture`, or `compile` for a worker that compiles but captures nothing.
    """
    counter = holder("vllm.compilation.counter", "compilation_counter")
    compilation_counter = counter.compilation_counter
    require(compilation_counter, "num_cudagraph_captured")

    def timed(**how: Any) -> Any:
        if how.get("profile_only"):  # later vLLM first captures a few graphs to see their memory
            return original(**how)
        with stepping_aside("recording the capture"):
            recorder.census("capture")
        before, began = compilation_counter.num_cudagraph_captured, time.monotonic_ns()
        taken = original(**how)
        elapsed = time.monotonic_ns() - began
        with stepping_aside("recording the capture"):
            recorder.capture(
                kind=kind,
                capture_policy=policy_name,
                start_ns=began,
                duration_ns=elapsed,
                graphs=compilation_counter.num_cudagraph_captured - before,
                memory_bytes=int(taken or 0),
            )
        return taken

    return timed
